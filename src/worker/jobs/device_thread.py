"""The one thread that uses the device: a cancelled job is waited for, so two never overlap."""

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class Stopped(Exception):
    """Unwind the device's thread: the job was cancelled, and nobody waits for its picture."""


class DeviceThread:
    """Run the device's work one job at a time, in turn, off the event loop."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="device")
        self._turn = asyncio.Lock()

    async def run(self, work: Callable[[], T], stop: Callable[[], None]) -> T:
        """Return what `work` returns, or raise what it raises.

        A job that waits for its turn can be cancelled at once. One that runs cannot: each cancel
        calls `stop`, which shall make `work` raise soon, and CancelledError is raised when `work`
        has ended, with what it raised as the cause.
        """
        async with self._turn:
            context = contextvars.copy_context()
            loop = asyncio.get_running_loop()
            running = loop.run_in_executor(self._pool, context.run, work)
            cancelled: asyncio.CancelledError | None = None
            try:
                while not running.done():
                    try:
                        # Unlike awaiting the future itself, a cancelled wait() leaves it running.
                        await asyncio.wait({running})
                    except asyncio.CancelledError as error:
                        cancelled = error
                        stop()
                if cancelled is not None:
                    raise cancelled from running.exception()
                return running.result()
            finally:
                # What was raised refers to this frame: the frame must not refer to it, or the
                # tensors of a failed job stay on the device until the collector comes by.
                del running, cancelled
