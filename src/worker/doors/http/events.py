"""Server-sent events: what happens to a job, as it happens."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, Final

from aiohttp import web

from worker.doors.http.responses import encode_json
from worker.doors.http.tracked import Tracked
from worker.jobs.job import ReadyPiece
from worker.media.piece import Encoded

EVENT_STREAM: Final = "text/event-stream"
# Proxies close what is silent: a Pod's after 100 s, others after 60 or 30.
QUIET_S: Final = 10.0


class EventStream:
    """The events of one response; `open` sends its head."""

    def __init__(self, request: web.Request, headers: Mapping[str, str]) -> None:
        self._request = request
        self._response = web.StreamResponse(
            headers={
                **headers,
                "Content-Type": EVENT_STREAM,
                "Cache-Control": "no-store",
                "X-Accel-Buffering": "no",
            }
        )

    async def open(self) -> web.StreamResponse:
        """Send the head of the response, and return the response."""
        await self._response.prepare(self._request)
        return self._response

    async def send(self, name: str, value: Any) -> None:
        """Send one event."""
        data = await asyncio.to_thread(encode_json, value)
        await self._response.write(b"event: " + name.encode() + b"\ndata: " + data + b"\n\n")

    async def send_comment(self, text: str) -> None:
        """Send a comment, which clients skip."""
        await self._response.write(f": {text}\n\n".encode())


def is_for_events(request: web.Request) -> bool:
    """Return whether a request accepts events instead of one reply."""
    return EVENT_STREAM in request.headers.get("Accept", "")


async def follow(
    entry: Tracked,
    events: EventStream,
    *,
    name: str | None,
    send_ready: Callable[[ReadyPiece], Awaitable[None]] | None = None,
    send_part: Callable[[Encoded], Awaitable[None]] | None = None,
) -> None:
    """Send what happens to a job until its end, as events of that name or as comments.

    `send_ready` is called with each piece that is a file before the job has ended, `send_part` with
    each part of what the job makes.
    """
    while not entry.is_final:
        news = entry.news
        while send_part is not None and entry.parts:
            await send_part(entry.parts.popleft())
        while send_ready is not None and entry.ready:
            await send_ready(entry.ready.popleft())
        if name is not None:
            await events.send(name, entry.describe())
        else:
            await events.send_comment(_describe(entry))
        with suppress(TimeoutError):
            async with asyncio.timeout(QUIET_S):
                await news.wait()


def _describe(entry: Tracked) -> str:
    if entry.progress is None:
        return f"waiting, {entry.place.position} before"
    return f"step {entry.progress['step']}/{entry.progress['steps']}"
