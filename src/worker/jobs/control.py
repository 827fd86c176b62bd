"""How a running picture talks to its job: progress goes out, a cancel comes in."""

import threading
from collections.abc import Callable, Mapping
from typing import Any

from worker.families import Control, Phase
from worker.jobs.device_thread import Stopped


class JobControl(Control):
    """The control of one job, for all of its `pictures` one after the other.

    `tell` gets the updates, from the device's thread.
    """

    def __init__(self, tell: Callable[[Mapping[str, Any]], None], pictures: int) -> None:
        self._tell = tell
        self._pictures = pictures
        self._picture = 0
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

        Callers see the steps of all pictures as one count, so that it only grows.
        """
        self._check()
        done = self._picture * steps + step
        self._tell({"step": done, "steps": self._pictures * steps, "phase": phase})

    def _check(self) -> None:
        if self._stopped.is_set():
            raise Stopped
