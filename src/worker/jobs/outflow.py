"""The parts of a job that are sent while the rest is made: in order, and before its reply."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Self

from worker.media.piece import Encoded, Piece

# The form of sound that comes in parts: what may be cut anywhere.
STREAM_FORM: Final = "pcm"

Sink = Callable[[int, Encoded], Awaitable[None]]


class Outflow:
    """Send the parts of one job while its context is open, each by its number from 0.

    Leaving the context waits until all are sent; after an error or a cancel, what waits is dropped.
    What the sink raises is raised there. Parts are encoded in a `form` and a `quality`.
    """

    def __init__(self, sink: Sink | None, form: str, quality: int) -> None:
        self._sink = sink
        self._form, self._quality = form, quality
        self._loop = asyncio.get_running_loop()
        self._waiting: asyncio.Queue[Piece | None] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    def take(self, part: Piece) -> None:
        """Send a part after those before it; callable from any thread."""
        self._loop.call_soon_threadsafe(self._waiting.put_nowait, part)

    async def __aenter__(self) -> Self:
        if self._sink is not None:
            self._task = asyncio.create_task(self._run(self._sink))
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._task is None:
            return
        if kind is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
            return
        # after the parts, which came by the same way
        self._loop.call_soon_threadsafe(self._waiting.put_nowait, None)
        await self._task

    async def _run(self, sink: Sink) -> None:
        number = 0
        while (part := await self._waiting.get()) is not None:
            encoded = await asyncio.to_thread(part.encode, self._form, self._quality, {})
            await sink(number, encoded)
            number += 1
