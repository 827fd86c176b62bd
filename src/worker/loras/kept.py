"""The LoRAs that were fetched, kept on the volume by their digest, in a bound of bytes.

MODEL_DIR/loras has `<sha256>.safetensors`, whose date says when it was last used; `sources/`, one
small file for each place that was fetched from, named by a digest since a URL may contain a secret;
and `locks/`, a file for each place that is being fetched from. There is no index: whatever a killed
worker leaves, each file is complete or a part.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Final

import filelock
from pydantic import TypeAdapter, ValidationError

from worker import log
from worker.errors import LoraFetchFailed
from worker.settings import Settings
from worker.weights import space, temporary

FOLDER: Final = "loras"
KEPT_ENDING: Final = ".safetensors"
# A place that was asked this long ago is asked again whether it still has the same file.
FRESH_S: Final = 3600.0
LOCKS: Final = "locks"
GB: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Fetched:
    """What a place had: the file's sha256 and size in bytes, and its adapter_config.json.

    `tag` is by what the place says that nothing has changed: an ETag; None where it never does.
    `asked` is when it was asked, in seconds since the epoch.
    """

    sha256: str
    size: int
    configuration: str | None = None
    tag: str | None = None
    asked: float = 0.0

    @property
    def is_fresh(self) -> bool:
        """Whether the place was asked a short while ago."""
        return 0 <= time.time() - self.asked < FRESH_S


_FETCHED: Final = TypeAdapter(Fetched)


def choose_folder(settings: Settings) -> Path:
    """Return where fetched LoRAs are kept: MODEL_DIR, else a temporary folder."""
    if space.is_writable(settings.home):
        return settings.home / FOLDER
    return Path(tempfile.gettempdir()) / f"worker-{FOLDER}"


def make_place_key(*words: str | None) -> str:
    """Return a name for the place that these words mean, in hex."""
    return hashlib.sha256("\0".join(word or "" for word in words).encode()).hexdigest()


class KeptLoras:
    """The kept LoRAs of one folder, which several workers may share."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self._folder = folder
        self._settings = settings

    def find(self, key: str) -> Fetched | None:
        """Return what a place had when it was asked; None unless that is kept."""
        try:
            found = _FETCHED.validate_json(self._name_source(key).read_bytes())
            size = self.make_path(found.sha256).stat().st_size
        except (OSError, ValidationError):
            return None
        return found if size == found.size else None

    def has(self, sha256: str, size: int) -> bool:
        """Return whether a file is kept."""
        try:
            return self.make_path(sha256).stat().st_size == size
        except OSError:
            return False

    def make_path(self, sha256: str) -> Path:
        """Return where the file of that digest is, or would be."""
        return self._folder / f"{sha256}{KEPT_ENDING}"

    def make_lock(self, key: str) -> filelock.BaseFileLock:
        """Return the lock of a place: one worker fetches from it while others wait.

        Each place has a file of its own, so that a site that says nothing holds up no other.
        """
        path = self._folder / LOCKS / f"{key}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        return filelock.FileLock(path)

    def release(self, lock: filelock.BaseFileLock) -> None:
        """Let the next worker fetch, and delete the file: callers would fill the volume with them.

        Who waits for a file that was deleted finds that out, and makes it anew. The file goes
        first: afterwards it may be the next one's.
        """
        with contextlib.suppress(OSError):
            Path(lock.lock_file).unlink()
        lock.release()

    def make_part(self, key: str) -> Path:
        """Return a name for what is fetched once there is room, which nothing else uses."""
        return temporary.make_path(self._folder / key)

    def keep(self, part: Path, key: str, fetched: Fetched) -> None:
        """Give a verified file its name, and record where it came from; raises VolumeFull."""
        with space.translate_errors(fetched.size, self._folder, self._settings):
            temporary.publish(part, self.make_path(fetched.sha256))
            self.record(key, fetched)

    def record(self, key: str, fetched: Fetched) -> None:
        """Record what a place has; the file must be kept. Raises VolumeFull."""
        data = _FETCHED.dump_json(replace(fetched, asked=time.time()))
        path = self._name_source(key)
        part = temporary.make_path(path)
        with space.translate_errors(len(data), self._folder, self._settings):
            path.parent.mkdir(exist_ok=True)
            part.write_bytes(data)
            part.replace(path)

    def open(self, sha256: str) -> BinaryIO | None:
        """Return a kept file, opened, marked as used, and not evicted until it is closed.

        None when it is not there. Where the file system has no locks it may be evicted: the worker
        that needs it then fails its job with an error that says to try again.
        """
        path = self.make_path(sha256)
        try:
            file = path.open("rb")
        except OSError:
            return None
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        # between opening and locking it may have been evicted
        if not os.fstat(file.fileno()).st_nlink:
            file.close()
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return file

    def make_room(self, needed: int) -> None:
        """Evict the least recently used until `needed` bytes more are within LORA_CACHE_GB.

        Also until they fit on the disk. What a dead worker left is deleted first; a file in use
        stays. Raises VolumeFull, and LoraFetchFailed when all that fills the bound is in use.
        """
        with space.translate_errors(needed, self._folder, self._settings):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._sweep()
        limit = int(self._settings.lora_cache_gb * GB)
        reserve = int(self._settings.min_storage_free_gb * GB)
        free = space.free_bytes(self._folder, self._settings)
        kept = sorted(self._list_kept())
        used = sum(size for _, size, _ in kept) + sum(self._list_part_sizes())
        for _, size, path in kept:
            if used + needed <= limit and needed + reserve <= free:
                break
            if self._evict(path):
                used, free = used - size, free + size
        if needed + reserve > free:
            space.require_space(needed, self._folder, self._settings)
        if used + needed > limit:
            raise LoraFetchFailed("other jobs use all that LORA_CACHE_GB has room for; try again")

    def _evict(self, path: Path) -> bool:
        """Delete a file that no worker uses; return whether it is gone."""
        with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            except OSError:
                pass  # a file system without locks
            path.unlink()
            log.get().info("lora evicted", digest=path.stem)
        return True

    def _list_kept(self) -> Iterator[tuple[int, int, Path]]:
        """Yield when each file was last used, in ns, its size in bytes and its path."""
        for path in self._folder.glob(f"*{KEPT_ENDING}"):
            with contextlib.suppress(OSError):  # evicted by another worker
                state = path.stat()
                yield state.st_mtime_ns, state.st_size, path

    def _list_part_sizes(self) -> Iterator[int]:
        for part in self._folder.glob(f".*{temporary.SUFFIX}"):
            for path in (part, *part.rglob("*")):
                with contextlib.suppress(OSError):
                    yield path.stat().st_size if path.is_file() else 0

    def _sweep(self) -> None:
        """Delete what dead workers left, and the records of files that are gone."""
        for part in self._folder.rglob(f".*{temporary.SUFFIX}"):
            inner = list(part.rglob(f".*{temporary.SUFFIX}"))
            if part.is_dir() and all(map(temporary.is_orphan, (part, *inner))):
                shutil.rmtree(part, ignore_errors=True)
        temporary.sweep(self._folder)
        for path in (self._folder / LOCKS).glob("*.lock"):
            lock = filelock.FileLock(path)
            # filelock.Timeout, an OSError: it is in use; else a file system without locks
            with contextlib.suppress(OSError, NotImplementedError):
                lock.acquire(blocking=False)
                self.release(lock)
        for path in (self._folder / "sources").glob("*.json"):
            if self.find(path.stem) is None:
                path.unlink(missing_ok=True)

    def _name_source(self, key: str) -> Path:
        return self._folder / "sources" / f"{key}.json"
