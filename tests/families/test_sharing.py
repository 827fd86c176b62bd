"""Wishes that are made together: each hears every step, and each may end alone."""

from typing import Any

import pytest

from worker.families.sharing import Sharing
from worker.seam import Control


class Ending(Control):
    """A control that records what it hears, and ends its wish at one step."""

    def __init__(self, end: int = 99) -> None:
        self.heard: list[tuple[str, int, int]] = []
        self._end = end

    def report(self, phase: str, step: int, steps: int) -> None:
        """Record, or end."""
        self.heard.append((phase, step, steps))
        if step == self._end:
            raise InterruptedError(step)


def test_every_wish_hears_every_step_until_it_ends() -> None:
    controls = [Ending(), Ending(2), Ending()]
    sharing = Sharing(controls, drops=True)
    for step in (1, 2, 3):
        sharing.report("denoise", step, 3)
    assert [len(control.heard) for control in controls] == [3, 2, 3]
    assert controls[0].heard == [("denoise", step, 3) for step in (1, 2, 3)]
    assert [type(sharing.find_end(place)) for place in range(3)] == [
        type(None),
        InterruptedError,
        type(None),
    ]


def test_the_rows_of_those_that_ended_leave_once_and_the_others_are_found() -> None:
    sharing = Sharing([Ending(2), Ending(), Ending(1), Ending()], drops=True)
    assert sharing.drop_ended() is None
    sharing.report("denoise", 1, 9)
    assert sharing.drop_ended() == [0, 1, 3]
    assert sharing.drop_ended() is None
    assert [sharing.find_row(place) for place in (0, 1, 3)] == [0, 1, 2]
    sharing.report("denoise", 2, 9)
    assert sharing.drop_ended() == [1, 2]  # of the three rows that were left
    assert [sharing.find_row(place) for place in (1, 3)] == [0, 1]


def test_where_the_shape_must_stay_no_row_leaves() -> None:
    sharing = Sharing([Ending(1), Ending()], drops=False)
    sharing.report("denoise", 1, 9)
    assert sharing.drop_ended() is None
    assert sharing.find_row(1) == 1
    assert isinstance(sharing.find_end(0), InterruptedError)


@pytest.mark.parametrize("ends", [(1, 1), (1, 2), (2, 1)])
def test_the_end_of_the_last_ends_them_all(ends: tuple[int, ...]) -> None:
    sharing = Sharing([Ending(end) for end in ends], drops=True)
    for step in range(1, max(ends)):
        sharing.report("denoise", step, 9)
    with pytest.raises(InterruptedError) as raised:
        sharing.report("denoise", max(ends), 9)
    assert raised.value.args == (max(ends),)


def test_what_ended_a_wish_keeps_no_frame_alive() -> None:
    sharing: Any = Sharing([Ending(1), Ending()], drops=True)
    sharing.report("denoise", 1, 9)
    assert sharing.find_end(0).__traceback__ is None
