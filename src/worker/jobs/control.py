"""How a running picture talks to its job: progress goes out, a cancel comes in."""

import threading
from collections.abc import Callable, Mapping
from typing import Any, Final

from worker.families import Control, Phase
from worker.jobs.device_thread import Stopped

# How much of a picture is done, in percent, when a phase begins and when it ends (est.): denoising
# is nearly all of it.
SPANS: Final[Mapping[Phase, tuple[int, int]]] = {
    "text": (0, 4),
    "reference": (4, 8),
    "denoise": (8, 96),
    "decode": (96, 100),
}


class JobControl(Control):
    """The control of one job, for all of its `pictures` one after the other.

    `tell` gets the updates, from the device's thread. `steps` are those of one picture, as far as
    they are known before the first is denoised.
    """

    def __init__(
        self, tell: Callable[[Mapping[str, Any]], None], pictures: int, steps: int = 1
    ) -> None:
        self._tell = tell
        self._pictures = pictures
        self._steps = steps
        self._picture = 0
        self._done = 0
        self._percent = 0
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Let the next report, which is at most one step away, raise Stopped."""
        self._stopped.set()

    def start(self, picture: int) -> None:
        """Tell which picture is next, from 0; raises Stopped after a cancel."""
        self._picture = picture
        self._check()

    def report(self, phase: Phase, step: int, steps: int) -> None:
        """Tell that `step` of `steps` of a phase is done; raises Stopped after a cancel.

        Callers see the denoising steps of all pictures as one count, and `percent` counts the other
        phases too. Neither falls, also when a picture is drawn once more after it failed: then they
        wait until it is as far again.
        """
        self._check()
        if phase == "denoise":
            self._steps = steps
        first = self._picture * self._steps
        done = {"denoise": first + step, "decode": first + self._steps}.get(phase, first)
        begin, end = SPANS[phase]
        part = begin * steps + (end - begin) * step
        percent = (self._picture * 100 * steps + part) // (self._pictures * steps)
        self._done = max(self._done, done)
        self._percent = max(self._percent, percent)
        self._tell(
            {
                "step": self._done,
                "steps": max(self._pictures * self._steps, self._done),
                "phase": phase,
                "percent": self._percent,
            }
        )

    def _check(self) -> None:
        if self._stopped.is_set():
            raise Stopped
