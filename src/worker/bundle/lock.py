"""One worker prepares a component while others on its volume wait; only its files are trusted."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import filelock

from worker import log

LOCK_POLL_S: Final = 2.0
# A worker that has changed no file for this long counts as dead. Repeating its work does no harm:
# files are named by their content, and every manifest is renamed into place.
STILL_S: Final = 600.0


@contextmanager
def take_turn(
    path: Path, done: Callable[[], bool], watched: Sequence[Path], still_s: float = STILL_S
) -> Iterator[None]:
    """Wait for a lock, for `done`, or until the `watched` folders stop changing; then go on.

    The caller checks `done` again: where locks work this saves work; it guarantees nothing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path)
    try:
        _wait(lock, done, watched, still_s)
        yield
    finally:
        lock.release()  # if it is locked


def _wait(
    lock: filelock.BaseFileLock,
    done: Callable[[], bool],
    watched: Sequence[Path],
    still_s: float,
) -> None:
    is_logged = False
    while not done():
        try:
            lock.acquire(timeout=LOCK_POLL_S)
        except filelock.Timeout:
            if not is_logged:
                log.get().info("waiting: another worker prepares this", part=watched[0].name)
                is_logged = True
            if time.time() - _find_last_change(watched) > still_s:
                log.get().warning("the worker that prepares this has stopped: going on without it")
                return
        except (OSError, NotImplementedError):
            return  # a file system without locks
        else:
            return


def _find_last_change(folders: Sequence[Path]) -> float:
    """Return when anything in the folders last changed, in seconds since the epoch."""
    latest = 0.0
    for folder in folders:
        for path in (folder, *folder.rglob("*")):
            try:
                latest = max(latest, path.stat().st_mtime)
            except OSError:  # renamed or deleted meanwhile
                continue
    return latest
