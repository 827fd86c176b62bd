"""One worker prepares a component while the others of its volume wait; the files stay the truth."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import filelock

from worker import log

LOCK_POLL_S: Final = 2.0
# A holder that has changed no file for this long is taken for dead. Doing its work again does no
# harm: every file has its content's name and every manifest is renamed into place.
STILL_S: Final = 600.0


@contextmanager
def take_turn(
    path: Path, done: Callable[[], bool], watched: Sequence[Path], still_s: float = STILL_S
) -> Iterator[None]:
    """Wait for a lock, for `done`, or for `watched` folders to stand still; then go on.

    The caller checks `done` again: the lock saves work where locks work and promises nothing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path)
    held = False
    try:
        held = _wait(lock, done, watched, still_s)
        yield
    finally:
        if held:
            lock.release()


def _wait(
    lock: filelock.BaseFileLock,
    done: Callable[[], bool],
    watched: Sequence[Path],
    still_s: float,
) -> bool:
    said = False
    while not done():
        try:
            lock.acquire(timeout=LOCK_POLL_S)
        except filelock.Timeout:
            if not said:
                log.get().info("waiting: another worker prepares this", part=watched[0].name)
                said = True
            if time.time() - _changed(watched) > still_s:
                log.get().warning("the worker that prepares this stands still: going on without it")
                return False
        except (OSError, NotImplementedError):
            return False  # a file system without locks
        else:
            return True
    return False


def _changed(folders: Sequence[Path]) -> float:
    """Return when anything below the folders last changed, in seconds since the epoch."""
    latest = 0.0
    for folder in folders:
        for path in (folder, *folder.rglob("*")):
            try:
                latest = max(latest, path.stat().st_mtime)
            except OSError:  # renamed or deleted meanwhile
                continue
    return latest
