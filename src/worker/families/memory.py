"""Device memory that runs out while wishes are made, and that a released model must give back."""

from collections.abc import Callable, Hashable
from typing import TypeVar

from worker.engine import device as devices
from worker.errors import CudaOutOfMemory, DeviceLost
from worker.seam import Phase

T = TypeVar("T")


class Phases:
    """Run the phases of wishes: one that runs out of memory is run again, and that one alone.

    What a phase needed is remembered, so that the next of its kind does not fail first. `forget`
    drops what is cached on the device.
    """

    def __init__(self, forget: Callable[[], None]) -> None:
        self._forget = forget
        self._scarce: set[tuple[Phase, Hashable]] = set()

    def run(
        self, phase: Phase, kind: Hashable, make: Callable[[bool], T], *, has_room: bool = True
    ) -> T:
        """Return what `make(frugal)` makes; after running out of memory, with memory freed.

        It is frugal without `has_room`, and where a phase of this `kind` ran out of memory before.
        Raises CudaOutOfMemory the second time, DeviceLost, and what `make` raises.
        """
        scarce = (phase, kind) in self._scarce
        if scarce:
            devices.free_memory()
        try:
            with devices.translate_errors():
                return make(scarce or not has_room)
        except CudaOutOfMemory:
            pass  # the failed attempt's tensors live in the exception: leave it before freeing
        self._scarce.add((phase, kind))
        self._forget()
        devices.free_memory()
        with devices.translate_errors():
            return make(True)


def check_freed(module: Callable[[], object | None]) -> None:
    """Free the memory of a model that was dropped.

    `module` is a weak reference to a part that no other model uses. Raises DeviceLost when
    something still refers to it: the next model would not fit.
    """
    devices.free_memory()
    if module() is not None:
        raise DeviceLost(
            "the memory of an evicted model was not freed; this worker will be replaced"
        )
