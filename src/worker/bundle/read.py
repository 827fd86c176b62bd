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
from worker.bundle.pinned import PinnedRing, fill_from, note_allocated
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
    on the CPU. Use it as a context manager: once it is left, however it is left, no thread reads
    and nothing is copied any more, and the pinned memory is the system's again.

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
        self._rings: list[PinnedRing] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(cancel_futures=True)
        if self._rings:
            self._leave_rings()

    def _leave_rings(self) -> None:
        """Wait for copies in flight: what they write to may be freed next, and given to others."""
        rings, self._rings, self._own = self._rings, [], threading.local()
        while rings:
            rings.pop().wait()
        # torch keeps pinned memory that is no longer used, 256 MiB of it for a bundle
        torch_c: Any = torch._C  # noqa: SLF001 - torch.accelerator.empty_host_cache came after 2.11
        torch_c._host_emptyCache()  # noqa: SLF001 - see above

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
            self._read(file, place, entry.start, note_allocated(self._device))
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

    def _read(self, file: _File, place: Tensor, offset: int, allocated: Any = None) -> None:
        for start in range(0, len(place), REQUEST_BYTES):
            piece = place[start : start + REQUEST_BYTES]
            file.ranges.append(
                self._pool.submit(self._read_range, file.path, piece, offset + start, allocated)
            )

    def _read_range(self, path: Path, piece: Tensor, offset: int, allocated: Any) -> Any:
        """Read a range and return the event of its copy; None where it is there already."""
        if allocated is None:
            fill_from(path, piece, offset)
            return None
        if not hasattr(self._own, "ring"):
            self._own.ring = PinnedRing(self._device, REQUEST_BYTES)
            self._rings.append(self._own.ring)
        return self._own.ring.copy(path, piece, offset, allocated)
