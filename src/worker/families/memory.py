"""Device memory that runs out while a wish is made, and that a released model must give back."""

from collections.abc import Callable
from typing import Protocol, TypeVar

from worker.engine import device as devices
from worker.errors import CudaOutOfMemory, DeviceLost

T = TypeVar("T")


class Tile(Protocol):
    """Switch the decoding in tiles on or off: less memory, faint seams."""

    def __call__(self, *, on: bool) -> None:
        """Decode in tiles from now on, or not."""


def make_or_retry(make: Callable[[], T], *, forget: Callable[[], None], tile: Tile) -> T:
    """Make something, and after running out of memory retry with memory freed and tiling on.

    `forget` drops what is cached. Raises CudaOutOfMemory the second time.
    """
    try:
        return make()
    except CudaOutOfMemory:
        pass  # the failed attempt's tensors live in the exception: leave it before freeing
    forget()
    devices.free_memory()
    tile(on=True)
    try:
        return make()
    finally:
        tile(on=False)
        devices.free_memory()


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
