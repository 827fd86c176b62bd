"""What one job asks of the lane, and what has become of it, row by row."""

import asyncio
import contextvars
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from worker.jobs.control import JobControl, Stopped
from worker.seam import BatchKey, Made, Model, Wish


@dataclass(frozen=True, slots=True)
class Placed:
    """One thing made, and where: in the lane's batch `batch`, at `index` of `size` rows.

    `waited_ms` is what passed between the job's arrival at the lane and the start of that batch.
    """

    made: Made
    batch: int
    size: int
    index: int
    waited_ms: float

    def describe(self) -> dict[str, int]:
        """Return what a reply says about it."""
        return {"size": self.size, "index": self.index, "waited_ms": round(self.waited_ms)}


def ignore(index: int, placed: Placed) -> None:
    """Do nothing about what was made."""
    del index, placed


class Ticket:
    """What one job asks of one model; `take` returns that model, in the lane's thread.

    Without `may_share` each wish is made alone. `on_made(index, placed)` is called on the event
    loop as each wish is made. The rest is the lane's: how many rows are `left` without an outcome,
    and what came of the others.
    """

    def __init__(
        self,
        model_id: str,
        take: Callable[[], Model],
        wishes: Sequence[Wish],
        control: JobControl,
        *,
        may_share: bool = True,
        on_made: Callable[[int, Placed], None] = ignore,
    ) -> None:
        self.model_id = model_id
        self.take = take
        self.wishes = wishes
        self.control = control
        self.may_share = may_share
        self.left = len(wishes)
        self.placed: dict[int, Placed] = {}
        self.error: Exception | None = None
        self.context = contextvars.copy_context()
        loop = asyncio.get_running_loop()
        self.arrived = loop.time()
        self.ended: asyncio.Future[None] = loop.create_future()
        self._on_made = on_made

    def settle(self, index: int, outcome: Placed | Exception) -> None:
        """Record what became of one wish; the first error counts, but for that of a stop."""
        if isinstance(outcome, Placed):
            self.placed[index] = outcome
            self._on_made(index, outcome)
        elif self.error is None or isinstance(self.error, Stopped):
            self.error = outcome
        self.drop(1)

    def drop(self, count: int) -> None:
        """Wait for so many wishes no longer; the ticket ends with the last."""
        self.left -= count
        if not self.left and not self.ended.done():
            self.ended.set_result(None)

    def take_error(self) -> Exception | None:
        """Return the first error, once: what keeps an error keeps the tensors of its frames."""
        error, self.error = self.error, None
        return error


@dataclass(eq=False, slots=True)
class Row:
    """One wish of a ticket, as it waits and is made; `number` counts the rows of its lane."""

    ticket: Ticket
    index: int
    number: int
    key: BatchKey | None = None
    is_known: bool = False

    @property
    def wish(self) -> Wish:
        """What is to be made."""
        return self.ticket.wishes[self.index]
