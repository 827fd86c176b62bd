"""Bytes of a file -> the GPU through pinned memory, on a stream of their own."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worker.bundle.layout import Damaged


def note_allocated(device: torch.device) -> Any:
    """Return an event after which memory allocated on a GPU so far is free of earlier work.

    torch gives memory again as soon as the work that used it is queued: only the stream on which it
    was allocated may use it at once. None on a CPU.
    """
    if device.type != "cuda":
        return None
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return event


class PinnedRing:
    """Two pinned buffers that one thread fills and copies from in turn, on its own stream."""

    def __init__(self, device: torch.device, size: int) -> None:
        self._stream = torch.cuda.Stream(device)
        self._buffers = [torch.empty(size, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
        self._copied: list[Any] = [None, None]
        self._turn = 0

    def copy(self, path: Path, place: Tensor, offset: int, allocated: Any) -> Any:
        """Copy the bytes from `offset` on to `place` (uint8, at most a buffer's size).

        `allocated` is an event after which it may be written to. Returns the event of the copy.
        Raises Damaged when the file ends too early.
        """
        self._turn = 1 - self._turn
        if self._copied[self._turn] is not None:
            self._copied[self._turn].synchronize()
        pinned = self._buffers[self._turn][: len(place)]
        fill_from(path, pinned, offset)
        self._stream.wait_event(allocated)
        with torch.cuda.stream(self._stream):
            place.copy_(pinned, non_blocking=True)
            event = torch.cuda.Event()
            event.record(self._stream)
        self._copied[self._turn] = event
        return event

    def wait(self) -> None:
        """Wait until nothing is copied any more."""
        self._stream.synchronize()


def fill_from(path: Path, place: Tensor, offset: int) -> None:
    """Fill `place` (uint8, on the CPU) with the bytes from `offset` on.

    Raises Damaged when the file ends too early.
    """
    array: Any = place.numpy()
    view = memoryview(array)
    number = os.open(path, os.O_RDONLY)
    try:
        while view:
            count = os.preadv(number, [view], offset)
            if count == 0:
                raise Damaged(path.parent, f"{path.name} ends before byte {offset + len(view)}")
            view, offset = view[count:], offset + count
    finally:
        os.close(number)
