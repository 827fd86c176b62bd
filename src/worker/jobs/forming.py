"""Which of the waiting rows are made together: the oldest, and those after it of an equal key."""

from collections.abc import Callable, Sequence

from worker import log
from worker.jobs.ticket import Row
from worker.seam import BatchKey, Model


class Caps:
    """How many rows a batch may have: at most `size`, and `max_pixels` of all of them together.

    The cap of a key that ran out of memory is halved, for as long as the process runs.
    """

    def __init__(self, size: int, max_pixels: int) -> None:
        self.size = size
        self._max_pixels = max_pixels
        self._lowered: dict[tuple[str, BatchKey], int] = {}

    def limit(self, row: Row) -> int:
        """Return how many rows may share forwards with this one, itself included."""
        if row.key is None:
            return 1
        lowered = self._lowered.get((row.ticket.model_id, row.key), self.size)
        fitting = self._max_pixels // row.key.pixels if row.key.pixels else self.size
        return max(1, min(self.size, fitting, lowered))

    def reduce(self, row: Row, rows: int) -> int:
        """Halve the cap for the key of a batch that had so many rows, and return it."""
        cap = max(1, rows // 2)
        if row.key is not None:
            self._lowered[row.ticket.model_id, row.key] = cap
        return cap


def choose(take: Callable[[], Model], rows: Sequence[Row], caps: Caps) -> tuple[list[Row], int]:
    """Choose among the waiting rows, oldest first: the next batch, and how many it may have.

    The oldest is always in it, so that no key keeps another waiting: before any row there are at
    most as many batches as older rows. Called in the lane's thread; raises what `take` raises.
    """
    model, first = take(), rows[0]
    _find_key(model, first)
    most = caps.limit(first)
    chosen = [first]
    for row in rows[1:]:
        if len(chosen) == most:
            break
        if row.ticket.model_id != first.ticket.model_id:
            continue
        _find_key(model, row)
        if row.key == first.key:
            chosen.append(row)
    return chosen, most


def _find_key(model: Model, row: Row) -> None:
    """Find a row's key, once; one whose key cannot be found is made alone."""
    if row.is_known:
        return
    row.is_known = True
    if row.ticket.may_share:
        try:
            row.key = model.make_key(row.wish)
        except Exception:  # noqa: BLE001 - whatever it is, it must end no other job
            log.get().exception("no batch key")
