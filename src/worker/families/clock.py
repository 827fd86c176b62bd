"""How long each phase of one wish took, by the clock of the host, the device included."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from worker.engine import device as devices
from worker.seam import Phase


@dataclass(slots=True)
class Clock:
    """Milliseconds by phase; a phase ends when the device has finished it."""

    device: torch.device
    spent: dict[Phase, float] = field(default_factory=dict)

    @contextmanager
    def measure_phase(self, name: Phase) -> Iterator[None]:
        """Add what runs inside to a phase."""
        start = time.perf_counter()
        try:
            yield
        finally:
            devices.synchronize(self.device)
            elapsed = (time.perf_counter() - start) * 1000
            self.spent[name] = self.spent.get(name, 0.0) + elapsed
