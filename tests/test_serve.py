"""One job from input to reply, without the SDK around it."""

import asyncio
import base64
import contextlib
import io
import json
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import structlog
from PIL import Image
from worlds import clock
from worlds.standin import SERVED, StandIn, StandIns

from worker.errors import CudaOutOfMemory
from worker.families import Control, Drawn, Generation
from worker.jobs.device_thread import DeviceThread, Stopped
from worker.jobs.progress import EVERY_S, POST_S, Progress
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


def test_an_unknown_key_of_a_jobs_bucket_warns_in_the_reply() -> None:
    bucket = {"endpointUrl": "https://s.test/b", "accessId": "a", "accessSecret": "b", "acl": "x"}
    given = {"prompt": "a fox", "promt": "", "response_format": "base64"}
    reply = served(given, s3Config=bucket)
    assert "error" not in reply
    assert [warning.partition(":")[0] for warning in reply["warnings"]] == ["promt", "s3Config.acl"]
    strict = served({"prompt": "a fox"}, with_settings(STRICT_INPUT="1"), s3Config=bucket)
    assert (strict["error_code"], strict["details"][0]["field"]) == (
        "INVALID_INPUT",
        "s3Config.acl",
    )


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


def remembering(model: StandIn, **environ: str) -> Worker:
    models = StandIns()
    models._model = model
    return Worker(read(environ), models)


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


class Endless(StandIn):
    """A model that draws the prompt "endless" until it is stopped, and tells that it has begun."""

    def __init__(self) -> None:
        self.begun = threading.Event()

    def generate(self, generation: Generation, control: Control) -> Drawn:
        """Report for ever, or draw."""
        while generation.prompt == "endless":
            self.begun.set()
            control.report("denoise", 1, 2)
        return super().generate(generation, control)


def test_health_counts_a_job_that_was_cancelled_drawing_or_waiting() -> None:
    async def case() -> Reply:
        model = Endless()
        worker = remembering(model)
        jobs = [
            asyncio.create_task(worker.handle({"id": f"job-{n}", "input": {"prompt": "endless"}}))
            for n in range(2)
        ]
        assert await asyncio.to_thread(model.begun.wait, 30)
        for task in reversed(jobs):
            task.cancel()
        ends = await asyncio.gather(*jobs, return_exceptions=True)
        assert [type(end) for end in ends] == [asyncio.CancelledError] * 2
        await worker.handle({"id": "job-3", "input": {"prompt": "nan"}})
        await worker.handle({"id": "job-4", "input": {"prompt": "a fox"}})
        return await worker.handle({"id": "job-5", "input": {"op": "health"}})

    assert asyncio.run(case())["jobs"] == {"done": 1, "failed": 1, "cancelled": 2}


def test_a_job_that_fails_is_told_what_it_was_warned_of() -> None:
    reply = served({"promt": "a cat"})
    assert reply["error"].endswith("; promt: is not a known field; did you mean prompt?")
    assert reply["warnings"] == ["promt: is not a known field; did you mean prompt?"]
    assert reply["details"] == [{"field": "prompt", "message": "is required"}]


@pytest.mark.parametrize(
    ("job_input", "code"),
    [
        ({"prompt": "a fox", "images": ["https://10.0.0.1/x.png"]}, "IMAGE_FETCH_REFUSED"),
        ({"prompt": "a fox", "upload_url": "https://10.0.0.1/x"}, "IMAGE_FETCH_REFUSED"),
        ({"prompt": "a fox", "images": [base64.b64encode(bytes(99)).decode()]}, "IMAGE_UNREADABLE"),
        ({"prompt": "nan"}, "BAD_PICTURE"),
        ({"prompt": "oom"}, "CUDA_OUT_OF_MEMORY"),
        ({"prompt": "lost"}, "DEVICE_LOST"),
        ({"prompt": "bug"}, "INTERNAL"),
        ({"prompt": "big", "output_format": "png"}, "OUTPUT_TOO_LARGE"),
        ({"prompt": "slow-text pause=0.01"}, "DEADLINE_EXCEEDED"),
    ],
)
def test_warnings_travel_with_a_job_that_fails_later(job_input: Reply, code: str) -> None:
    worker = with_settings(
        MAX_REPLY_BYTES="100000", JOB_DEADLINE_S="0.2" if "pause" in job_input["prompt"] else "0"
    )
    reply = served({**job_input, "widht": 5, "lightnig": 1}, worker)
    assert reply["error_code"] == code
    assert reply["warnings"] == [
        "widht: is not a known field; did you mean width?",
        "lightnig: is not a known field; did you mean lightning?",
    ]


class Cutting(StandIn):
    """A model that warns of its own."""

    def generate(self, generation: Generation, control: Control) -> Drawn:
        """Draw, with a warning."""
        return replace(super().generate(generation, control), warnings=("the prompt was cut",))


def test_every_warning_is_told_once_whether_the_job_fails_or_not() -> None:
    """The request's, the size's, and the model's for each picture."""
    picture = io.BytesIO()
    Image.new("RGB", (70, 70), "red").save(picture, "PNG")
    wish = {
        "prompt": "big",
        "n": 2,
        "widht": 5,
        "size": "input",
        "image": base64.b64encode(picture.getvalue()).decode(),
        "output_format": "png",
    }
    told = [
        "widht: is not a known field; did you mean width?",
        "size: drawn at 64x64 and resampled to the input's 70x70",
        "the prompt was cut",
    ]
    assert served(wish, remembering(Cutting()))["warnings"] == told
    failed = served(wish, remembering(Cutting(), MAX_REPLY_BYTES="1024"))
    assert failed["error_code"] == "OUTPUT_TOO_LARGE"
    assert failed["warnings"] == told


def test_what_a_caller_wrote_is_in_no_log_when_the_job_fails() -> None:
    for wish in ({"xyzzy": 1}, {"prompt": "a fox", "task": "speech", "xyzzy": 1}):
        with structlog.testing.capture_logs() as lines:
            assert "xyzzy" in served(wish)["error"]
        assert "xyzzy" not in str(lines)


def test_warnings_of_a_query_are_told() -> None:
    assert "colour" in str(served({"op": "capabilities", "colour": 1})["warnings"])


def test_callers_are_told_how_far_a_job_is() -> None:
    heard: list[tuple[str, Any]] = []

    async def announce(job_id: str, update: Any) -> None:
        heard.append((job_id, update))

    served({"prompt": "slow-text pause=0.001"}, Worker(read({}), StandIns(), announce))
    job_id, update = heard[0]
    assert job_id == "job-1"
    assert update == {"step": 0, "steps": 4, "phase": "text", "percent": 0}


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
            go.wait(60)
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
            go.wait(60)
            raise Stopped

        task = asyncio.create_task(device.run(work, lambda: stops.append(1)))
        await asyncio.to_thread(running.wait, 60)
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
    """Return when each step's update was posted, in seconds that nothing but sleeping takes."""
    posted: list[tuple[float, int]] = []

    async def post(update: Any) -> None:
        await asyncio.sleep(takes_s)
        posted.append((asyncio.get_running_loop().time(), update["step"]))

    async def case() -> None:
        async with Progress(post) as progress:
            await tell(progress)

    clock.run(case())
    return posted


def test_the_newest_update_is_posted_and_the_rest_left_out() -> None:
    async def tell(progress: Progress) -> None:
        for step in range(150):
            progress.tell({"step": step})
            await asyncio.sleep(0.01)

    first, second = posting(tell)
    assert first == (0.0, 0)
    assert second[0] == pytest.approx(EVERY_S)
    assert second[1] == pytest.approx(EVERY_S / 0.01, abs=1)


def test_an_update_under_way_is_waited_for_and_none_follows_it() -> None:
    async def tell(progress: Progress) -> None:
        progress.tell({"step": 1})
        await asyncio.sleep(0.01)
        progress.tell({"step": 2})

    ((at, step),) = posting(tell, takes_s=0.2)
    assert at == pytest.approx(0.2)
    assert step == 1


def test_an_update_that_the_platform_does_not_take_is_given_up_for_the_next() -> None:
    async def tell(progress: Progress) -> None:
        progress.tell({"step": 1})
        await asyncio.sleep(POST_S / 2)
        progress.tell({"step": 2})
        await asyncio.sleep(POST_S)

    posted: list[tuple[float, int]] = []

    async def post(update: Any) -> None:
        if update["step"] == 1:
            await asyncio.Event().wait()
        posted.append((asyncio.get_running_loop().time(), update["step"]))

    async def case() -> None:
        async with Progress(post) as progress:
            await tell(progress)

    clock.run(case())
    ((at, step),) = posted
    assert at == pytest.approx(POST_S)
    assert step == 2
