"""A hub repository at one commit: each file is fetched once, verified, and only then named."""

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
from worker.weights.hub import Hub
from worker.weights.proof import RemoteFile, digest_bytes, digest_file, find_difference
from worker.weights.retry import AttemptFailed, Missing, Patience, WrongBytes
from worker.weights.snapshot import Proven, ReportProgress, Snapshot, ignore_progress

# Below this hf_transfer has nothing to split; one request is faster than a process.
PARALLEL_FROM_BYTES: Final = 16 * 1024 * 1024
# Attempts by hf_transfer at a file before the sequential download takes over.
PARALLEL_ATTEMPTS: Final = 2
# A sequential attempt that got this much further does not count as failed.
PROGRESS_BYTES: Final = 8 * 1024 * 1024
POLL_S: Final = 0.2
BLOCK_BYTES: Final = 512  # POSIX counts st_blocks in these

T = TypeVar("T")


class Holes(AttemptFailed):
    """A range was never written: hf_transfer does not notice when the disk refuses one.

    Seen with ENOSPC on tmpfs; the sequential download gets the disk's own error.
    """


@dataclass(frozen=True)
class HubSnapshot:
    """One commit of a hub repository; thread-safe, so that files can be fetched in parallel.

    `record` is where the commit is recorded on the volume. It is deleted when the hub no longer has
    a file of the commit, so that the next start resolves the revision again.
    """

    repository: str
    commit: str
    files: tuple[RemoteFile, ...]
    settings: Settings
    hub: Hub
    patience: Patience
    parallel_from: int = PARALLEL_FROM_BYTES
    range_bytes: int = parallel.RANGE_BYTES
    record: Path | None = None

    def digest(self, file: RemoteFile) -> str:
        """Return "sha256:..." or "git:..." as the hub recorded it."""
        return f"sha256:{file.sha256}" if file.sha256 else f"git:{file.blob_id}"

    def fetch_file(
        self, file: RemoteFile, into: Path, progress: ReportProgress = ignore_progress
    ) -> Proven:
        """Return `into`/path, verified: downloaded, or found there and read again.

        Two processes that need the same file take turns where locks work. Where they do not, both
        download it, each under its own name, and the last rename wins with the same bytes. Raises
        WeightsUnavailable (HubUnreachable when trying later may help) and VolumeFull.
        """
        target = into / file.path
        with space.translate_errors(file.size, into, self.settings):
            target.parent.mkdir(parents=True, exist_ok=True)
            with _take_turn(target, self.patience.stall_s):
                sha256 = self._verify_present(file, target) or self._download(
                    file, target, progress
                )
        progress(file, file.size)
        return Proven(target, sha256, disposable=True)

    def read_range(self, file: RemoteFile, start: int, end: int) -> bytes:
        """Return bytes `start` up to `end`; their number is checked, their content cannot be.

        TLS guards them in transit; over plain http they are read twice and must agree. Raises
        WeightsUnavailable (HubUnreachable when trying later may help).
        """

        def read() -> bytes:
            data = self._read_range(file, start, end)
            is_plain = not self.hub.endpoint.startswith("https:")
            if is_plain and data != self._read_range(file, start, end):
                raise AttemptFailed("two readings of the same bytes differ")
            return data

        return self._retry(file, read)

    def read_file(self, file: RemoteFile) -> bytes:
        """Return a small file's bytes, verified. Raises as `fetch_file`."""

        def read() -> bytes:
            data = self._read_range(file, 0, file.size)
            if reason := find_difference(digest_bytes(data), file):
                raise WrongBytes(f"the hub's bytes are not the ones that it recorded ({reason})")
            return data

        return self._retry(file, read)

    def _read_range(self, file: RemoteFile, start: int, end: int) -> bytes:
        return sequential.read_range(
            self.hub, self._make_url(file), file, start, end, self.patience
        )

    def _make_url(self, file: RemoteFile) -> str:
        return self.hub.make_address(self.repository, self.commit, file.path)

    def _verify_present(self, file: RemoteFile, target: Path) -> str | None:
        """Return our sha256 of a file that is there and intact; a damaged one is deleted."""
        try:
            measured = digest_file(target, blob_id=file.sha256 is None)
        except FileNotFoundError:  # a worker that is done with it may delete it at any time
            return None
        if find_difference(measured, file) is None:
            return measured.sha256
        target.unlink(missing_ok=True)
        return None

    def _download(self, file: RemoteFile, target: Path, progress: ReportProgress) -> str:
        part = temporary.adopt(target)
        space.require_space(
            file.size - (part.stat().st_size if part else 0), target.parent, self.settings
        )
        attempts = 0
        part = part or temporary.make_path(target, resumable=True)

        def attempt() -> str:
            nonlocal attempts
            attempts += 1
            may_split = file.size >= self.parallel_from and attempts <= PARALLEL_ATTEMPTS
            if may_split and not part.exists():
                try:
                    return self._download_in_parallel(file, target, progress)
                except Holes:
                    attempts = PARALLEL_ATTEMPTS
                    raise
            return self._download_in_sequence(file, target, part, progress)

        try:
            return self._retry(file, attempt)
        except HubUnreachable:
            raise  # the next start resumes from the part
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def _download_in_parallel(
        self, file: RemoteFile, target: Path, progress: ReportProgress
    ) -> str:
        part = temporary.make_path(target)
        try:
            parallel.download(
                self.hub,
                self._make_url(file),
                file,
                part,
                self.patience,
                lambda done: progress(file, done),
                workers=self.settings.download_workers,
                range_bytes=self.range_bytes,
            )
            return self._verify_and_publish(file, part, target)
        except WrongBytes:
            if part.stat().st_blocks * BLOCK_BYTES < file.size:
                raise Holes("the parallel transfer left holes in the file") from None
            raise
        finally:
            part.unlink(missing_ok=True)

    def _download_in_sequence(
        self, file: RemoteFile, target: Path, part: Path, progress: ReportProgress
    ) -> str:
        while True:
            before = part.stat().st_size if part.exists() else 0
            try:
                sequential.download(
                    self.hub,
                    self._make_url(file),
                    file,
                    part,
                    self.patience,
                    lambda done: progress(file, done),
                )
                break
            except AttemptFailed:
                if part.exists() and part.stat().st_size - before >= PROGRESS_BYTES:
                    continue
                raise
        try:
            return self._verify_and_publish(file, part, target)
        except WrongBytes:
            part.unlink()
            raise

    def _verify_and_publish(self, file: RemoteFile, part: Path, target: Path) -> str:
        measured = digest_file(part, blob_id=file.sha256 is None)
        if reason := find_difference(measured, file):
            raise WrongBytes(f"the hub's bytes are not the ones that it recorded ({reason})")
        temporary.publish(part, target)
        return measured.sha256

    def _retry(self, file: RemoteFile, action: Callable[[], T]) -> T:
        """Call `action` until it succeeds, as `Patience` allows."""
        try:
            return self.patience.retry(action, f"{self.repository}: {file.path}")
        except Missing:
            if self.record is not None:
                with suppress(OSError):
                    self.record.unlink()
            raise


def fetch_snapshot(
    snapshot: Snapshot,
    files: Sequence[RemoteFile],
    into: Path,
    settings: Settings,
    progress: ReportProgress = ignore_progress,
) -> dict[str, Proven]:
    """Fetch several files, the small ones first and in parallel; return them by path.

    Disk space for all of them is checked before the first byte. Raises as `Snapshot.fetch_file`.
    """
    if isinstance(snapshot, HubSnapshot):
        present = sum(f.size for f in files if (into / f.path).is_file())
        total = sum(f.size for f in files)
        with space.translate_errors(total, into, settings):
            space.require_space(total - present, into, settings)
    small = [file for file in files if file.size < PARALLEL_FROM_BYTES]
    large = [file for file in files if file.size >= PARALLEL_FROM_BYTES]
    with ThreadPoolExecutor(settings.download_workers) as pool:
        fetched = dict(
            zip(
                (file.path for file in small),
                pool.map(lambda file: snapshot.fetch_file(file, into, progress), small),
                strict=True,
            )
        )
    for file in large:
        fetched[file.path] = snapshot.fetch_file(file, into, progress)
    return fetched


@contextmanager
def _take_turn(target: Path, stall_s: float) -> Iterator[None]:
    """Wait while another process downloads the same file and makes progress.

    The lock only saves bandwidth: without it, or when its holder stalls, both download.
    """
    lock = filelock.FileLock(target.with_name(f".{target.name}.lock"))
    last, since = _read_activity(target), time.monotonic()
    while True:
        try:
            lock.acquire(timeout=POLL_S, poll_interval=POLL_S / 4)
            break
        except filelock.Timeout:
            if (activity := _read_activity(target)) != last:
                last, since = activity, time.monotonic()
            elif time.monotonic() - since > stall_s:
                break
        except (OSError, NotImplementedError):  # a file system without locks, or read-only
            break
    try:
        yield
    finally:
        lock.release()


def _read_activity(target: Path) -> list[tuple[str, int, int]]:
    """Return what changes while any process downloads `target`."""
    states = []
    for part in temporary.list_parts(target):
        try:
            state = part.stat()
        except OSError:
            continue
        states.append((part.name, state.st_mtime_ns, state.st_blocks))
    return states
