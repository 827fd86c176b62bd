"""One job from input to reply, without the SDK around it."""

import asyncio
import base64
import contextlib
import gc
import io
import json
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextvars import Context
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any, TypeVarTuple

import pytest
import structlog
from PIL import Image

from worker.doors.runpod.wire import Announce
from worker.edge.reply import Failure, read_worker_version
from worker.errors import CudaOutOfMemory, DeviceLost, InvalidInput
from worker.jobs import progress
from worker.jobs.control import Stopped
from worker.jobs.job import Job, ReadyPiece
from worker.jobs.progress import EVERY_S, POST_S, Progress
from worker.jobs.serve import Worker, _choose_streaming
from worker.jobs.thread import DeviceThread
from worker.media.s3 import CallersBucket
from worker.seam import Control, Made, Phase
from worker.settings import read
from worker.tasks.picture import PictureWish
from worker.tasks.speech import SpeechWish
from worlds import clock
from worlds.published import offering
from worlds.standin import SERVED, StandIn, StandIns, answered
from worlds.tone import Forks

Reply = dict[str, Any]
Ts = TypeVarTuple("Ts")


def served(
    job_input: Any,
    worker: Worker | None = None,
    announce: Announce | None = None,
    **top: Any,
) -> Reply:
    """Return the reply to one job; it must be strict JSON, or the SDK would lose it."""
    worker = worker or Worker(read({}), StandIns())
    reply = asyncio.run(answered(worker, {"id": "job-1", "input": job_input, **top}, announce))
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


def test_a_job_waits_where_its_door_says_once_its_input_is_right() -> None:
    """What is wrong is answered at once, and what is right fetches nothing before its turn."""
    waited: list[str] = []

    async def case() -> None:
        worker = Worker(read({}), StandIns())
        reached, turn = asyncio.Event(), asyncio.Event()

        async def wait() -> None:
            waited.append("waits")
            reached.set()
            await turn.wait()

        async def note() -> None:
            waited.append("waits")

        wrong = Job("a", {"prompt": "x", "width": 3}, 1_000_000, wait=note)
        asked = Job("b", {"op": "health"}, 1_000_000, wait=note)
        nowhere = CallersBucket(InvalidInput("no key"), "s3Config.endpointUrl")
        lost = Job("d", {"prompt": "x"}, 1_000_000, wait=note, bucket=nowhere)
        private = {"prompt": "x", "upload_url": "https://127.0.0.1/x"}
        refused = Job("e", private, 1_000_000, wait=note)
        answers = [await worker.handle(job) for job in (wrong, lost, refused, asked)]
        assert [isinstance(answer, Failure) for answer in answers] == [True, True, True, False]
        assert waited == []
        right = asyncio.create_task(worker.handle(Job("c", {"prompt": "x"}, 1_000_000, wait=wait)))
        await reached.wait()
        assert not right.done()
        turn.set()
        answer = await right
        assert not isinstance(answer, Failure)
        assert len(answer["images"]) == 1

    asyncio.run(case())


def test_png_metadata_can_be_switched_off() -> None:
    reply = served({"prompt": "a fox"}, with_settings(PNG_METADATA="false"))
    picture = Image.open(io.BytesIO(base64.b64decode(reply["images"][0]["base64"])))
    assert picture.info == {}


def test_old_callers_find_the_first_picture_at_the_top() -> None:
    reply = served({"prompt": "a fox"}, with_settings(RESPONSE_COMPAT="output_image_base64"))
    assert base64.b64decode(reply["output_image_base64"]).startswith(b"\x89PNG")
    assert "base64" not in reply["images"][0]


def test_old_callers_of_speech_find_nothing_new_in_a_reply_of_pictures() -> None:
    plain, asked = served({"prompt": "x"}), {"prompt": "x"}
    assert set(served(asked, with_settings(RESPONSE_COMPAT="audio_base64"))) == set(plain)


def test_old_callers_of_speech_find_the_sound_at_the_top() -> None:
    """And what is the only one has no index."""
    asked = {"task": "speech", "text": "hello", "voice": "fork", "seed": 5}
    plain = served(asked, Worker(read({}), Forks()))
    assert "index" not in plain["audio"]
    old = served(asked, Worker(read({"RESPONSE_COMPAT": "audio_base64"}), Forks()))
    assert old["audio_base64"] == plain["audio"]["base64"]
    pictures = served(asked, Worker(read({"RESPONSE_COMPAT": "output_image_base64"}), Forks()))
    assert set(pictures) == set(plain)


def test_a_wish_is_the_same_where_its_door_cannot_stream_but_for_that() -> None:
    wish = SpeechWish("hello", "speech", "tara", 1, 0.6, 0.8, 1.1, 100, ("hello",), streams=True)
    request: Any = SimpleNamespace(asked=SimpleNamespace(streams=True))
    job = Job("a", {}, 1_000_000)
    assert _choose_streaming(job, request, wish) == replace(wish, streams=False)
    assert job.warnings == ["stream: has no effect at this door, where the reply comes complete"]


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


def test_a_caller_without_a_bucket_hears_of_one_only_where_the_door_takes_it() -> None:
    asked = {"prompt": "a fox", "response_format": "url"}
    assert "the job's s3Config" in served(asked)["error"]
    answer = asyncio.run(with_settings().handle(Job("a", asked, 1_000_000)))
    assert isinstance(answer, Failure)
    assert "the job's" not in answer.message


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
        "images[1]: the file's last bytes are missing, but all its pixels are there",
        "images[1]: its colour profile cannot be read or does not match: treated as sRGB",
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
        (begun,) = (line for line in lines if line["event"] == "job started")
        assert begun.get("prompt") == ("xyzzy" if logged else None)


class Forgetful(StandIn):
    """A model that runs out of memory on chosen jobs."""

    def __init__(self, *failing: int) -> None:
        self._failing = failing
        self._jobs = 0

    def draw(self, wish: PictureWish, control: Control) -> Made:
        """Fail, or draw."""
        self._jobs += 1
        if self._jobs in self._failing:
            raise CudaOutOfMemory("no memory")
        return super().draw(wish, control)


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
    assert worker.report_health()["status"] == ("failing" if fatal else "ready")


def test_a_job_that_is_invalid_does_not_count_between_two_out_of_memory() -> None:
    worker = remembering(Forgetful(1, 2))
    for prompt in ("a fox", "", "a fox"):
        served({"prompt": prompt}, worker)
    assert worker.fatal is not None


def test_a_worker_that_cannot_go_on_says_so_to_the_next_job() -> None:
    worker = with_settings()
    assert served({"prompt": "lost"}, worker)["error_code"] == "DEVICE_LOST"
    answer = served({"prompt": "a fox"}, worker)
    assert answer["error_code"] == "WORKER_NOT_READY"
    assert answer["retryable"] is True
    assert "DEVICE_LOST" in answer["error"]


def test_health_counts_the_jobs() -> None:
    worker = with_settings()
    served({"prompt": "a fox"}, worker)
    served({"prompt": "nan"}, worker)
    health = served({"op": "health"}, worker)
    assert health["jobs"] == {"done": 1, "failed": 1, "cancelled": 0}
    assert health["resident"] == [SERVED.id]


class Endless(StandIn):
    """A model that works on "endless" until it is stopped, and signals that it has begun."""

    def __init__(self) -> None:
        self.begun = threading.Event()

    def draw(self, wish: PictureWish, control: Control) -> Made:
        """Report without end, or draw."""
        while wish.prompt == "endless":
            self.begun.set()
            control.report("denoise", 1, 2)
        return super().draw(wish, control)


def test_health_counts_a_job_that_was_cancelled_drawing_or_waiting() -> None:
    async def case() -> Reply:
        model = Endless()
        worker = remembering(model)
        jobs = [
            asyncio.create_task(
                answered(worker, {"id": f"job-{n}", "input": {"prompt": "endless"}})
            )
            for n in range(2)
        ]
        assert await asyncio.to_thread(model.begun.wait, 30)
        for task in reversed(jobs):
            task.cancel()
        ends = await asyncio.gather(*jobs, return_exceptions=True)
        assert [type(end) for end in ends] == [asyncio.CancelledError] * 2
        await answered(worker, {"id": "job-3", "input": {"prompt": "nan"}})
        await answered(worker, {"id": "job-4", "input": {"prompt": "a fox"}})
        return await answered(worker, {"id": "job-5", "input": {"op": "health"}})

    assert asyncio.run(case())["jobs"] == {"done": 1, "failed": 1, "cancelled": 2}


def test_a_job_that_fails_reports_what_it_was_warned_of() -> None:
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
    """A model with warnings of its own."""

    def draw(self, wish: PictureWish, control: Control) -> Made:
        """Draw, with a warning."""
        return replace(super().draw(wish, control), warnings=("the prompt was cut",))


def test_every_warning_is_reported_once_whether_the_job_fails_or_not() -> None:
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
    answer = [
        "widht: is not a known field; did you mean width?",
        "size: generated at 64x64 and resampled to the input's 70x70",
        "the prompt was cut",
    ]
    assert served(wish, remembering(Cutting()))["warnings"] == answer
    failed = served(wish, remembering(Cutting(), MAX_REPLY_BYTES="1024"))
    assert failed["error_code"] == "OUTPUT_TOO_LARGE"
    assert failed["warnings"] == answer


def test_what_a_caller_wrote_is_in_no_log_when_the_job_fails() -> None:
    for wish in ({"xyzzy": 1}, {"prompt": "a fox", "task": "speech", "xyzzy": 1}):
        with structlog.testing.capture_logs() as lines:
            assert "xyzzy" in served(wish)["error"]
        assert "xyzzy" not in str(lines)


def test_warnings_of_a_query_are_reported() -> None:
    assert "colour" in str(served({"op": "capabilities", "colour": 1})["warnings"])


def test_callers_see_how_far_a_job_is() -> None:
    heard: list[tuple[str, Any]] = []

    async def announce(job_id: str, update: Any) -> None:
        heard.append((job_id, update))

    served({"prompt": "slow-text pause=0.001"}, announce=announce)
    job_id, update = heard[0]
    assert job_id == "job-1"
    assert update == {"step": 0, "steps": 4, "phase": "text", "percent": 0}


def test_without_a_listener_nothing_is_lost() -> None:
    with structlog.testing.capture_logs() as lines:
        served({"prompt": "slow-text pause=0.001"})
    assert "progress lost" not in [line["event"] for line in lines]


# Over budget.


@contextlib.contextmanager
def store() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """Keep what is PUT, as a bucket would; yields its address, and the path and body of each."""
    kept: list[tuple[str, bytes]] = []

    class Store(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            kept.append((self.path.partition("?")[0], body))
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


def with_bucket(address: str, **more: str) -> Worker:
    return with_settings(
        BUCKET_ENDPOINT_URL=address,
        BUCKET_ACCESS_KEY_ID="access-key",
        BUCKET_SECRET_ACCESS_KEY="secret-key",
        BUCKET_NAME="pictures",
        **more,
    )


def test_a_reply_over_budget_goes_to_the_bucket_if_there_is_one() -> None:
    with store() as (address, kept):
        worker = with_bucket(address, MAX_REPLY_BYTES="100000")
        wish = {"prompt": "big", "response_format": "base64", "output_format": "png"}
        reply = served(wish, worker)
    assert reply["adjusted"]["response_format"] == ["base64", "url"]
    assert reply["images"][0]["url"].startswith(address)
    ((_, data),) = kept
    assert data.startswith(b"\x89PNG")


def test_a_reply_over_budget_is_refused_when_the_caller_chose_the_format() -> None:
    worker = with_settings(MAX_REPLY_BYTES="100000")
    for name in ("png", "webp"):
        reply = served({"prompt": "big", "image_format": name}, worker)
        assert reply["error_code"] == "OUTPUT_TOO_LARGE"
    # no format is small enough
    assert served({"prompt": "big"}, worker)["error_code"] == "OUTPUT_TOO_LARGE"


def test_a_format_that_the_caller_chose_is_kept_even_where_another_would_fit() -> None:
    wish = {"prompt": "x", "seed": 1, "width": 256, "height": 256}
    small = len(json.dumps(served({**wish, "output_format": "jpeg"})))
    worker = with_settings(MAX_REPLY_BYTES=str(small + 500))
    assert served(wish, worker)["adjusted"]["output_format"][0] == "png"
    refused = served({**wish, "output_format": "png"}, worker)
    assert refused["error_code"] == "OUTPUT_TOO_LARGE"


def test_a_reply_of_links_over_budget_is_refused_once_what_it_links_to_is_stored() -> None:
    """There is no other way to try: nothing is stored twice."""
    with store() as (address, kept):
        worker = with_bucket(address, MAX_REPLY_BYTES="1024")
        reply = served({"prompt": "x", "n": 4, "response_format": "url"}, worker)
    assert reply["error_code"] == "OUTPUT_TOO_LARGE"
    assert len(kept) == 4


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
        reply = await answered(worker, {"id": "job-1", "input": job})
        watching.cancel()
        assert longest < (time.monotonic() - start) / 2
        return reply

    assert len(asyncio.run(both())["images"]) == 2


# The lane to the device.


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


class Lingering(asyncio.SelectorEventLoop):
    """A loop whose other threads linger once they have told it that their work is done."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = threading.Event()

    def call_soon_threadsafe(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """Linger in any other thread."""
        handle = super().call_soon_threadsafe(callback, *args, context=context)
        if threading.current_thread() is not threading.main_thread():
            self.go_on.wait(60)
        return handle


def test_all_work_is_done_by_one_thread_however_quickly_it_follows() -> None:
    """What libraries keep for each thread is there for every job."""

    async def case() -> set[int]:
        loop, device, go = asyncio.get_running_loop(), DeviceThread(), threading.Event()
        assert isinstance(loop, Lingering)

        def work() -> int:
            go.wait(60)
            return threading.get_ident()

        first = asyncio.create_task(device.run(work, lambda: None))
        await asyncio.sleep(0)  # it has been handed to the pool
        go.set()
        found = await first
        second = asyncio.create_task(device.run(work, lambda: None))
        await asyncio.sleep(0)
        loop.go_on.set()
        return {found, await second}

    with asyncio.Runner(loop_factory=Lingering) as runner:
        assert len(runner.run(case())) == 1


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
        # asked where the next job's work is: the thread lets go only after it has told the loop
        return await device.run(lambda: kept[0]() is None, lambda: None)

    assert asyncio.run(case())


# Progress.


def posting(
    send: Callable[[Progress], Coroutine[Any, Any, None]],
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
            await send(progress)

    clock.run(case())
    return posted


def test_the_newest_update_is_posted_and_the_rest_left_out() -> None:
    async def send(progress: Progress) -> None:
        for step in range(150):
            progress.publish({"step": step})
            await asyncio.sleep(0.01)

    first, second = posting(send)
    assert first == (0.0, 0)
    assert second[0] == pytest.approx(EVERY_S)
    assert second[1] == pytest.approx(EVERY_S / 0.01, abs=1)


def test_an_update_under_way_is_waited_for_and_none_follows_it() -> None:
    async def send(progress: Progress) -> None:
        progress.publish({"step": 1})
        await asyncio.sleep(0.01)
        progress.publish({"step": 2})

    ((at, step),) = posting(send, takes_s=0.2)
    assert at == pytest.approx(0.2)
    assert step == 1


def test_an_update_right_before_the_end_is_left_out() -> None:
    """Its job's result is due, and would come after it."""

    async def send(progress: Progress) -> None:
        await asyncio.sleep(0.01)
        progress.publish({"step": 1})

    assert posting(send) == []


def test_an_update_that_the_platform_does_not_take_is_given_up_for_the_next() -> None:
    async def send(progress: Progress) -> None:
        progress.publish({"step": 1})
        await asyncio.sleep(POST_S / 2)
        progress.publish({"step": 2})
        await asyncio.sleep(POST_S)

    posted: list[tuple[float, int]] = []

    async def post(update: Any) -> None:
        if update["step"] == 1:
            await asyncio.Event().wait()
        posted.append((asyncio.get_running_loop().time(), update["step"]))

    async def case() -> None:
        async with Progress(post) as progress:
            await send(progress)

    clock.run(case())
    ((at, step),) = posted
    assert at == pytest.approx(POST_S)
    assert step == 2


def test_updates_are_a_second_apart_and_may_take_five() -> None:
    """Counted from the start of each; one that takes longer than a second makes no pause more."""

    async def send(progress: Progress) -> None:
        for step in range(60):
            progress.publish({"step": step})
            await asyncio.sleep(0.1)

    assert [at for at, _ in posting(send)] == pytest.approx([0, 1, 2, 3, 4, 5], abs=0.11)
    slow = [at for at, _ in posting(send, takes_s=0.5)]
    assert slow == pytest.approx([0.5, 1.5, 2.5, 3.5, 4.5, 5.5], abs=0.11)
    slower = [at for at, _ in posting(send, takes_s=2.5)]
    assert slower[:2] == pytest.approx([2.5, 5.0], abs=0.11)
    assert posting(send, takes_s=4.9)
    assert posting(send, takes_s=5.1) == []


def test_an_update_that_fails_is_left_out_and_the_next_is_posted() -> None:
    posted: list[int] = []

    async def post(update: Any) -> None:
        if update["step"] == 1:
            raise OSError("no way to the platform")
        posted.append(update["step"])

    async def case() -> None:
        async with Progress(post) as progress:
            for step in (1, 2):
                progress.publish({"step": step})
                await asyncio.sleep(1.5)

    with structlog.testing.capture_logs() as lines:
        clock.run(case())
    assert posted == [2]
    assert [(line["event"], line["reason"]) for line in lines] == [("progress lost", "OSError")]


def test_a_cancelled_job_waits_for_no_update() -> None:
    async def post(_: Any) -> None:
        await asyncio.Event().wait()

    async def job() -> None:
        async with Progress(post) as progress:
            progress.publish({"step": 1})
            await asyncio.Event().wait()

    ended: list[float] = []

    async def case() -> None:
        task = asyncio.create_task(job())
        await asyncio.sleep(0.1)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        ended.append(asyncio.get_running_loop().time())

    clock.run(case())
    assert ended == pytest.approx([0.1])


def test_a_job_that_fails_waits_for_its_update_as_one_that_ends_well() -> None:
    posted: list[int] = []

    async def post(update: Any) -> None:
        await asyncio.sleep(0.5)
        posted.append(update["step"])

    async def case() -> None:
        with contextlib.suppress(KeyError):
            async with Progress(post) as progress:
                progress.publish({"step": 1})
                await asyncio.sleep(0.1)
                raise KeyError

    clock.run(case())
    assert posted == [1]


def test_a_job_without_an_update_leaves_no_error_behind(caplog: pytest.LogCaptureFixture) -> None:
    """As a separate task would that failed: asyncio logs that once it is collected."""

    async def post(_: Any) -> None:
        raise AssertionError("there is nothing to post")

    async def case() -> None:
        async with Progress(post):
            await asyncio.sleep(0.1)
        gc.collect()

    clock.run(case())
    gc.collect()
    assert caplog.records == []


def test_no_listener_is_no_fault() -> None:
    async def case() -> None:
        async with Progress(None) as progress:
            progress.publish({"step": 1})

    asyncio.run(case())


# One job.


def test_the_time_of_a_job_and_its_phases_is_in_milliseconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ticks = iter([10.0, 12.5, 13.0, 14.0])
    monkeypatch.setattr(
        "worker.jobs.job.time", SimpleNamespace(monotonic=lambda: next(ticks, 14.0))
    )
    job = Job("job-1", {}, 1000, start=8.0)
    with job.measure_phase("fetch"):
        pass
    with contextlib.suppress(KeyError), job.measure_phase("encode"):
        raise KeyError
    assert job.timings == {"fetch": 2500.0, "encode": 1000.0}
    assert job.measure_elapsed_ms() == 6000.0


class Recording(StandIn):
    """A model that keeps its wishes, and reports what each picture took."""

    def __init__(self) -> None:
        self.wishes: list[PictureWish] = []

    def draw(self, wish: PictureWish, control: Control) -> Made:
        """Draw, and remember."""
        self.wishes.append(wish)
        count = len(self.wishes)
        return replace(
            super().draw(wish, control),
            timings_ms={"text": 0.5, "denoise": 10.0 * count},
            peak_vram_mb=(7, 9, 8)[count - 1],
        )


def test_the_model_gets_all_that_was_asked_and_the_reply_all_that_it_took() -> None:
    model, picture = Recording(), io.BytesIO()
    Image.new("RGB", (200, 100), "red").save(picture, "PNG")
    worker = remembering(model)
    reply = served(
        {
            "prompt": "a fox",
            "negative": "dark",
            "image": base64.b64encode(picture.getvalue()).decode(),
            "seed": 40,
            "n": 3,
            "steps": 7,
            "cfg": 2.5,
            "width": 140,
            "height": 96,
        },
        worker,
    )
    for index, wish in enumerate(model.wishes):
        (reference,) = wish.references
        assert reference.size == (200, 100)
        assert replace(wish, references=()) == PictureWish(
            task="edit",
            prompt="a fox",
            negative_prompt="dark",
            references=(),
            width=128,
            height=96,
            steps=7,
            true_cfg_scale=2.5,
            lightning=False,
            seed=40 + index,
        )
    assert len(reply["images"]) == 3
    assert reply["adjusted"] == {"width": [140, 128]}
    assert reply["lightning_enabled"] is False
    assert reply["peak_vram_mb"] == 9
    assert (reply["timings_ms"]["text"], reply["timings_ms"]["denoise"]) == (2, 60)
    assert reply["timings_ms"]["total"] > 0


def test_the_phases_of_a_job_are_measured_by_their_names() -> None:
    job = Job("a", {"prompt": "x"}, 10**7)
    answer = asyncio.run(with_settings().handle(job))
    assert not isinstance(answer, Failure)
    assert set(job.timings) == {"fetch", "denoise", "encode", "deliver", "total"}


class Finding(StandIn):
    """A model that finds something else out with each picture, and warns of every second."""

    def draw(self, wish: PictureWish, control: Control) -> Made:
        """Draw, and find."""
        warnings = ("odd",) if wish.seed % 2 else ()
        found = {"start_noise": wish.seed / 10}
        return replace(super().draw(wish, control), found=found, warnings=warnings)


def test_a_reply_has_what_was_found_with_the_first_picture_and_the_warnings_of_all() -> None:
    reply = served({"prompt": "x", "n": 3, "seed": 2}, remembering(Finding()))
    assert reply["start_noise"] == 0.2
    assert reply["warnings"] == ["odd"]


class Ahead(StandIn):
    """A model that reads ahead, and remembers what it then makes."""

    def __init__(self) -> None:
        self.wishes: list[PictureWish] = []

    def read_ahead(self, wish: PictureWish) -> PictureWish:
        """Read."""
        return replace(wish, ahead="read")

    def draw(self, wish: PictureWish, control: Control) -> Made:
        """Draw, and remember."""
        self.wishes.append(wish)
        return super().draw(wish, control)


def test_an_open_model_reads_ahead_for_each_job() -> None:
    model = Ahead()
    served({"prompt": "x", "n": 2}, remembering(model))
    assert [wish.ahead for wish in model.wishes] == ["read", "read"]


@pytest.mark.parametrize(("previews", "has_sink"), [(2, False), (None, True), (0, True)])
def test_no_picture_on_the_way_is_made_that_nobody_gets(
    previews: int | None, *, has_sink: bool
) -> None:
    """Unless a job's door asks for some, it gets none."""
    model, parts = Ahead(), list[Any]()

    async def keep(_number: int, part: Any) -> None:
        parts.append(part)

    more: dict[str, Any] = {} if previews is None else {"previews": previews}
    job = Job("a", {"prompt": "x"}, 10**7, sink=keep if has_sink else None, **more)
    asyncio.run(remembering(model).handle(job))
    assert [wish.previews for wish in model.wishes] == [0]
    assert parts == []


def test_a_job_begins_at_once() -> None:
    """Counted in a time that nothing but sleeping takes."""

    async def case() -> float:
        answer = await with_settings().handle(Job("a", {"op": "health"}, 10**7))
        assert not isinstance(answer, Failure)
        return asyncio.get_running_loop().time()

    assert clock.run(case()) == 0.0


def test_a_png_holds_what_makes_it_again() -> None:
    wish = {"prompt": "a fox", "negative": "dark", "cfg": 2, "seed": 5, "steps": 3}
    (image,) = served(wish)["images"]
    facts = {
        "prompt": "a fox",
        "negative_prompt": "dark",
        "seed": "5",
        "steps": "3",
        "true_cfg_scale": "2.0",
        "lightning": "false",
        "task": "text-to-image",
        "model": "standin",
        "revision": "local",
        "precision": "bf16",
        "software": f"worker {read_worker_version()}",
    }
    found = Image.open(io.BytesIO(base64.b64decode(image["base64"]))).info
    assert found.pop("parameters").startswith("a fox\nNegative prompt: dark\nSteps: 3, ")
    assert found == facts
    (image,) = served({"prompt": "a fox"})["images"]
    metadata = Image.open(io.BytesIO(base64.b64decode(image["base64"]))).info
    assert set(metadata) - {"parameters"} == set(facts) - {"negative_prompt"}
    assert image["mime_type"] == "image/png"


def test_a_fast_picture_says_so_in_its_png() -> None:
    models = StandIns()
    models.served = (offering(SERVED, lightning_steps=(4,)),)
    reply = served({"prompt": "a fox"}, Worker(read({}), models))
    assert reply["lightning_enabled"] is True
    (image,) = reply["images"]
    metadata = Image.open(io.BytesIO(base64.b64decode(image["base64"]))).info
    assert (metadata["lightning"], metadata["steps"]) == ("true", "4")


def test_quality_is_what_was_asked() -> None:
    def size(quality: int) -> int:
        wish = {"prompt": "x", "seed": 1, "output_format": "jpeg", "quality": quality}
        return len(served(wish)["images"][0]["base64"])

    assert size(10) < size(60) < size(100)


def test_a_reply_over_budget_is_made_smaller_by_the_first_format_that_fits() -> None:
    base = {"prompt": "x", "seed": 1, "width": 256, "height": 256}
    size = {
        name: len(json.dumps(served({**base, "output_format": name})))
        for name in ("png", "webp", "jpeg")
    }
    for budget in (size["webp"] + 500, size["jpeg"] + 500):
        fits = next(name for name in ("png", "webp", "jpeg") if size[name] <= budget)
        assert fits != "png"
        reply = served(base, with_settings(MAX_REPLY_BYTES=str(budget)))
        assert reply["adjusted"] == {"output_format": ["png", fits]}
        assert reply["images"][0]["mime_type"] == f"image/{fits}"


def test_a_picture_of_its_inputs_size_is_delivered_at_that_size() -> None:
    given = io.BytesIO()
    Image.new("RGB", (70, 75), "red").save(given, "PNG")
    text = base64.b64encode(given.getvalue()).decode()
    (image,) = served({"prompt": "x", "image": text, "size": "input"})["images"]
    assert (image["width"], image["height"]) == (70, 75)
    assert Image.open(io.BytesIO(base64.b64decode(image["base64"]))).size == (70, 75)


def test_a_done_job_is_logged_with_what_it_made() -> None:
    with structlog.testing.capture_logs() as lines:
        reply = served({"prompt": "a fox", "n": 2, "seed": 1, "width": 96, "steps": 5})
    entry = {line["event"]: line for line in lines}
    done, started = entry["job done"], entry["job started"]
    answer = json.dumps(reply, ensure_ascii=False).encode()
    pictures = [base64.b64decode(image["base64"]) for image in reply["images"]]
    assert done["reply_bytes"] == len(answer)
    assert done["picture_bytes"] == sum(map(len, pictures))
    assert (done["pictures"], done["width"], done["height"]) == (2, 96, 96)
    assert (started["steps"], started["pictures"], started["references"]) == (5, 2, 0)


# Faults, as the log and the caller see them.


def test_a_fault_is_logged_by_its_fields_alone_unless_prompts_may_be() -> None:
    for chosen, reason in (
        ("0", ["prompt", "width"]),
        ("1", "prompt: must be a string (got 5); width: must be at least 64 (got 3)"),
    ):
        with structlog.testing.capture_logs() as lines:
            served({"prompt": 5, "width": 3}, with_settings(LOG_PROMPTS=chosen))
        (line,) = (line for line in lines if line["event"] == "job failed")
        assert (line["error_code"], line["reason"]) == ("INVALID_INPUT", reason)
        assert line["log_level"] == "warning"
    with structlog.testing.capture_logs() as lines:
        served({"prompt": "nan"})
    (line,) = (line for line in lines if line["event"] == "job failed")
    assert line["reason"] == "the model's picture has values that are not numbers"


def test_a_bug_is_found_in_the_log_by_what_the_caller_gets() -> None:
    with structlog.testing.capture_logs() as lines:
        answer = served({"prompt": "bug"})["error"]
    (line,) = (line for line in lines if line["event"] == "bug")
    assert len(line["reference"]) == 12
    assert answer.endswith(f"its log has more under {line['reference']}")


class Late(StandIn):
    """A model in which something times out that is not the job."""

    def draw(self, wish: PictureWish, control: Control) -> Made:
        """Fail."""
        del wish, control
        raise TimeoutError


def test_a_timeout_of_something_else_is_no_deadline() -> None:
    reply = served({"prompt": "x"}, remembering(Late(), JOB_DEADLINE_S="600"))
    assert reply["error_code"] == "INTERNAL"


def test_a_deadline_is_reported_in_seconds() -> None:
    reply = served({"prompt": "slow-text pause=0.01"}, with_settings(JOB_DEADLINE_S="0.25"))
    assert reply["error"] == (
        "DEADLINE_EXCEEDED: the job took longer than 0.25 s, this worker's JOB_DEADLINE_S"
    )


class Named(StandIn):
    """A model that remembers for which job it draws."""

    def __init__(self) -> None:
        self.jobs: list[object] = []

    def draw(self, wish: PictureWish, control: Control) -> Made:
        """Draw, and remember."""
        self.jobs.append(structlog.contextvars.get_contextvars()["job_id"])
        return super().draw(wish, control)


def test_a_job_is_known_by_its_id_as_text_in_the_devices_thread_too() -> None:
    model = Named()
    asyncio.run(answered(remembering(model), {"id": 7, "input": {"prompt": "x"}}))
    assert model.jobs == ["7"]


def test_a_job_without_an_input_is_answered() -> None:
    reply = asyncio.run(answered(with_settings(), {"id": "job-1"}))
    assert reply["error_code"] == "INVALID_INPUT"


def test_a_job_that_was_cancelled_before_its_start_is_not_begun() -> None:
    async def case() -> Worker:
        worker = with_settings()

        async def run() -> None:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await answered(worker, {"id": "job-1", "input": {"op": "health"}})

        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.create_task(run())
        return worker

    assert asyncio.run(case()).report_health()["jobs"] == {"done": 0, "failed": 0, "cancelled": 1}


def test_health_reports_what_the_worker_is(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([5.0, 66.26])
    monkeypatch.setattr("worker.jobs.serve.time", SimpleNamespace(monotonic=lambda: next(ticks)))
    health = with_settings().report_health()
    assert health == {
        "status": "ready",
        "uptime_s": 61.3,
        "jobs": {"done": 0, "failed": 0, "cancelled": 0},
        "resident": [SERVED.id],
        "worker_version": read_worker_version(),
    }


def test_a_query_answers_what_was_asked() -> None:
    assert "status" in served({"op": "health"})
    answer = served({"op": "capabilities"})
    assert [model["id"] for model in answer["models"]] == [SERVED.id]
    assert answer["warnings"] == []
    assert "status" not in answer


def test_a_job_that_waits_behind_a_lost_device_is_refused_as_one_that_comes_later() -> None:
    async def case() -> list[Reply]:
        worker = with_settings()
        jobs = [{"id": f"job-{n}", "input": {"prompt": p}} for n, p in enumerate(("lost", "fox"))]
        return await asyncio.gather(*(answered(worker, job) for job in jobs))

    lost, waiting = asyncio.run(case())
    assert (lost["error_code"], waiting["error_code"]) == ("DEVICE_LOST", "WORKER_NOT_READY")
    assert "DEVICE_LOST" in waiting["error"]


class Dying(Endless):
    """A model whose device is lost when it is stopped."""

    def draw(self, wish: PictureWish, control: Control) -> Made:
        """Draw until stopped, then fail."""
        try:
            return super().draw(wish, control)
        except Stopped:
            raise DeviceLost("gone") from None


def test_a_device_lost_under_a_cancelled_job_is_noticed() -> None:
    async def case() -> Worker:
        model = Dying()
        worker = remembering(model)
        job = asyncio.create_task(answered(worker, {"id": "job-1", "input": {"prompt": "endless"}}))
        assert await asyncio.to_thread(model.begun.wait, 30)
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job
        return worker

    with structlog.testing.capture_logs() as lines:
        worker = asyncio.run(case())
    assert isinstance(worker.fatal, DeviceLost)
    (line,) = (line for line in lines if line["event"] == "fatal")
    assert (line["error_code"], line["log_level"]) == ("DEVICE_LOST", "error")


class Silent(Control):
    """Nothing hears what is reported."""

    def report(self, phase: Any, step: int, steps: int) -> None:
        """Say nothing."""


class Patient(StandIn):
    """A model that waits for each of its reports to be posted."""

    def __init__(self) -> None:
        self.posted = threading.Semaphore(0)

    def draw(self, wish: PictureWish, control: Control) -> Made:
        """Report two steps of two phases, each when the one before has arrived."""
        for phase in PHASES:
            for step in (1, 2):
                control.report(phase, step, 2)
                assert self.posted.acquire(timeout=30)
        return super().draw(replace(wish, prompt="x"), Silent())


PHASES: tuple[Phase, ...] = ("text", "denoise")


def test_updates_count_all_pictures_of_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "EVERY_S", 0.0)
    model, heard = Patient(), list[tuple[str, Mapping[str, Any]]]()
    models = StandIns()
    models._model = model

    async def announce(job_id: str, update: Mapping[str, Any]) -> None:
        heard.append((job_id, update))
        model.posted.release()

    served({"prompt": "x", "n": 2, "steps": 2}, Worker(read({}), models), announce)
    assert {job_id for job_id, _ in heard} == {"job-1"}
    assert [(u["phase"], u["step"], u["steps"], u["percent"]) for _, u in heard] == [
        ("text", 0, 4, 1),
        ("text", 0, 4, 2),
        ("denoise", 1, 4, 26),
        ("denoise", 2, 4, 48),
        ("text", 2, 4, 51),
        ("text", 2, 4, 52),
        ("denoise", 3, 4, 76),
        ("denoise", 4, 4, 98),
    ]


def test_a_picture_that_cannot_be_read_is_named_in_the_message_too() -> None:
    text = base64.b64encode(bytes(99)).decode()
    reply = served({"prompt": "x", "images": [text]})
    assert reply["error"].startswith("IMAGE_UNREADABLE: images[0]: ")
    assert reply["error"].endswith(f"images[0]: {reply['details'][0]['message']}")


def test_a_job_with_a_bucket_of_its_own_needs_no_other() -> None:
    with store() as (address, kept):
        bucket = {"endpointUrl": f"{address}/b", "accessId": "a-key-id", "accessSecret": "a-secret"}
        port = address.rpartition(":")[2]
        worker = with_settings(
            ALLOWED_IMAGE_NETWORKS=f"127.0.0.0/8:{port}",
            ALLOW_HTTP_IMAGES="1",
            MAX_REPLY_BYTES="100000",
        )
        reply = served({"prompt": "x", "response_format": "url"}, worker, s3Config=bucket)
        assert reply["images"][0]["url"].startswith(address)
        assert reply["adjusted"] == {}
        wish = {"prompt": "big", "response_format": "data_url"}
        moved = served(wish, worker, s3Config=bucket)
    assert moved["adjusted"] == {"response_format": ["data_url", "url"]}
    assert [path for path, _ in kept] == ["/b/job-1/0.png"] * 2


@pytest.mark.parametrize(
    ("previews", "has_sink", "form", "kinds"),
    [
        (2, True, "jpeg", ["image/jpeg"] * 4),
        (0, True, "png", []),
        (2, False, "png", []),
    ],
)
def test_pictures_on_the_way_go_to_a_sink_in_the_format_that_was_asked_for(
    previews: int, has_sink: bool, form: str, kinds: list[str]
) -> None:
    """Two of each of two pictures, each with its picture's seed; never without a sink."""
    parts: list[Any] = []

    async def keep(number: int, part: Any) -> None:
        assert number == len(parts)
        parts.append(part)

    job = Job(
        "a",
        {"prompt": "x", "seed": 4, "num_images": 2, "output_format": form},
        10**7,
        sink=keep if has_sink else None,
        previews=previews,
    )
    worker = Worker(read({}), StandIns())
    reply = asyncio.run(worker.handle(job))
    assert not isinstance(reply, Failure)
    assert [part.mime_type for part in parts] == kinds
    assert [part.facts["seed"] for part in parts] == [4, 4, 5, 5][: len(kinds)]


@pytest.mark.parametrize(("form", "seeds"), [("base64", [4, 5]), ("data_url", [])])
def test_pictures_are_shown_as_they_are_ready_where_the_reply_has_them_as_base64(
    form: str, seeds: list[int]
) -> None:
    shown: list[ReadyPiece] = []
    asked = {"prompt": "x", "seed": 4, "num_images": 2, "response_format": form}
    reply = asyncio.run(
        Worker(read({}), StandIns()).handle(Job("a", asked, 10**7, show=shown.append))
    )
    assert not isinstance(reply, Failure)
    assert sorted(piece.seed for piece in shown) == seeds


def test_who_asks_for_another_task_hears_which_models_could_be_added() -> None:
    class Addable(StandIns):
        def list_addable(self, task: str) -> tuple[str, ...]:
            return (f"a model of {task}",)

    reply = served({"text": "hello", "task": "speech"}, Worker(read({}), Addable()))
    assert reply["error_code"] == "UNSUPPORTED_TASK"
    assert "a model of speech" in reply["error"]


def test_a_batch_waits_for_the_next_job_as_long_as_the_settings_say() -> None:
    worker = with_settings(BATCH_SIZE="2", BATCH_TIMEOUT_MS="250")
    assert worker._lane._timeout_s == 0.25
