"""One stage of training: its state on disk, its time, and how far it is."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch

SAVE_S: Final = 30.0
WARM_STEPS: Final = 30


@dataclass(slots=True)
class Course:
    """A stage that runs for `minutes`, in any number of sessions, and saves itself every 30 s.

    `parts` are what has a state_dict; `file` has them, the steps and the seconds so far.
    """

    file: Path
    minutes: float
    parts: list[Any]
    step: int = 0
    seconds: float = 0.0
    _saved: float = field(default=0.0, init=False)

    def load(self) -> None:
        """Go on where the file is, if there is one."""
        if not self.file.exists():
            return
        state = torch.load(self.file, map_location="cpu", weights_only=True)
        self.step, self.seconds = state["step"], state["seconds"]
        for part, saved in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(saved)

    def save(self) -> None:
        """Write the state, complete or not at all."""
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "parts": [part.state_dict() for part in self.parts],
        }
        self.file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, self.file.with_suffix(".part"))
        self.file.with_suffix(".part").replace(self.file)

    def run(self) -> Iterator[float]:
        """Yield how far the stage is, 0 to 1, before each step until its time is over."""
        began = time.monotonic() - self.seconds
        self._saved = self.seconds
        while (self.seconds / 60) < self.minutes:
            yield self.seconds / 60 / self.minutes
            self.step += 1
            self.seconds = time.monotonic() - began
            if self.seconds - self._saved > SAVE_S:
                self._saved = self.seconds
                self.save()
        self.save()

    def warm(self) -> float:
        """Return a factor of the learning rate for the first steps."""
        return min(1.0, (self.step + 1) / WARM_STEPS)
