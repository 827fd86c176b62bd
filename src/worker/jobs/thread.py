"""The one thread that uses the device: what runs in it is waited for, so two never overlap."""

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class DeviceThread:
    """Run work one piece at a time, in turn, in one thread off the event loop."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="device")
        self._turn = asyncio.Lock()

    async def run(
        self,
        work: Callable[[], T],
        stop: Callable[[], None],
        context: contextvars.Context | None = None,
    ) -> T:
        """Run `work`, in a copy of `context` or of the caller's, and return what it returns.

        What waits for its turn can be cancelled at once. What runs cannot: each cancel calls
        `stop`, which must make `work` raise soon, and CancelledError is raised when `work` has
        ended, with what it raised as the cause.
        """
        async with self._turn:
            context = contextvars.copy_context() if context is None else context.copy()
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
                # tensors of a failed job stay on the device until the garbage collector runs.
                del running, cancelled
