"""Rows that are made together: each hears its own steps, ends on its own, and has one outcome."""

import asyncio
from collections.abc import Callable, Sequence

from worker.jobs.control import Stopped
from worker.jobs.ticket import Placed, Row
from worker.media.piece import Piece
from worker.seam import Control, Outcome, Phase

Settle = Callable[["Batch", Row, Placed | Exception], None]


class Batch:
    """One batch of a lane: on the event loop what is open of it, in the lane's thread its making.

    `settle` is called on the event loop with each outcome as it comes; `open` are the rows without.
    """

    def __init__(self, number: int, rows: Sequence[Row], settle: Settle) -> None:
        self.number = number
        self.rows = tuple(rows)
        self.open = set(rows)
        self.size = len(self.rows)
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._settle = settle
        self._stopped: set[Row] = set()

    @property
    def is_broken(self) -> bool:
        """Whether one of its tickets was stopped under way."""
        return bool(self._stopped)

    def stop(self) -> None:
        """Stop all of its tickets."""
        for row in self.rows:
            row.ticket.control.stop()

    def make(self) -> None:
        """Make the rows, in the lane's thread; raises what concerns every row without outcome.

        A row whose ticket was stopped before is left out.
        """
        begun = {row.ticket: _has_begun(row) for row in reversed(self.rows)}
        rows = [row for row in self.rows if begun[row.ticket]]
        for row in self.rows:
            if row not in rows:
                self.end(row)
        if not rows:
            raise Stopped
        self.size = len(rows)
        controls = [_RowControl(self, row) for row in rows]
        outcomes = rows[0].ticket.take().make([row.wish for row in rows], controls)
        for index, (row, outcome) in enumerate(zip(rows, outcomes, strict=True)):
            self._report(row, index, outcome)

    def end(self, row: Row) -> None:
        """Report that a row was stopped, where others go on; else the end of the batch does."""
        self._stopped.add(row)
        if self._stopped.issuperset(self.rows):
            return
        self._loop.call_soon_threadsafe(self._settle, self, row, Stopped())

    def _report(self, row: Row, index: int, outcome: Outcome) -> None:
        result: Placed | Exception
        if isinstance(outcome, Exception):
            result = outcome
        else:
            waited_ms = (self._began - row.ticket.arrived) * 1000
            result = Placed(outcome, self.number, self.size, index, waited_ms)
        self._loop.call_soon_threadsafe(self._settle, self, row, result)


def _has_begun(row: Row) -> bool:
    """Start the row's ticket at it; return whether it goes on."""
    try:
        row.ticket.control.start(row.index)
    except Stopped:
        return False
    return True


class _RowControl(Control):
    """The control of one row."""

    def __init__(self, batch: Batch, row: Row) -> None:
        self._batch, self._row = batch, row

    def report(self, phase: Phase, step: int, steps: int) -> None:
        """Report to the row's job; raises Stopped after a cancel."""
        try:
            self._row.ticket.control.report(self._row.index, phase, step, steps)
        except Stopped:
            self._batch.end(self._row)
            raise

    def hand_over(self, part: Piece) -> None:
        """Pass on a part of what the row is."""
        self._row.ticket.control.hand_over(part)
