"""What a run did on the pretend device, by phase: operations, kernels, bytes, waits, mistakes."""

from collections import Counter
from dataclasses import dataclass, field

from tools.pretend.place import find_place


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened in a phase at a place in the code; `is_repeated` in every step."""

    phase: str
    what: str
    place: str
    is_repeated: bool = False

    def __str__(self) -> str:
        return f"{self.what} at {self.place} ({self.phase})"


@dataclass(slots=True)
class Ledger:
    """Counts by phase, and events: `step` counts the steps of a loop that are done.

    `waits` are reads of the device's values by the host and blocking copies: the CPU stands still
    until the device has caught up. `mixed` are operands on different devices. `masked` are masks
    that reach attention: with one, flash attention is off.
    """

    phase: str = "open"
    step: int = 0
    operations: Counter[str] = field(default_factory=Counter)
    kernels: Counter[str] = field(default_factory=Counter)
    moved: Counter[str] = field(default_factory=Counter)
    # without the products of matrices, convolutions and attention
    pointwise: Counter[str] = field(default_factory=Counter)
    # operations of attention alone
    attention: Counter[str] = field(default_factory=Counter)
    waits: Counter[Event] = field(default_factory=Counter)
    mixed: Counter[Event] = field(default_factory=Counter)
    masked: Counter[Event] = field(default_factory=Counter)

    def add_kernel(self, moved: int, operations: int = 0, *, is_product: bool = False) -> None:
        """Count a kernel, the bytes that it reads and writes, and its operations."""
        self.kernels[self.phase] += 1
        self.moved[self.phase] += moved
        self.operations[self.phase] += operations
        if not is_product:
            self.pointwise[self.phase] += moved

    def add_wait(self, what: str) -> None:
        """Count a wait of the host; from the second step on, it comes in every step."""
        self.waits[self._make_event(what)] += 1

    def add_mixed(self, what: str) -> None:
        """Count operands on different devices."""
        self.mixed[self._make_event(what)] += 1

    def add_masked(self, what: str) -> None:
        """Count a mask that reaches attention."""
        self.masked[self._make_event(what)] += 1

    def list_repeated(self) -> list[Event]:
        """Return the waits that come in every step."""
        return [event for event in self.waits if event.is_repeated]

    def _make_event(self, what: str) -> Event:
        return Event(self.phase, what, find_place(), self.phase == "denoise" and self.step > 0)
