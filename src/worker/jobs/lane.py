"""The one lane to the device: a cancelled job is waited for, so two never overlap."""

import asyncio
import contextvars
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from worker.jobs.control import JobControl
from worker.seam import Made, Model, Wish

T = TypeVar("T")


class Lane:
    """Run the device's work one job at a time, in turn, in one thread off the event loop."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="device")
        self._turn = asyncio.Lock()

    async def make(
        self, take: Callable[[], Model], wishes: Sequence[Wish], control: JobControl
    ) -> list[Made]:
        """Make what a job wishes, in order; `take` returns its model, in the lane's thread.

        Wishes that may share a forward are made together, the others one after another. Raises what
        the model and `take` raise, and CancelledError as `run`.
        """

        def make_all() -> list[Made]:
            control.start(0)
            model = take()
            made: list[Made] = []
            for batch in _split(model, wishes):
                control.start(len(made))
                controls = [control.follow(len(made) + place) for place in range(len(batch))]
                made += model.make(batch, controls)
            return made

        return await self.run(make_all, control.stop)

    async def run(self, work: Callable[[], T], stop: Callable[[], None]) -> T:
        """Run `work` and return what it returns.

        A job that waits for its turn can be cancelled at once. One that runs cannot: each cancel
        calls `stop`, which must make `work` raise soon, and CancelledError is raised when `work`
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
                # tensors of a failed job stay on the device until the garbage collector runs.
                del running, cancelled


def _split(model: Model, wishes: Sequence[Wish]) -> Iterator[list[Wish]]:
    """Yield the wishes in their order, in runs in which each may share a forward with the first."""
    batch: list[Wish] = []
    for wish in wishes:
        if batch and not model.can_share(batch[0], wish):
            yield batch
            batch = []
        batch.append(wish)
    yield batch
