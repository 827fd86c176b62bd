"""A hub repository at one commit: each file fetched once, proven, and only then named."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import filelock

from worker.errors import HubUnreachable
from worker.settings import Settings
from worker.weights import parallel, sequential, space, temporary
from worker.weights.address import Hub
from worker.weights.proof import RemoteFile, difference, digests, digests_of
from worker.weights.retry import Again, Missing, Patience, WrongBytes
from worker.weights.snapshot import Progress, Proven, Snapshot, quiet

# Below this hf_transfer has nothing to split; one request is faster than a process.
PARALLEL_FROM_BYTES: Final = 16 * 1024 * 1024
# hf_transfer's tries of a file before the sequential way takes over.
PARALLEL_TRIES: Final = 2
# A sequential attempt that moved on by this much is not counted as a failed one.
PROGRESS_BYTES: Final = 8 * 1024 * 1024
POLL_S: Final = 0.2
BLOCK_BYTES: Final = 512  # POSIX counts st_blocks in these

T = TypeVar("T")


class Holes(Again):
    """A range was never written: hf_transfer does not notice when the disk refuses one.

    Seen with ENOSPC on tmpfs; the sequential way gets the disk's own answer.
    """


@dataclass(frozen=True)
class HubSnapshot:
    """One commit of a hub repository; thread-safe, files may be fetched side by side.

    `kept` is the record of the commit on the volume: it is deleted when the hub does not have a
    file of the commit any more, so that the next start asks for the revision again.
    """

    repository: str
    commit: str
    files: tuple[RemoteFile, ...]
    settings: Settings
    hub: Hub
    patience: Patience
    parallel_from: int = PARALLEL_FROM_BYTES
    range_bytes: int = parallel.RANGE_BYTES
    kept: Path | None = None

    def digest(self, file: RemoteFile) -> str:
        """Return "sha256:..." or "git:..." as the hub recorded it."""
        return f"sha256:{file.sha256}" if file.sha256 else f"git:{file.blob_id}"

    def fetch_file(self, file: RemoteFile, into: Path, progress: Progress = quiet) -> Proven:
        """Return `into`/path, proven: downloaded, or found there and read again.

        Two processes that want the same file take turns by a lock where locks work; where they do
        not, both download it under names of their own, and the last rename wins with the same
        bytes. Raises WeightsUnavailable, HubUnreachable when trying later may help, VolumeFull.
        """
        target = into / file.path
        with space.writing(file.size, into, self.settings):
            target.parent.mkdir(parents=True, exist_ok=True)
            with _turn(target, self.patience.stall_s):
                own = self._already(file, target) or self._download(file, target, progress)
        progress(file, file.size)
        return Proven(target, own, disposable=True)

    def read_range(self, file: RemoteFile, start: int, end: int) -> bytes:
        """Return bytes `start` up to `end`; their number is checked, their content cannot be.

        TLS keeps them as they were sent; over plain http they are read twice and must agree. Raises
        WeightsUnavailable, HubUnreachable when trying later may help.
        """

        def read() -> bytes:
            data = self._range(file, start, end)
            if not self.hub.endpoint.startswith("https:") and data != self._range(file, start, end):
                raise Again("two readings of the same bytes differ")
            return data

        return self._patiently(file, read)

    def read_file(self, file: RemoteFile) -> bytes:
        """Return a small file's bytes, proven. Raises as `fetch_file`."""

        def read() -> bytes:
            data = self._range(file, 0, file.size)
            if reason := difference(digests_of(data), file):
                raise WrongBytes(f"the hub's bytes are not the ones that it recorded ({reason})")
            return data

        return self._patiently(file, read)

    def _range(self, file: RemoteFile, start: int, end: int) -> bytes:
        return sequential.read_range(self.hub, self._url(file), file, start, end, self.patience)

    def _url(self, file: RemoteFile) -> str:
        return self.hub.address(self.repository, self.commit, file.path)

    def _already(self, file: RemoteFile, target: Path) -> str | None:
        """Return our sha256 of a file that is there and right; a damaged one is taken away."""
        try:
            found = digests(target, blob_id=file.sha256 is None)
        except FileNotFoundError:  # a worker that needs it no more may drop it at any time
            return None
        if difference(found, file) is None:
            return found.sha256
        target.unlink(missing_ok=True)
        return None

    def _download(self, file: RemoteFile, target: Path, progress: Progress) -> str:
        part = temporary.adopt(target)
        space.require(
            file.size - (part.stat().st_size if part else 0), target.parent, self.settings
        )
        tries = 0
        part = part or temporary.unique(target, resumable=True)

        def attempt() -> str:
            nonlocal tries
            tries += 1
            if file.size >= self.parallel_from and tries <= PARALLEL_TRIES and not part.exists():
                try:
                    return self._in_parallel(file, target, progress)
                except Holes:
                    tries = PARALLEL_TRIES
                    raise
            return self._in_sequence(file, target, part, progress)

        try:
            return self._patiently(file, attempt)
        except HubUnreachable:
            raise  # the next start goes on with the part
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def _in_parallel(self, file: RemoteFile, target: Path, progress: Progress) -> str:
        part = temporary.unique(target)
        try:
            parallel.download(
                self.hub,
                self._url(file),
                file,
                part,
                self.patience,
                lambda done: progress(file, done),
                workers=self.settings.download_workers,
                range_bytes=self.range_bytes,
            )
            return self._proven(file, part, target)
        except WrongBytes:
            if part.stat().st_blocks * BLOCK_BYTES < file.size:
                raise Holes("the parallel transfer left holes in the file") from None
            raise
        finally:
            part.unlink(missing_ok=True)

    def _in_sequence(self, file: RemoteFile, target: Path, part: Path, progress: Progress) -> str:
        while True:
            before = part.stat().st_size if part.exists() else 0
            try:
                sequential.download(
                    self.hub,
                    self._url(file),
                    file,
                    part,
                    self.patience,
                    lambda done: progress(file, done),
                )
                break
            except Again:
                if part.exists() and part.stat().st_size - before >= PROGRESS_BYTES:
                    continue
                raise
        try:
            return self._proven(file, part, target)
        except WrongBytes:
            part.unlink()
            raise

    def _proven(self, file: RemoteFile, part: Path, target: Path) -> str:
        found = digests(part, blob_id=file.sha256 is None)
        if reason := difference(found, file):
            raise WrongBytes(f"the hub's bytes are not the ones that it recorded ({reason})")
        temporary.publish(part, target)
        return found.sha256

    def _patiently(self, file: RemoteFile, action: Callable[[], T]) -> T:
        """Do it until it works, as `Patience` allows."""
        try:
            return self.patience.insist(action, f"{self.repository}: {file.path}")
        except Missing:
            if self.kept is not None:
                with suppress(OSError):
                    self.kept.unlink(missing_ok=True)
            raise


def fetch_snapshot(
    snapshot: Snapshot,
    files: Sequence[RemoteFile],
    into: Path,
    settings: Settings,
    progress: Progress = quiet,
) -> dict[str, Proven]:
    """Fetch several files, the small ones side by side and first; return them by path.

    Room for all of them is asked for before the first byte. Raises as `Snapshot.fetch_file`.
    """
    if isinstance(snapshot, HubSnapshot):
        there = sum(f.size for f in files if (into / f.path).is_file())
        total = sum(f.size for f in files)
        with space.writing(total, into, settings):
            space.require(max(total - there, 0), into, settings)
    small = [file for file in files if file.size < PARALLEL_FROM_BYTES]
    large = [file for file in files if file.size >= PARALLEL_FROM_BYTES]
    with ThreadPoolExecutor(settings.download_workers) as pool:
        found = dict(
            zip(
                (file.path for file in small),
                pool.map(lambda file: snapshot.fetch_file(file, into, progress), small),
                strict=True,
            )
        )
    for file in large:
        found[file.path] = snapshot.fetch_file(file, into, progress)
    return found


@contextmanager
def _turn(target: Path, stall_s: float) -> Iterator[None]:
    """Wait while another process downloads the same file and moves on; never wait for a dead one.

    The lock saves bandwidth, no more: without it, or when its holder stands still, both download.
    """
    lock = filelock.FileLock(target.with_name(f".{target.name}.lock"))
    seen, since = _activity(target), time.monotonic()
    while True:
        try:
            lock.acquire(timeout=POLL_S, poll_interval=POLL_S / 4)
            break
        except filelock.Timeout:
            if (now := _activity(target)) != seen:
                seen, since = now, time.monotonic()
            elif time.monotonic() - since > stall_s:
                break
        except (OSError, NotImplementedError):  # a file system without locks, or read-only
            break
    try:
        yield
    finally:
        lock.release()


def _activity(target: Path) -> list[tuple[str, int, int]]:
    """Return what changes while somebody downloads `target`."""
    found = []
    for part in temporary.parts(target):
        try:
            state = part.stat()
        except OSError:
            continue
        found.append((part.name, state.st_mtime_ns, state.st_blocks))
    return found
