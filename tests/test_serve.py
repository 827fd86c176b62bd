"""One job from input to reply, without the SDK around it."""

import asyncio
import base64
import contextlib
import io
import json
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import structlog
from PIL import Image
from worlds.standin import SERVED, StandIn, StandIns

from worker.errors import CudaOutOfMemory
from worker.families import Control, Drawn, Generation
from worker.jobs.device_thread import DeviceThread, Stopped
from worker.jobs.progress import Progress
from worker.jobs.serve import Worker
from worker.settings import read

Reply = dict[str, Any]


def served(job_input: Any, worker: Worker | None = None, **top: Any) -> Reply:
    """Return the reply to one job; it must be strict JSON, or the SDK would lose it."""
    worker = worker or Worker(read({}), StandIns())
    reply = asyncio.run(worker.handle({"id": "job-1", "input": job_input, **top}))
    json.dumps(reply, allow_nan=False, ensure_ascii=False).encode()
    return reply


def with_settings(**environ: str) -> Worker:
    return Worker(read(environ), StandIns())


def test_a_reply_says_what_makes_the_picture_again() -> None:
    reply = served({"prompt": "a fox", "seed": 5, "num_images": 2, "output_format": "png"})
    assert [image["seed"] for image in reply["images"]] == [5, 6]
    assert reply["seed"] == 5
    picture = Image.open(io.BytesIO(base64.b64decode(reply["images"][1]["base64"])))
    assert picture.info["seed"] == "6"
    assert picture.info["prompt"] == "a fox"
    assert reply["model"] == {"id": "standin", "revision": "local", "precision": "bf16"}


def test_png_metadata_can_be_switched_off() -> None:
    reply = served({"prompt": "a fox"}, with_settings(PNG_METADATA="false"))
    picture = Image.open(io.BytesIO(base64.b64decode(reply["images"][0]["base64"])))
    assert picture.info == {}


def test_old_callers_find_the_first_picture_at_the_top() -> None:
    reply = served({"prompt": "a fox"}, with_settings(RESPONSE_COMPAT="output_image_base64"))
    assert base64.b64decode(reply["output_image_base64"]).startswith(b"\x89PNG")
    assert "base64" not in reply["images"][0]


@pytest.mark.parametrize("given", ["bucket", [], 7, True], ids=repr)
def test_a_bucket_that_is_no_object_is_invalid(given: object) -> None:
    reply = served({"prompt": "a fox"}, s3Config=given)
    assert reply["error_code"] == "INVALID_INPUT"
    assert reply["details"][0]["field"] == "s3Config"


@pytest.mark.parametrize(
    "job_input",
    [
        {"\ud800": 1},
        {"prompt": "\ud800"},
        {"prompt": "x", "model": "\udfff"},
        {"prompt": "x", "seed": float("nan")},
        {"prompt": "x", "width": 1e400},
    ],
    ids=range(5),
)
def test_a_refusal_is_strict_json_whatever_it_quotes(job_input: Any) -> None:
    reply = served(job_input)
    assert reply.get("error_code") in ("INVALID_INPUT", "MODEL_NOT_SERVED", None)


def test_a_reference_that_cannot_be_read_is_named() -> None:
    good = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(good, "PNG")
    pictures = [good.getvalue(), good.getvalue()[:60]]
    texts = [base64.b64encode(data).decode() for data in pictures]
    reply = served({"prompt": "x", "images": texts})
    assert reply["error_code"] == "IMAGE_UNREADABLE"
    assert reply["details"][0]["field"] == "images[1]"


def test_what_is_odd_about_a_reference_is_a_warning_that_names_it() -> None:
    good, odd = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (600, 500), "red").save(good, "PNG")
    Image.new("RGB", (600, 500), "red").save(odd, "JPEG", icc_profile=b"no profile")
    texts = [base64.b64encode(data).decode() for data in (good.getvalue(), odd.getvalue()[:-2])]
    reply = served({"prompt": "x", "images": texts, "typo": 1})
    assert reply["warnings"][0].startswith("typo")
    assert reply["warnings"][1:] == [
        "images[1]: the file's last bytes are missing, none of them a pixel's",
        "images[1]: its colour profile does not fit or cannot be read: taken as sRGB",
    ]


def test_the_size_of_an_input_is_the_size_it_was_read_at() -> None:
    large = io.BytesIO()
    Image.new("RGB", (640, 480), "red").save(large, "JPEG")
    text = base64.b64encode(large.getvalue()).decode()
    worker = with_settings(MAX_IMAGE_PIXELS="100000")
    reply = served({"prompt": "x", "image": text, "size": "input"}, worker)
    assert (reply["images"][0]["width"], reply["images"][0]["height"]) == (320, 240)
    assert any('size "input"' in warning for warning in reply["warnings"])


def test_prompts_are_logged_only_when_asked() -> None:
    for chosen, logged in (("false", False), ("true", True)):
        with structlog.testing.capture_logs() as lines:
            served({"prompt": "xyzzy"}, with_settings(LOG_PROMPTS=chosen))
            # a refusal quotes what it refuses
            refused = served({"prompt": ["xyzzy"], "model": "plugh"}, with_settings())
        assert "plugh" in refused["error"]
        assert "plugh" not in str(lines)
        assert ("xyzzy" in str(lines)) is logged


class Forgetful(StandIn):
    """A model that loses its memory on the jobs it is told to."""

    def __init__(self, *failing: int) -> None:
        self._failing = failing
        self._jobs = 0

    def generate(self, generation: Generation, control: Control) -> Drawn:
        """Fail, or draw."""
        self._jobs += 1
        if self._jobs in self._failing:
            raise CudaOutOfMemory("no memory")
        return super().generate(generation, control)


def remembering(model: StandIn) -> Worker:
    models = StandIns()
    models._model = model
    return Worker(read({}), models)


@pytest.mark.parametrize(
    ("failing", "fatal"), [((1,), False), ((1, 3), False), ((1, 2), True), ((2, 3), True)]
)
def test_only_two_jobs_out_of_memory_in_a_row_are_fatal(
    failing: tuple[int, ...], fatal: bool
) -> None:
    worker = remembering(Forgetful(*failing))
    for _ in range(3):
        served({"prompt": "a fox"}, worker)
    assert (worker.fatal is not None) is fatal
    assert worker.health()["status"] == ("failing" if fatal else "ready")


def test_a_job_that_is_invalid_does_not_count_between_two_out_of_memory() -> None:
    worker = remembering(Forgetful(1, 2))
    for prompt in ("a fox", "", "a fox"):
        served({"prompt": prompt}, worker)
    assert worker.fatal is not None


def test_a_worker_that_cannot_go_on_says_so_to_the_next_job() -> None:
    worker = with_settings()
    assert served({"prompt": "lost"}, worker)["error_code"] == "DEVICE_LOST"
    told = served({"prompt": "a fox"}, worker)
    assert told["error_code"] == "WORKER_NOT_READY"
    assert told["retryable"] is True
    assert "DEVICE_LOST" in told["error"]


def test_health_counts_the_jobs() -> None:
    worker = with_settings()
    served({"prompt": "a fox"}, worker)
    served({"prompt": "nan"}, worker)
    health = served({"op": "health"}, worker)
    assert health["jobs"] == {"done": 1, "failed": 1, "cancelled": 0}
    assert health["resident"] == [SERVED.id]


def test_warnings_of_a_query_are_told() -> None:
    assert "colour" in str(served({"op": "capabilities", "colour": 1})["warnings"])


# Over budget.


@contextlib.contextmanager
def store() -> Iterator[tuple[str, dict[str, bytes]]]:
    """Keep what is PUT, as a bucket would; yields its address and what it has."""
    kept: dict[str, bytes] = {}

    class Store(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            kept[self.path.partition("?")[0]] = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Store) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", kept
        server.shutdown()
        thread.join()


def test_a_reply_over_budget_goes_to_the_bucket_if_there_is_one() -> None:
    with store() as (address, kept):
        worker = with_settings(
            MAX_REPLY_BYTES="100000",
            BUCKET_ENDPOINT_URL=address,
            BUCKET_ACCESS_KEY_ID="access-key",
            BUCKET_SECRET_ACCESS_KEY="secret-key",
            BUCKET_NAME="pictures",
        )
        wish = {"prompt": "big", "response_format": "base64", "output_format": "png"}
        reply = served(wish, worker)
    assert reply["adjusted"]["response_format"] == ["base64", "url"]
    assert reply["images"][0]["url"].startswith(address)
    (data,) = kept.values()
    assert data.startswith(b"\x89PNG")


def test_a_reply_over_budget_is_refused_when_the_caller_chose_the_format() -> None:
    worker = with_settings(MAX_REPLY_BYTES="100000")
    for name in ("png", "webp"):
        reply = served({"prompt": "big", "image_format": name}, worker)
        assert reply["error_code"] == "OUTPUT_TOO_LARGE"
    # no format is small enough
    assert served({"prompt": "big"}, worker)["error_code"] == "OUTPUT_TOO_LARGE"


def test_encoding_does_not_hold_up_the_event_loop() -> None:
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        while True:
            start = time.monotonic()
            await asyncio.sleep(0.001)
            longest = max(longest, time.monotonic() - start)

    async def both() -> Reply:
        watching = asyncio.create_task(watch())
        worker = with_settings()
        job = {"prompt": "big", "output_format": "webp", "output_quality": 100, "num_images": 2}
        start = time.monotonic()
        reply = await worker.handle({"id": "job-1", "input": job})
        watching.cancel()
        assert longest < (time.monotonic() - start) / 2
        return reply

    assert len(asyncio.run(both())["images"]) == 2


# The device's thread.


def test_a_job_waits_for_its_turn_and_leaves_it_when_cancelled() -> None:
    async def case() -> list[str]:
        device, done = DeviceThread(), list[str]()
        go = threading.Event()

        def slow() -> None:
            go.wait(5)
            done.append("slow")

        first = asyncio.create_task(device.run(slow, lambda: None))
        waiting = asyncio.create_task(device.run(lambda: done.append("never"), lambda: None))
        last = asyncio.create_task(device.run(lambda: done.append("last"), lambda: None))
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        go.set()
        await asyncio.gather(first, last)
        return done

    assert asyncio.run(case()) == ["slow", "last"]


def test_a_running_job_is_waited_for_however_often_it_is_cancelled() -> None:
    async def case() -> tuple[int, BaseException | None]:
        device, stops = DeviceThread(), []
        running, go = threading.Event(), threading.Event()

        def work() -> None:
            running.set()
            go.wait(5)
            raise Stopped

        task = asyncio.create_task(device.run(work, lambda: stops.append(1)))
        await asyncio.to_thread(running.wait, 5)
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0.01)
            assert not task.done()
        go.set()
        with pytest.raises(asyncio.CancelledError) as cancelled:
            await task
        return len(stops), cancelled.value.__cause__

    stops, cause = asyncio.run(case())
    assert stops == 3
    assert isinstance(cause, Stopped)


def test_a_failed_job_leaves_nothing_of_its_work_alive() -> None:
    """A tensor that a traceback still holds is memory that the next job does not have."""
    import weakref  # noqa: PLC0415

    class Tensor:
        pass

    async def case() -> bool:
        device, kept = DeviceThread(), []

        def work() -> None:
            tensor = Tensor()
            kept.append(weakref.ref(tensor))
            raise CudaOutOfMemory("no memory")

        with contextlib.suppress(CudaOutOfMemory):
            await device.run(work, lambda: None)
        await asyncio.sleep(0)
        return kept[0]() is None

    assert asyncio.run(case())


# Progress.


def posting(
    tell: Callable[[Progress], Coroutine[Any, Any, None]],
    *,
    takes_s: float = 0.0,
) -> list[tuple[float, int]]:
    """Return when each step's update was posted."""
    posted: list[tuple[float, int]] = []

    async def post(update: Any) -> None:
        await asyncio.sleep(takes_s)
        posted.append((time.monotonic(), update["step"]))

    async def case() -> None:
        async with Progress(post) as progress:
            await tell(progress)

    asyncio.run(case())
    return posted


def test_the_newest_update_is_posted_and_the_rest_left_out() -> None:
    async def tell(progress: Progress) -> None:
        for step in range(150):
            progress.tell({"step": step})
            await asyncio.sleep(0.01)

    posted = posting(tell)
    assert len(posted) == 2
    assert posted[1][0] - posted[0][0] >= 0.99
    assert posted[1][1] > 50


def test_an_update_under_way_is_waited_for_and_none_follows_it() -> None:
    async def tell(progress: Progress) -> None:
        progress.tell({"step": 1})
        await asyncio.sleep(0.01)
        progress.tell({"step": 2})

    start = time.monotonic()
    posted = posting(tell, takes_s=0.2)
    assert [step for _, step in posted] == [1]
    assert time.monotonic() - start < 0.9
