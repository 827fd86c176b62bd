"""What is sent while a job runs (events, pictures on the way, sound), and to whom it is not."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from worker import settings
from worker.doors.http import events
from worker.doors.http.app import make_app
from worker.doors.http.desk import Desk
from worker.jobs.job import Answer, Job, ReadyPiece
from worker.media.piece import Encoded

Make = Callable[[Job], Awaitable[Answer]]
HANG_S = 20.0
EVENTS = {"Accept": "text/event-stream"}
GENERATIONS = "/v1/images/generations"
SPEECH = "/v1/audio/speech"
PICTURES = {"prompt": "x", "stream": True, "partial_images": 2}
SOUND = {"input": "x", "stream": True}
ABLE: dict[str, Any] = {"models": [{"tasks": ["speech"]}], "input": []}
SHAPE = {"width": 64, "height": 64}


def picture(seed: int) -> Encoded:
    return Encoded(b"a picture", "image/png", {"seed": seed, **SHAPE})


def sound(data: bytes) -> Encoded:
    return Encoded(data, "audio/pcm", {"sample_rate": 24_000})


def drawn(count: int) -> dict[str, Any]:
    """Return the answer of a job that made so many pictures."""
    data = base64.b64encode(b"a picture").decode()
    one = {"base64": data, "mime_type": "image/png", **SHAPE}
    images = [{"index": number, "seed": 7 + number, **one} for number in range(count)]
    return {"images": images, "seed": 7, "timings_ms": {}}


def spoken() -> dict[str, Any]:
    audio = {"base64": "", "mime_type": "audio/wav"}
    return {"audio": audio, "task": "speech", "timings_ms": {}}


class Stage:
    """A door, one who calls at it, and its jobs: what each does is for the test to say."""

    def __init__(self, client: Any, desk: Desk) -> None:
        self.client, self.desk = client, desk

    def post(self, path: str, body: Any, **named: Any) -> Any:
        """Begin a request."""
        return self.client.post(path, json=body, **named)


@asynccontextmanager
async def staged(make: Make, **environ: str) -> AsyncIterator[Stage]:
    async def handle(job: Job) -> Answer:
        if job.input == {"op": "capabilities"}:
            return ABLE
        assert job.wait is not None
        await job.wait()
        return await make(job)

    chosen = settings.read({"SERVE": "http", **environ})
    desk = Desk(chosen, lambda: None)
    desk.open_for(handle, lambda: False)
    async with TestClient(TestServer(make_app(chosen, desk))) as client:
        yield Stage(client, desk)


def play(case: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(HANG_S):
            await case()

    asyncio.run(limited())


@pytest.fixture(autouse=True)
def _silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Repeat nothing while nothing happens."""
    monkeypatch.setattr(events, "QUIET_S", 10 * HANG_S)


async def let_others_go_on() -> None:
    """Wait until whoever can go on has done so, and waits again."""
    for _ in range(20):
        await asyncio.sleep(0)


async def read_block(response: Any) -> tuple[str, Any]:
    """Return the name and the value of the next event, or "" and the text of a comment."""
    block = (await response.content.readuntil(b"\n\n")).decode().removesuffix("\n\n")
    if block.startswith(": "):
        return "", block.removeprefix(": ")
    name, data = block.split("\n")
    return name.removeprefix("event: "), json.loads(data.removeprefix("data: "))


async def read_event(response: Any) -> tuple[str, Any]:
    """Return the name and the value of the next event."""
    while True:
        name, value = await read_block(response)
        if name:
            return name, value


async def read_comment(response: Any, start: str) -> str:
    """Return the next comment that begins so."""
    while True:
        _, text = await read_block(response)
        if text.startswith(start):
            return str(text)


def test_all_that_is_on_the_way_is_sent_before_anything_more_happens() -> None:
    """Several parts and several pictures may come before the first of them can be sent."""

    async def case() -> None:
        free = asyncio.Event()

        async def make(job: Job) -> Answer:
            assert job.sink is not None
            assert job.show is not None
            for number in range(2):
                await job.sink(number, picture(7))
            for index in range(2):
                job.show(ReadyPiece(index, 3, 8 + index, picture(8 + index)))
            await free.wait()
            return drawn(3)

        async with staged(make) as stage, stage.post(GENERATIONS, PICTURES) as response:
            names = [(await read_event(response))[0] for _ in range(4)]
            kinds = ["partial_image"] * 2 + ["completed"] * 2
            assert names == [f"image_generation.{kind}" for kind in kinds]
            free.set()
            name, last = await read_event(response)
            assert (name, last["worker"]["seed"]) == ("image_generation.completed", 7)

    play(case)


def test_what_is_left_when_a_job_has_ended_is_sent_before_its_pictures() -> None:
    async def case() -> None:
        async def make(job: Job) -> Answer:
            assert job.sink is not None
            for number in range(2):
                await job.sink(number, picture(7))
            return drawn(2)

        async with staged(make) as stage, stage.post(GENERATIONS, PICTURES) as response:
            blocks = [one for one in (await response.text()).split("\n\n") if one[:5] == "event"]
            found = [json.loads(one.partition("\ndata: ")[2]) for one in blocks]
        kinds = ["partial_image"] * 2 + ["completed"] * 2
        assert [one["type"] for one in found] == [f"image_generation.{kind}" for kind in kinds]
        assert [one["partial_image_index"] for one in found[:2]] == [0, 1]

    play(case)


def test_comments_say_how_many_are_before_a_job_and_then_its_steps() -> None:
    async def case() -> None:
        free = asyncio.Event()

        async def make(job: Job) -> Answer:
            assert job.listener is not None
            await job.listener({"step": 2, "steps": 5})
            await free.wait()
            return drawn(1)

        async with staged(make) as stage:
            slots = settings.read({}).jobs_at_once
            running = [await stage.post(GENERATIONS, PICTURES) for _ in range(slots)]
            for one in running:
                assert await read_comment(one, "step") == "step 2/5"
            async with stage.post(GENERATIONS, PICTURES) as waiting:
                assert await read_block(waiting) == ("", "waiting, 1 before")
                free.set()
                assert (await read_event(waiting))[0] == "image_generation.completed"
            for one in running:
                await one.read()

    play(case)


def test_where_nothing_happens_nothing_is_sent() -> None:
    async def case() -> None:
        async def make(job: Job) -> Answer:
            assert job.listener is not None
            await job.listener({"step": 2, "steps": 5})
            await asyncio.Event().wait()
            return drawn(1)

        async with staged(make) as stage, stage.post(GENERATIONS, PICTURES) as response:
            await read_comment(response, "step")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await read_block(response)

    play(case)


def test_a_stream_of_what_is_no_picture_ends_with_why() -> None:
    async def case() -> None:
        async def make(_: Job) -> Answer:
            return spoken()

        async with staged(make) as stage, stage.post(GENERATIONS, PICTURES) as response:
            name, event = await read_event(response)
            assert (name, event["type"]) == ("error", "error")
            assert event["error"]["message"] == "task: speech makes no pictures"

    play(case)


async def hang(_: Job) -> Answer:
    await asyncio.Event().wait()
    raise AssertionError


def test_a_job_that_is_cancelled_by_its_id_says_so_to_those_who_follow_it() -> None:
    async def case() -> None:
        async with staged(hang) as stage, stage.post(GENERATIONS, PICTURES) as response:
            await read_block(response)
            job_id = response.headers["x-request-id"]
            async with stage.post(f"/cancel/{job_id}", None) as cancelled:
                assert (await cancelled.json())["status"] == "CANCELLED"
            name, event = await read_event(response)
            error: dict[str, Any] = {
                "message": "the job was cancelled",
                "type": "invalid_request_error",
            }
            error |= {"code": "cancelled", "param": None}
            assert (name, event) == ("error", {"type": "error", "error": error})

    play(case)


@pytest.mark.parametrize("path", ["/generate", GENERATIONS])
def test_a_job_that_is_cancelled_by_its_id_says_so_to_one_that_waits(path: str) -> None:
    async def case() -> None:
        begun: asyncio.Queue[str] = asyncio.Queue()

        async def make(job: Job) -> Answer:
            begun.put_nowait(job.id)
            return await hang(job)

        async with staged(make) as stage:
            asked = asyncio.ensure_future(stage.post(path, {"prompt": "x"}))
            async with stage.post(f"/cancel/{await begun.get()}", None):
                pass
            async with await asked as response:
                error = (await response.json())["error"]
                assert (response.status, error["code"]) == (409, "cancelled")

    play(case)


@pytest.mark.parametrize(
    ("path", "body", "headers"),
    [
        (GENERATIONS, PICTURES, {}),
        (GENERATIONS, {"prompt": "x"}, {}),
        (SPEECH, SOUND, {}),
        ("/runsync", {"input": {}}, {}),
        ("/runsync", {"input": {}}, EVENTS),
    ],
    ids=["pictures", "one answer", "sound", "state", "events"],
)
def test_one_that_leaves_before_the_end_stops_its_job(
    path: str, body: Any, headers: dict[str, str]
) -> None:
    async def case() -> None:
        begun, ended = asyncio.Event(), asyncio.Event()

        async def make(job: Job) -> Answer:
            try:
                if path == SPEECH:
                    assert job.sink is not None
                    await job.sink(0, sound(b"one"))
                begun.set()
                return await hang(job)
            finally:
                ended.set()

        async def ask(stage: Stage) -> None:
            async with stage.post(path, body, headers=headers) as response:
                await response.read()

        async with staged(make) as stage:
            asked = asyncio.create_task(ask(stage))
            await begun.wait()
            asked.cancel()
            await ended.wait()

    play(case)


@pytest.mark.parametrize(
    ("path", "body", "headers"),
    [(GENERATIONS, PICTURES, {}), (SPEECH, SOUND, {}), ("/runsync", {"input": {}}, EVENTS)],
    ids=["pictures", "sound", "events"],
)
def test_a_page_of_an_allowed_origin_may_read_what_is_streamed(
    path: str, body: Any, headers: dict[str, str]
) -> None:
    async def case() -> None:
        async def make(job: Job) -> Answer:
            if path != SPEECH:
                return drawn(1)
            assert job.sink is not None
            await job.sink(0, sound(b"one"))
            return spoken()

        origin = "https://app.example"
        async with staged(make, CORS_ORIGINS=origin) as stage:
            given = {**headers, "Origin": origin}
            async with stage.post(path, body, headers=given) as response:
                assert response.headers["Access-Control-Allow-Origin"] == origin
                assert response.headers["X-Content-Type-Options"] == "nosniff"
                assert response.headers["Cache-Control"] == "no-store"
                await response.read()

    play(case)


def test_sound_is_sent_as_it_comes_whatever_else_happens() -> None:
    """After a step that made none, before the rest is made, and the last of it with the end."""

    async def case() -> None:
        free = asyncio.Event()

        async def make(job: Job) -> Answer:
            assert job.sink is not None
            assert job.listener is not None
            await let_others_go_on()
            await job.listener({"step": 1, "steps": 5})
            await let_others_go_on()
            await job.sink(0, sound(b"one"))
            await free.wait()
            await job.sink(1, sound(b"two"))
            return spoken()

        async with staged(make) as stage, stage.post(SPEECH, SOUND) as response:
            assert await response.content.readexactly(3) == b"one"
            free.set()
            assert await response.read() == b"two"

    play(case)


def test_sound_is_made_no_faster_than_it_is_taken_and_leaves_no_task_behind() -> None:
    """One part may wait while the one before it is sent."""

    async def case() -> None:
        made, ahead, tasks = list[int](), list[int](), list[int]()

        class Watched(dict[str, int]):
            def __getitem__(self, name: str) -> int:
                ahead.append(len(made))
                return super().__getitem__(name)

        async def make(job: Job) -> Answer:
            assert job.sink is not None
            for number in range(60):
                if number >= 30:
                    await let_others_go_on()
                part = Encoded(b"x", "audio/pcm", Watched(sample_rate=24_000))
                await job.sink(number, part)
                made.append(number)
                tasks.append(len(asyncio.all_tasks()))
            return spoken()

        async with staged(make) as stage, stage.post(SPEECH, SOUND) as response:
            assert await response.read() == b"x" * 60
        assert ahead
        assert max(ahead) <= 2
        assert tasks[-1] < tasks[0] + 15

    play(case)


@pytest.mark.parametrize(
    ("path", "body", "shows", "sinks"),
    [
        (GENERATIONS, {"prompt": "x"}, False, False),
        (GENERATIONS, {"prompt": "x", "stream": True}, True, False),
        (GENERATIONS, PICTURES, True, True),
        (SPEECH, {"input": "x"}, False, False),
        (SPEECH, SOUND, False, True),
    ],
    ids=["pictures", "streamed", "previews", "speech", "sound"],
)
def test_a_job_of_openais_is_plain_and_has_places_for_what_its_caller_follows(
    path: str, body: Any, *, shows: bool, sinks: bool
) -> None:
    async def case() -> None:
        jobs: list[Job] = []

        async def make(job: Job) -> Answer:
            jobs.append(job)
            return drawn(1) if path == GENERATIONS else spoken()

        async with (
            staged(make) as stage,
            stage.post(path, {**body, "model": "gpt-image-1"}) as response,
        ):
            assert response.status == 200
            await response.read()
        (job,) = jobs
        assert job.is_plain
        assert job.warnings == ["model: gpt-image-1 is OpenAI's; this worker's default is used"]
        assert (job.show is not None, job.sink is not None) == (shows, sinks)

    play(case)
