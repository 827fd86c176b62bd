"""The worker's side of job-take: what was on its way when the worker leaves still arrives."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from worker.loop import take
from worker.loop.take import Job, Taker

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


async def left(answer: Answer) -> tuple[list[Job], float]:
    """Leave while a poll is open; return what it took and how long it took over that."""
    polled = asyncio.Event()

    async def told(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        polled.set()
        await answer(reader, writer)

    async with platform(told) as taker:
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


def test_leaving_does_not_wait_for_ever_for_a_platform_that_does_not_hang_up(
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

    async def taken() -> list[list[Job]]:
        async with platform(next_answer) as taker:
            return [await taker.take(1), await taker.take(5)]

    one, many = asyncio.run(taken())
    assert one == [{"id": "a", "input": {"prompt": "x"}, "s3Config": {}}]
    assert many == [{"id": "b", "input": None}, {"id": "c", "input": 1}]
