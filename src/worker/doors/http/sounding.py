"""Sound as a response that is sent while the rest is made."""

import asyncio
from collections.abc import Callable

from aiohttp import web

from worker.doors.http.tracked import Tracked
from worker.jobs.outflow import Sink
from worker.media.piece import Encoded


async def stream_sound(
    request: web.Request, hand_in: Callable[[Sink], Tracked]
) -> tuple[Tracked, web.StreamResponse | None]:
    """Hand in a job and send its sound as it comes; return the job and the response.

    The response is None where the job ended before its first sound, which the job says why. What
    ends it later ends the response without its end, so that nobody takes it for complete. A caller
    that leaves cancels the job.
    """
    parts: asyncio.Queue[Encoded] = asyncio.Queue(1)

    async def take(_number: int, part: Encoded) -> None:
        await parts.put(part)

    entry = hand_in(take)
    response: web.StreamResponse | None = None
    try:
        while (part := await _wait_for_part(parts, entry)) is not None:
            if response is None:
                response = _make_response(entry, part)
                await response.prepare(request)
            await response.write(part.data)
    finally:
        await entry.stop()
    if response is not None and entry.state != "COMPLETED" and request.transport is not None:
        request.transport.abort()
    return entry, response


async def _wait_for_part(parts: asyncio.Queue[Encoded], entry: Tracked) -> Encoded | None:
    """Return the next part, None once the job has ended and no part is left."""
    while parts.empty() and not entry.is_final:
        news = asyncio.create_task(entry.news.wait())
        part = asyncio.create_task(parts.get())
        try:
            await asyncio.wait({news, part}, return_when=asyncio.FIRST_COMPLETED)
            if part.done():
                return part.result()
        finally:
            news.cancel()
            part.cancel()
    return None if parts.empty() else parts.get_nowait()


def _make_response(entry: Tracked, part: Encoded) -> web.StreamResponse:
    response = web.StreamResponse(
        headers={
            "x-request-id": entry.id,
            "Content-Type": part.mime_type,
            "Cache-Control": "no-store",
            "X-Accel-Buffering": "no",
            "x-sample-rate": str(part.facts["sample_rate"]),
        }
    )
    response.enable_chunked_encoding()
    return response
