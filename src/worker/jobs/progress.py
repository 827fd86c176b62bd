"""A job's progress: in order, at most one update per second, and none after its result."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Self

from worker import log

EVERY_S: Final = 1.0
# An update that takes the platform longer is given up: a newer one, or the result, is due.
POST_S: Final = 5.0

Post = Callable[[Mapping[str, Any]], Awaitable[None]]


class Progress:
    """Post the newest update of one job while its context is open.

    The SDK's own progress_update starts a thread per call, and those overtake one another and
    the result. Here one task posts one update after the other, and leaving the context waits for
    the one that is under way (POST_S at most).
    """

    def __init__(self, post: Post | None) -> None:
        self._post = post
        self._newest: Mapping[str, Any] | None = None
        self._news = asyncio.Event()
        self._closed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = None

    def publish(self, update: Mapping[str, Any]) -> None:
        """Post this update unless a newer one comes before it is due; callable from any thread."""
        if self._post is not None:
            self._loop.call_soon_threadsafe(self._take, update)

    async def __aenter__(self) -> Self:
        if self._post is not None:
            self._task = asyncio.create_task(self._run(self._post))
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._closed.set()
        self._news.set()
        if self._task is None:
            return
        if kind is not None and issubclass(kind, asyncio.CancelledError):
            self._task.cancel()  # nothing listens any more
        await asyncio.wait({self._task})

    def _take(self, update: Mapping[str, Any]) -> None:
        self._newest = update
        self._news.set()

    async def _run(self, post: Post) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            update, self._newest = self._newest, None
            if self._closed.is_set() or update is None:
                return
            start = self._loop.time()
            try:
                async with asyncio.timeout(POST_S):
                    await post(update)
            except Exception as error:  # noqa: BLE001 - an update may be lost, the job may not
                log.get().warning("progress lost", reason=type(error).__name__)
            left = EVERY_S - (self._loop.time() - start)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._closed.wait()
