"""The one lane to the device: what waits for it, and what is made together, oldest first."""

import asyncio
import contextlib
import itertools
from collections.abc import Callable
from functools import partial

from worker import log
from worker.errors import CudaOutOfMemory, WorkerError
from worker.jobs.batch import Batch
from worker.jobs.control import Stopped
from worker.jobs.forming import Caps, choose
from worker.jobs.thread import DeviceThread
from worker.jobs.ticket import Placed, Row, Ticket

# What is learned of the device from how a job's making ended; None: well.
Note = Callable[[WorkerError | None], None]


class Lane:
    """Make what jobs ask for, in one thread: the oldest row, and with it others of an equal key.

    A batch that is not full waits until its oldest row has waited `timeout_s`. `note` hears how
    each job's making ended, unless it was stopped: before the job does, and before the next batch.
    """

    def __init__(self, caps: Caps, *, timeout_s: float, note: Note) -> None:
        self._caps = caps
        self._timeout_s = timeout_s
        self._note = note
        self._thread = DeviceThread()
        self._waiting: list[Row] = []
        self._row_numbers, self._batch_numbers = itertools.count(), itertools.count()
        self._serving: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()

    async def make(self, ticket: Ticket) -> list[Placed]:
        """Make what a job asked for, and return it in the order of its wishes.

        Raises what its model and `take` raise. A ticket that waits can be cancelled at once; of one
        that runs each cancel stops what is made, and CancelledError is raised when its rows have
        ended, with what they raised as the cause. An error of one row stops the others.
        """
        for index in range(len(ticket.wishes)):
            self._waiting.append(Row(ticket, index, next(self._row_numbers)))
        log.get().debug("waits for the device", rows=len(ticket.wishes))
        self._changed.set()
        if self._serving is None:
            self._serving = asyncio.create_task(self._serve())
        cancelled: asyncio.CancelledError | None = None
        error: Exception | None = None
        try:
            while not ticket.ended.done():
                try:
                    # Unlike awaiting the future itself, a cancelled wait() leaves it pending.
                    await asyncio.wait({ticket.ended})
                except asyncio.CancelledError as cancel:
                    cancelled = cancel
                    self._drop_rest(ticket)
            error = ticket.take_error()
            if cancelled is not None:
                raise cancelled from error
            if error is not None:
                raise error
            return [ticket.placed[index] for index in range(len(ticket.wishes))]
        finally:
            # What was raised refers to this frame; see DeviceThread.run.
            del cancelled, error

    async def _serve(self) -> None:
        """Make batches while rows wait."""
        self._changed = asyncio.Event()
        try:
            while self._waiting:
                rows = await self._choose()
                if rows:
                    await self._make(rows)
        finally:
            self._serving = None

    async def _choose(self) -> list[Row]:
        """Return the rows to make next; none when what waits has changed meanwhile."""
        first = self._waiting[0]
        left = self._measure_left(first)
        if self._caps.size == 1 or (len(self._waiting) == 1 and left <= 0):
            return [first]
        self._changed.clear()
        work = partial(choose, first.ticket.take, tuple(self._waiting), self._caps)
        try:
            chosen, most = await self._thread.run(
                work, first.ticket.control.stop, first.ticket.context
            )
        except Exception as error:  # noqa: BLE001 - whatever it is, it concerns that job alone
            if first in self._waiting:
                self._waiting.remove(first)
                self._end(first, error)
            return []
        if first not in self._waiting:
            return []
        rows = [row for row in chosen if row in self._waiting]
        left = self._measure_left(first)
        if len(rows) >= most or left <= 0:
            return rows
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), left)
        return []

    async def _make(self, rows: list[Row]) -> None:
        """Make rows together; those that must be made again return to the others that wait."""
        batch = Batch(next(self._batch_numbers), rows, self._settle)
        self._waiting = [row for row in self._waiting if row not in batch.open]
        try:
            await self._thread.run(batch.make, batch.stop, rows[0].ticket.context)
        except asyncio.CancelledError:
            self._end_all(batch, Stopped())
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, each job gets its answer
            if self._is_made_again(batch, error):
                self._put_back(batch)
            self._end_all(batch, error)

    def _is_made_again(self, batch: Batch, error: Exception) -> bool:
        """Return whether rows without an outcome are made again, fewer at once or without others.

        After memory ran out for several rows: half as many at once, from then on. After a stop that
        unwound the whole batch: without those that were stopped.
        """
        if isinstance(error, CudaOutOfMemory) and batch.size > 1:
            cap = self._caps.reduce(batch.rows[0], batch.size)
            log.get().warning("batch halved: out of memory", size=batch.size, cap=cap)
            return True
        return isinstance(error, Stopped) and batch.is_broken

    def _put_back(self, batch: Batch) -> None:
        """Let the open rows of tickets that go on wait again, at their old place."""
        rows = {row for row in batch.open if not row.ticket.control.is_stopped}
        batch.open -= rows
        self._waiting = sorted([*self._waiting, *rows], key=lambda row: row.number)

    def _settle(self, batch: Batch, row: Row, outcome: Placed | Exception) -> None:
        """Record the outcome of a row, unless it has one."""
        if row not in batch.open:
            return
        batch.open.remove(row)
        if isinstance(outcome, Exception):
            self._end(row, outcome)
        else:
            row.ticket.settle(row.index, outcome)
            self._note_end(row.ticket)

    def _end_all(self, batch: Batch, error: Exception) -> None:
        """End every open row with what ended the batch."""
        for row in batch.rows:
            self._settle(batch, row, error)

    def _end(self, row: Row, error: Exception) -> None:
        """End a row that neither waits nor runs, and with it the rest of its ticket."""
        row.ticket.settle(row.index, error)
        self._drop_rest(row.ticket)
        self._note_end(row.ticket)
        if isinstance(error, WorkerError) and error.fatal and error is not row.ticket.error:
            self._note(error)  # the job answers with an earlier fault; the worker cannot go on

    def _drop_rest(self, ticket: Ticket) -> None:
        """Drop what waits of a ticket, and stop what runs."""
        ticket.control.stop()
        others = [row for row in self._waiting if row.ticket is not ticket]
        dropped, self._waiting = len(self._waiting) - len(others), others
        self._changed.set()
        ticket.drop(dropped)

    def _note_end(self, ticket: Ticket) -> None:
        error = ticket.error
        if ticket.ended.done() and (error is None or isinstance(error, WorkerError)):
            self._note(error)

    def _measure_left(self, row: Row) -> float:
        """Return the seconds for which a row may still wait for others."""
        return row.ticket.arrived + self._timeout_s - asyncio.get_running_loop().time()
