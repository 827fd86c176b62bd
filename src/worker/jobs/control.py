"""How the making of wishes communicates with their job: progress goes out, a cancel comes in."""

import threading
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from itertools import accumulate
from typing import Any

from worker.media.piece import Piece
from worker.seam import Control, Phase
from worker.tasks.task import Span


class Stopped(Exception):
    """Unwind the lane: the job was cancelled, and nothing waits for what it makes."""


class JobControl:
    """The control of one job, for all of its `wishes`.

    `publish` takes the updates, in the lane's thread, and `hand_over` the parts of what is made.
    `spans` are the phases of one wish;
    `steps` is how many are counted per wish, as far as that is known before the first is made.
    """

    def __init__(
        self,
        publish: Callable[[Mapping[str, Any]], None],
        spans: Sequence[Span],
        wishes: int,
        steps: int,
        hand_over: Callable[[Piece], None] | None = None,
    ) -> None:
        phases = [span.phase for span in spans]
        begins = accumulate((span.percent for span in spans), initial=0)
        self._publish = publish
        self._hand_over = hand_over
        self._spans = {
            span.phase: (begin, span.percent) for span, begin in zip(spans, begins, strict=False)
        }
        self._counted = next((span.phase for span in spans if span.steps), None)
        counted = len(phases) if self._counted is None else phases.index(self._counted)
        self._after = frozenset(phases[counted + 1 :])
        self._wishes = wishes
        self._steps = steps
        self._made = 0
        self._shares: dict[int, Fraction] = {}
        self._counts: dict[int, int] = {}
        self._done = 0
        self._percent = 0
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Make the next report, which is at most one step away, raise Stopped."""
        self._stopped.set()

    @property
    def is_stopped(self) -> bool:
        """Whether the job was stopped."""
        return self._stopped.is_set()

    def start(self, wish: int) -> None:
        """Count all wishes before this one, from 0, as made; raises Stopped after a cancel."""
        self._made = wish
        self._shares.clear()
        self._counts.clear()
        self._check()

    def follow(self, wish: int) -> Control:
        """Return the control of one wish, from 0."""
        return _WishControl(self, wish)

    def report(self, wish: int, phase: Phase, step: int, steps: int) -> None:
        """Record that `step` of `steps` of a wish's phase is done; raises Stopped after a cancel.

        Callers see the counted steps of all wishes as one count, and `percent` counts the other
        phases too. Neither falls: when a wish is made again after a failure, both wait until
        it is as far as before.
        """
        self._check()
        if phase == self._counted:
            self._steps = steps
            self._counts[wish] = step
        else:
            self._counts[wish] = self._steps if phase in self._after else 0
        begin, share = self._spans[phase]
        self._shares[wish] = begin + Fraction(share * step, steps)
        percent = (100 * self._made + sum(self._shares.values())) // self._wishes
        self._done = max(self._done, self._made * self._steps + sum(self._counts.values()))
        self._percent = max(self._percent, int(percent))
        self._publish(
            {
                "step": self._done,
                "steps": max(self._wishes * self._steps, self._done),
                "phase": phase,
                "percent": self._percent,
            }
        )

    def hand_over(self, part: Piece) -> None:
        """Pass on a part of what is made, where the job has it sent."""
        if self._hand_over is not None:
            self._hand_over(part)

    def _check(self) -> None:
        if self.is_stopped:
            raise Stopped


class _WishControl(Control):
    """The control of one wish of a job."""

    def __init__(self, job: JobControl, wish: int) -> None:
        self._job, self._wish = job, wish

    def report(self, phase: Phase, step: int, steps: int) -> None:
        """Report to the job; raises Stopped after a cancel."""
        self._job.report(self._wish, phase, step, steps)

    def hand_over(self, part: Piece) -> None:
        """Pass on a part of what is made."""
        self._job.hand_over(part)
