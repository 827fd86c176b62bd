"""The memory of the pretend device: bytes of the tensors on it, and their peak by phase."""

import weakref
from collections import Counter
from typing import Final

import torch
from torch import Tensor

from tools.pretend.place import find_place

# The allocator of torch rounds every size up to a multiple of this.
ROUNDING: Final = 512


class Memory:
    """Bytes that live on the device, at most `room` (None: no limit).

    `places` say which line of code reached the peak of a phase.

    What is freed is gone at once: the slack of a real allocator and its fragmentation are not
    counted, nor what CUDA and its libraries take for themselves.
    """

    def __init__(self, room: int | None = None) -> None:
        self.room = room
        self.live = 0
        self.phase = "open"
        self.peaks: Counter[str] = Counter()
        self.places: dict[str, str] = {}
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    @property
    def free(self) -> int:
        """Return the bytes that are left of the room; of 1 TB without a limit."""
        return (self.room if self.room is not None else 10**12) - self.live

    @property
    def peak(self) -> int:
        """Return the highest number of bytes since the last reset."""
        return max(self.peaks.values(), default=0)

    def reset(self) -> None:
        """Forget all peaks."""
        self.peaks.clear()
        self.places.clear()

    def enter(self, phase: str) -> str:
        """Count the peak of another phase, and return the name of the one before."""
        before, self.phase = self.phase, phase
        self.peaks[phase] = max(self.peaks[phase], self.live)
        return before

    def add(self, tensor: Tensor) -> None:
        """Count the storage of a tensor until it is freed; raises torch.OutOfMemoryError."""
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        size = -(-storage.nbytes() // ROUNDING) * ROUNDING
        if size > self.free:
            raise torch.OutOfMemoryError(
                f"CUDA out of memory. Tried to allocate {size} bytes, {self.free} are free"
            )
        self._known.add(storage)
        weakref.finalize(storage, self._remove, size)
        self.live += size
        if self.live > self.peaks[self.phase]:
            self.peaks[self.phase] = self.live
            self.places[self.phase] = find_place()

    def _remove(self, size: int) -> None:
        self.live -= size
