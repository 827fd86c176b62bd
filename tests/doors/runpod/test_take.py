"""The worker's side of job-take: what was on its way when the worker leaves still arrives."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import structlog

from worker.doors.runpod import take
from worker.doors.runpod.take import TakenJob, Taker
from worlds import clock

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def platform(answer: Answer) -> AsyncIterator[Taker]:
    """Serve polls byte by byte: an HTTP server hides who closed what."""
    served: list[asyncio.Task[None]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        served.append(task)
        try:
            await reader.readuntil(b"\r\n\r\n")
            await answer(reader, writer)
        finally:
            writer.close()
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, Taker(lambda n: f"http://127.0.0.1:{port}/job-take?n={n}", {}) as taker:
        yield taker
    for task in served:
        task.cancel()
        await asyncio.wait({task})


def response(status: str, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\nConnection: close\r\n\r\n" + body


async def left(answer: Answer) -> tuple[list[TakenJob], float]:
    """Leave while a poll is open; return what it took and how long it took over that."""
    polled = asyncio.Event()

    async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        polled.set()
        await answer(reader, writer)

    async with platform(serve_one) as taker:
        taking = asyncio.create_task(taker.take(1))
        asked = asyncio.create_task(polled.wait())
        await asyncio.wait({taking, asked}, return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        assert polled.is_set(), f"it took {await taking} without asking"
        start = asyncio.get_running_loop().time()
        taker.leave()
        return await taking, asyncio.get_running_loop().time() - start


@pytest.fixture
def endless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a platform that does not answer be waited for without end."""
    monkeypatch.setattr(take, "LEAVE_S", 3600.0)


@pytest.mark.usefixtures("endless")
def test_a_job_sent_before_the_platform_saw_us_leave_is_taken() -> None:
    async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.read() == b""  # our half is closed
        await asyncio.sleep(0.3)  # longer than is looked for another connection
        writer.write(response("200 OK", b'{"id": "a", "input": {}}'))
        await writer.drain()

    jobs, _ = asyncio.run(left(late))
    assert [job["id"] for job in jobs] == ["a"]


@pytest.mark.usefixtures("endless")
def test_leaving_ends_at_once_when_the_platform_hangs_up() -> None:
    async def hang_up(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        assert await reader.read() == b""

    jobs, _ = asyncio.run(left(hang_up))
    assert jobs == []


def test_leaving_does_not_wait_forever_for_a_platform_that_does_not_hang_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(take, "LEAVE_S", 0.3)

    async def deaf(_: asyncio.StreamReader, __: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    jobs, seconds = asyncio.run(left(deaf))
    assert jobs == []
    assert seconds >= 0.3


def test_jobs_come_alone_or_in_lists_and_need_an_id() -> None:
    answers = iter(
        [
            {"id": "a", "input": {"prompt": "x"}, "s3Config": {}},
            [{"id": "b"}, {"input": {}}, {"id": 7}, "stray", {"id": "c", "input": 1}],
        ]
    )

    async def next_answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(response("200 OK", json.dumps(next(answers)).encode()))
        await writer.drain()

    async def taken() -> list[list[TakenJob]]:
        async with platform(next_answer) as taker:
            return [await taker.take(1), await taker.take(5)]

    one, many = asyncio.run(taken())
    assert one == [{"id": "a", "input": {"prompt": "x"}, "s3Config": {}}]
    assert many == [{"id": "b", "input": None}, {"id": "c", "input": 1}]


# What the platform answers, and how long it is left alone then.


class Hasty(Taker):
    """Notes how long it would pause, and does not."""

    pauses: list[float]

    async def _pause(self, seconds: float) -> None:
        self.pauses.append(seconds)


PAUSE_S = 60.0  # for no poll lasts that long by chance


def paused(
    *answers: bytes, held_s: float = 0.0, pause_s: float = PAUSE_S
) -> tuple[list[list[TakenJob]], list[float], list[str]]:
    """Return the jobs of each take, the pauses after them, and why no job was taken.

    Each answer is held back for `held_s` seconds.
    """
    left_over = list(answers)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(held_s)
        # aiohttp asks once more, on a new connection, after one that was closed without an answer
        if answer := left_over.pop(0) if left_over else b"":
            writer.write(answer)
            await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def case() -> tuple[list[list[TakenJob]], list[float]]:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server, Hasty(lambda n: f"http://127.0.0.1:{port}/take?n={n}", {}) as taker:
            taker.pauses = []
            return [await taker.take(1) for _ in answers], taker.pauses

    with structlog.testing.capture_logs() as lines, pytest.MonkeyPatch.context() as patch:
        patch.setattr(take, "PAUSE_S", pause_s)
        jobs, pauses = asyncio.run(case())
    assert left_over == []
    return jobs, pauses, [line["reason"] for line in lines if line["event"] == "no job taken"]


NOTHING = response("204 No Content", b"")
ONE = response("200 OK", b'{"id": "a"}')
BROKEN = response("500 Internal Server Error", b"")
BUSY = response("429 Too Many Requests", b"")


def test_a_platform_in_trouble_is_polled_less_and_less_until_it_answers() -> None:
    jobs, pauses, reasons = paused(*[BROKEN] * 7, ONE, BROKEN, NOTHING, BROKEN)
    assert jobs[7] == [{"id": "a", "input": None}]
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 1, PAUSE_S, 1]
    assert reasons == ["status 500"] * 9


def test_a_busy_platform_is_polled_again_after_five_seconds() -> None:
    _, pauses, reasons = paused(BUSY, BUSY, BROKEN, BUSY, BROKEN)
    assert pauses == [5, 5, 1, 5, 2]
    assert reasons == ["status 429", "status 429", "status 500", "status 429", "status 500"]


@pytest.mark.parametrize(
    "answer",
    [
        NOTHING,
        response("400 Bad Request", b"x"),
        response("200 OK", b" \n"),
        response("200 OK", b"[]"),
    ],
    ids=["204", "400", "blank", "none"],
)
def test_no_job_is_no_trouble(answer: bytes) -> None:
    assert paused(answer) == ([[]], [PAUSE_S], [])


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (response("200 OK", b"{"), "the answer is not JSON"),
        (response("200 OK", b"<html>"), "the answer is not JSON"),
        (response("200 OK", b"{}"), "the answer is not a job"),
        (response("200 OK", b'{"id": ""}'), "the answer is not a job"),
        (response("200 OK", b"7"), "the answer is not a job"),
        (response("201 Created", b'{"id": "a"}'), "status 201"),
        (response("404 Not Found", b""), "status 404"),
        (b"", "ServerDisconnectedError"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{", "ClientPayloadError"),
    ],
)
def test_what_is_no_answer_is_trouble(answer: bytes, reason: str) -> None:
    assert paused(answer) == ([[]], [1], [reason])


def test_a_job_is_followed_by_no_pause() -> None:
    assert paused(ONE, ONE)[1] == []


def test_a_poll_that_was_held_without_a_job_is_followed_by_no_pause() -> None:
    assert paused(NOTHING, held_s=0.05, pause_s=0.04) == ([[]], [], [])


def test_the_pause_after_a_poll_that_was_not_held_is_short() -> None:
    class Empty(Taker):
        async def _poll(self, count: int) -> list[TakenJob]:
            del count
            return []

    async def case() -> float:
        async with Empty(lambda _: "", {}) as taker:
            assert await taker.take(1) == []
            return asyncio.get_running_loop().time()

    assert clock.run(case()) == pytest.approx(0.2)


def test_a_list_without_a_job_in_it_is_no_trouble() -> None:
    assert paused(response("200 OK", b'[{"id": 5}]')) == ([[]], [PAUSE_S], [])


def test_a_poll_that_the_platform_holds_too_long_is_no_trouble(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(take, "HOLD_S", 0.4)

    async def hold(_: asyncio.StreamReader, __: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    async def case() -> list[TakenJob]:
        async with platform(hold) as taker:
            return await taker.take(1)

    with structlog.testing.capture_logs() as lines:
        assert asyncio.run(case()) == []
    assert lines == []


def test_trouble_while_leaving_is_not_waited_for() -> None:
    async def hang_up(_: asyncio.StreamReader, __: asyncio.StreamWriter) -> None:
        return

    with structlog.testing.capture_logs() as lines:
        jobs, _ = asyncio.run(left(hang_up))
    assert jobs == []
    assert lines == []


def test_as_many_jobs_are_requested_as_there_is_room_for() -> None:
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(ONE)
        await writer.drain()
        writer.close()

    async def case() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        url = f"http://127.0.0.1:{port}/take?n={{}}"
        async with server, Taker(url.format, {"Authorization": "a-key"}) as taker:
            await taker.take(2)

    asyncio.run(case())
    assert asked[0].startswith(b"GET /take?n=2 ")
    assert b"Authorization: a-key\r\n" in asked[0]
