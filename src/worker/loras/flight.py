"""One piece of work that several jobs wait for: done once, and stopped when none waits any more."""

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Flights(Generic[T]):
    """The work under way, by key; on one event loop."""

    def __init__(self) -> None:
        self._tasks: dict[Hashable, asyncio.Task[T]] = {}
        self._waiting: dict[Hashable, int] = {}

    async def join(self, key: Hashable, start: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Return what the work of `key` gives, started here unless it is under way.

        A cancel leaves the work to the others that wait, and stops it when there are none. Raises
        what the work raises.
        """
        if key not in self._tasks:
            self._tasks[key] = asyncio.create_task(start())
            self._waiting[key] = 0
        task = self._tasks[key]
        self._waiting[key] += 1
        try:
            return await asyncio.shield(task)
        finally:
            self._leave(key, task)

    def _leave(self, key: Hashable, task: "asyncio.Task[T]") -> None:
        if self._tasks.get(key) is not task:
            return
        self._waiting[key] -= 1
        if task.done() or not self._waiting[key]:
            task.cancel()
            task.add_done_callback(_ignore_error)
            del self._tasks[key], self._waiting[key]


def _ignore_error(task: "asyncio.Task[Any]") -> None:
    """Take the error of work that nothing waits for, so that asyncio reports none."""
    if not task.cancelled():
        task.exception()
