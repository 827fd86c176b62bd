"""Wishes that share forwards: each of them hears every step, and each may end on its own."""

from collections.abc import Sequence

from worker.media.piece import Piece
from worker.seam import Control, Phase


class Sharing(Control):
    """The control of wishes that are made together: each of them hears what it hears.

    What a wish's own control raises ends that wish alone. With `drops`, its row can leave the
    forwards; without, the shape of the batch stays as it is, and so do the roundings of the others:
    which kernel a GPU picks, and in which order it sums, depends on the shape.
    """

    def __init__(self, controls: Sequence[Control], *, drops: bool) -> None:
        self._controls = controls
        self._drops = drops
        self._rows = list(range(len(controls)))
        self._ended: dict[int, Exception] = {}

    def report(self, phase: Phase, step: int, steps: int) -> None:
        """Report to every wish that is still made; raises what ended the last of them."""
        ended: Exception | None = None
        for place, control in enumerate(self._controls):
            if place in self._ended:
                continue
            try:
                control.report(phase, step, steps)
            except Exception as error:  # noqa: BLE001 - whatever it is, it concerns one wish
                ended = self._ended[place] = error.with_traceback(None)
        if ended is not None and len(self._ended) == len(self._controls):
            raise ended

    def hand_over_to(self, place: int, part: Piece) -> None:
        """Pass on a part of what one wish is, by its place."""
        self._controls[place].hand_over(part)

    def find_end(self, place: int) -> Exception | None:
        """Return what ended a wish, by its place; None while it is made."""
        return self._ended.get(place)

    def find_row(self, place: int) -> int:
        """Return in which row of the forwards a wish is that has not ended."""
        return self._rows.index(place)

    def drop_ended(self) -> list[int] | None:
        """Return which of their rows the forwards go on with; None: with all of them."""
        kept = [row for row, place in enumerate(self._rows) if place not in self._ended]
        if not self._drops or len(kept) == len(self._rows):
            return None
        self._rows = [self._rows[row] for row in kept]
        return kept
