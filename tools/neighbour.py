"""A noisy neighbour on the same machine: it keeps every processor and the disk busy."""

import contextlib
import hashlib
import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

BLOCK: Final = bytes(1 << 20)
FILE_BLOCKS: Final = 64


@contextlib.contextmanager
def busy(folder: Path, *, computing: bool = True) -> Iterator[None]:
    """Compute in one process per processor, and write and sync a file in `folder` in another.

    Without `computing` it keeps only the disk busy.
    """
    folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    parent = os.getpid()
    processors = (os.cpu_count() or 1) if computing else 0
    processes = [
        *(context.Process(target=_compute, args=(parent,)) for _ in range(processors)),
        context.Process(target=_write, args=(parent, folder / "neighbour")),
    ]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.join()
        (folder / "neighbour").unlink(missing_ok=True)


def _compute(parent: int) -> None:
    while os.getppid() == parent:  # end with the process that started it
        hashlib.sha256(BLOCK)


def _write(parent: int, path: Path) -> None:
    while os.getppid() == parent:
        with path.open("wb") as file:
            for _ in range(FILE_BLOCKS):
                file.write(BLOCK)
            file.flush()
            os.fsync(file.fileno())
