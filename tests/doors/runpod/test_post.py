"""A result is posted until the platform has it, or will never take it."""

import asyncio
from typing import Any

import aiohttp
import pytest
import structlog
from stamina.instrumentation import set_on_retry_hooks

from worker.doors.runpod import post

HANG = "hang"
DROP = "drop"


def posted(*answers: int | str, body: str = "{}") -> tuple[list[bytes], list[Any]]:
    """Return the requests that the platform got, one for each of its answers, and the log."""
    left_over, got = list(answers), list[bytes]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if b"Content-Length: " in head:
            length = int(head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0])
            got.append(head + await reader.readexactly(length))
        else:
            got.append(head + await reader.readuntil(b"0\r\n\r\n"))
        answer = left_over.pop(0) if left_over else 500
        if answer == HANG:
            await reader.read()
        elif answer != DROP:
            writer.write(f"HTTP/1.1 {answer} X\r\nContent-Length: 0\r\n".encode())
            writer.write(b"Connection: close\r\n\r\n")
            await writer.drain()
        writer.close()

    async def case() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server, aiohttp.ClientSession() as session:
            await post.transmit(session, f"http://127.0.0.1:{port}/done", body)

    with structlog.testing.capture_logs() as lines:
        asyncio.run(case())
    return got, [line for line in lines if line["event"].startswith("answer")]


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait next to nothing between two attempts."""
    monkeypatch.setattr(post, "LONGEST_WAIT_S", 0.01)


@pytest.mark.parametrize("status", [200, 204, 299])
def test_a_result_that_is_taken_is_posted_once(status: int) -> None:
    got, lines = posted(status, body='{"output": "\u732b"}')
    assert len(got) == 1
    assert '{"output": "\u732b"}'.encode() in got[0]
    assert b"Content-Type: application/x-www-form-urlencoded\r\n" in got[0]
    assert b"charset: utf-8\r\n" in got[0]
    assert lines == []


@pytest.mark.parametrize("answer", [408, 429, 500, 502, 599, DROP])
def test_a_result_is_posted_again_where_that_may_help(answer: int | str) -> None:
    got, lines = posted(answer, answer, 200, body="the result")
    assert len(got) == 3
    assert all(b"the result" in request for request in got)
    assert lines == []


def test_a_result_is_not_given_up_for_a_dozen_failures() -> None:
    got, lines = posted(*[503] * 15, 200)
    assert len(got) == 16
    assert lines == []


def test_a_platform_in_trouble_is_left_alone_before_each_further_attempt() -> None:
    waits: list[float] = []
    set_on_retry_hooks([lambda attempt: waits.append(attempt.wait_for)])
    try:
        posted(500, 500, 200)
    finally:
        set_on_retry_hooks(None)
    assert waits == [0.01, 0.01]


@pytest.mark.parametrize("status", [400, 404, 410, 499])
def test_a_result_that_is_refused_is_not_posted_again_and_that_is_logged(status: int) -> None:
    got, (line,) = posted(status, body="12345")
    assert len(got) == 1
    assert (line["event"], line["status"], line["bytes"]) == ("answer refused", status, 5)
    assert line["log_level"] == "error"


def test_a_result_that_is_never_taken_is_given_up_and_that_is_logged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(post, "TOTAL_S", 2.0)
    monkeypatch.setattr(post, "LONGEST_WAIT_S", 0.2)
    got, (line,) = posted()
    assert len(got) > 1
    assert (line["event"], line["reason"]) == ("answer lost", "status 500")
    assert line["log_level"] == "error"


def test_a_platform_that_does_not_answer_gets_the_result_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(post, "ATTEMPT_S", 0.3)
    got, lines = posted(HANG, *[200] * 9)  # more than one, if this process itself hangs too
    assert len(got) >= 2
    assert lines == []
