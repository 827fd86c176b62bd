"""Read safetensors files into tensors on the device: several ranges at once, no second copy."""

import os
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import torch
from safetensors import safe_open
from torch import Tensor

from worker.bundle.layout import Damaged
from worker.bundle.tensors import TensorEntry, read_file_header

# Tensors of this size and more are read into their own memory; runs of smaller ones in one go.
BIG_BYTES: Final = 1 << 20
# One request to the disk; a network volume answers several at once faster than one after another.
REQUEST_BYTES: Final = 16 << 20
READ_THREADS: Final = 8


@dataclass(slots=True)
class _File:
    """A file being read: where each tensor will be, and the reads that must finish first."""

    path: Path
    tensors: dict[str, Tensor] = field(default_factory=dict)
    ranges: list[Future[Any]] = field(default_factory=list)


class FileReader:
    """Read safetensors files from threads while the caller does other things, such as imports.

    Tensors of a MiB and more are read straight into their own memory: on a CPU into the tensor
    itself, on CUDA through two pinned buffers per thread. Smaller ones come as views of one block
    on the CPU. Use it as a context manager.

    With `mapped`, for a CPU, tensors are the kernel's cache of the file, which the threads fill:
    new memory would be touched page by page, and threads that do so wait for each other (2.4 GB
    took 10 s of processor time, 1.3 s of it for reading).
    """

    def __init__(
        self, device: torch.device, threads: int = READ_THREADS, *, mapped: bool = False
    ) -> None:
        self._device = device
        self._mapped = mapped
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="read")
        self._files: dict[Path, _File] = {}
        self._own = threading.local()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def start(self, path: Path) -> None:
        """Start reading a file."""
        file = _File(path)
        if self._mapped:
            for offset in range(0, path.stat().st_size, REQUEST_BYTES):
                file.ranges.append(self._pool.submit(self._cache, path, offset))
            self._files[path] = file
            return
        entries = sorted(read_file_header(path).items(), key=lambda item: item[1].start)
        run: list[tuple[str, TensorEntry]] = []
        for name, entry in entries:
            if entry.end - entry.start < BIG_BYTES:
                run.append((name, entry))
                continue
            self._read_run(file, run)
            run = []
            place = torch.empty(entry.end - entry.start, dtype=torch.uint8, device=self._device)
            file.tensors[name] = place.view(entry.dtype).reshape(entry.shape)
            self._read(file, place, entry.start)
        self._read_run(file, run)
        self._files[path] = file

    def take(self, path: Path) -> dict[str, Tensor]:
        """Wait for a file and return its tensors; raises Damaged when it ends too early."""
        file = self._files.pop(path)
        for future in file.ranges:
            event = future.result()
            if event is not None:
                event.synchronize()
        if self._mapped:
            if path.stat().st_size < (end := max(e.end for e in read_file_header(path).values())):
                raise Damaged(path.parent, f"{path.name} ends before byte {end}")
            with safe_open(path, framework="pt") as mapped:
                return {name: mapped.get_tensor(name) for name in mapped.keys()}  # noqa: SIM118 - no mapping
        return file.tensors

    def _cache(self, path: Path, offset: int) -> None:
        """Read a range into this thread's buffer, only to fill the kernel's cache."""
        if not hasattr(self._own, "buffer"):
            self._own.buffer = memoryview(bytearray(REQUEST_BYTES))
        number = os.open(path, os.O_RDONLY)
        try:
            os.preadv(number, [self._own.buffer], offset)
        finally:
            os.close(number)

    def _read_run(self, file: _File, run: Sequence[tuple[str, TensorEntry]]) -> None:
        """Read neighbouring small tensors in one go; they stay on the CPU."""
        if not run:
            return
        base = run[0][1].start
        block = torch.empty(run[-1][1].end - base, dtype=torch.uint8)
        for name, entry in run:
            part = block[entry.start - base : entry.end - base]
            file.tensors[name] = part.view(entry.dtype).reshape(entry.shape)
        self._read(file, block, base)

    def _read(self, file: _File, place: Tensor, offset: int) -> None:
        for start in range(0, len(place), REQUEST_BYTES):
            piece = place[start : start + REQUEST_BYTES]
            file.ranges.append(
                self._pool.submit(self._read_range, file.path, piece, offset + start)
            )

    def _read_range(self, path: Path, piece: Tensor, offset: int) -> Any:
        if piece.device.type == "cpu":
            _fill(path, piece, offset)
            return None
        return self._copy_through_pinned(path, piece, offset)

    def _copy_through_pinned(self, path: Path, piece: Tensor, offset: int) -> Any:
        """Read into one of this thread's two pinned buffers and copy from it on its own stream."""
        own = self._own
        if not hasattr(own, "stream"):
            own.stream = torch.cuda.Stream(self._device)
            own.stream.wait_stream(torch.cuda.default_stream(self._device))
            own.buffers = [
                torch.empty(REQUEST_BYTES, dtype=torch.uint8, pin_memory=True) for _ in range(2)
            ]
            own.events = [None, None]
            own.turn = 0
        own.turn = 1 - own.turn
        if own.events[own.turn] is not None:
            own.events[own.turn].synchronize()
        pinned = own.buffers[own.turn][: len(piece)]
        _fill(path, pinned, offset)
        with torch.cuda.stream(own.stream):
            piece.copy_(pinned, non_blocking=True)
            event = torch.cuda.Event()
            event.record(own.stream)
        own.events[own.turn] = event
        return event


def _fill(path: Path, place: Tensor, offset: int) -> None:
    """Fill `place` (uint8, on the CPU) with the bytes from `offset` on."""
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
