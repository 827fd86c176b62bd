"""One published model at one commit: its files, verified when fetched, wherever they are."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Final, Protocol

from worker.errors import WeightsUnavailable
from worker.weights import digest_cache
from worker.weights.digest_cache import DigestCache, State
from worker.weights.proof import (
    Digests,
    RemoteFile,
    digest_bytes,
    digest_file,
    find_difference,
    find_fault,
)

ReportProgress = Callable[[RemoteFile, int], None]

# RunPod's cache has the layout of huggingface_hub's: snapshots/COMMIT/path links to blobs/ETAG, and
# the etag is the sha256 of an LFS file and the git blob id of a small one.
SHA256: Final = re.compile(r"[0-9a-f]{64}")
BLOB_ID: Final = re.compile(r"[0-9a-f]{40}")
# The commit of a folder that an operator put there: nothing says which one it is.
LOCAL: Final = "local"


def ignore_progress(_file: RemoteFile, _done: int) -> None:
    """Ignore a report of progress."""


@dataclass(frozen=True, slots=True)
class Proven:
    """A file whose bytes are the published ones, with our own sha256 of them.

    A `disposable` file was made for the caller, who may delete it; any other is the operator's or
    RunPod's.
    """

    path: Path
    sha256: str
    disposable: bool


class Snapshot(Protocol):
    """The files of one repository at one commit."""

    @property
    def repository(self) -> str:
        """Return "org/name", or a folder's name."""

    @property
    def commit(self) -> str:
        """Return the commit that the revision was resolved to; "local" for a folder."""

    @property
    def files(self) -> tuple[RemoteFile, ...]:
        """Return every file of the commit."""

    def digest(self, file: RemoteFile) -> str:
        """Return "sha256:..." or "git:...": equal digests mean equal bytes."""

    def fetch_file(
        self, file: RemoteFile, into: Path, progress: ReportProgress = ignore_progress
    ) -> Proven:
        """Return the file, verified; `into` is the folder for copies, if the snapshot makes any.

        Raises WeightsUnavailable (HubUnreachable when trying later may help) and VolumeFull.
        """

    def read_range(self, file: RemoteFile, start: int, end: int) -> bytes:
        """Return bytes `start` up to `end` (exclusive), such as a safetensors header.

        Their number is checked, their content is not: compare what was read from them once
        `fetch_file` has verified the file. Raises as `fetch_file`.
        """

    def read_file(self, file: RemoteFile) -> bytes:
        """Return a small file's bytes, verified. Raises as `fetch_file`."""


def find_file(snapshot: Snapshot, path: str) -> RemoteFile:
    """Return the file with that path; raises WeightsUnavailable when the commit has none."""
    for file in snapshot.files:
        if file.path == path:
            return file
    raise WeightsUnavailable(f"{snapshot.repository} has no {path}; check MODEL and MODEL_REVISION")


@dataclass(frozen=True)
class LocalSnapshot:
    """A published model that is already on a disk of this machine; nothing is copied.

    `remembered` are the digests of its files from earlier starts.
    """

    folder: Path
    repository: str
    commit: str = LOCAL
    remembered: DigestCache | None = field(default=None, compare=False, repr=False)
    _read: dict[str, tuple[State, Digests]] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def files(self) -> tuple[RemoteFile, ...]:
        """Return every file of the folder, with the digests that a cache's links give away.

        Raises WeightsUnavailable when the folder cannot be read.
        """
        try:
            return tuple(self._list_files())
        except OSError as error:
            raise WeightsUnavailable(
                f"{self.repository}: the local folder cannot be read ({error.strerror})"
            ) from None

    def _list_files(self) -> Iterator[RemoteFile]:
        for path in sorted(self.folder.rglob("*")):
            relative = path.relative_to(self.folder)
            if not path.is_file() or any(part.startswith(".") for part in relative.parts):
                continue
            blob = path.resolve().name if path.is_symlink() else ""
            yield RemoteFile(
                relative.as_posix(),
                path.stat().st_size,
                sha256=blob if SHA256.fullmatch(blob) else None,
                blob_id=blob if BLOB_ID.fullmatch(blob) else None,
            )

    def digest(self, file: RemoteFile) -> str:
        """Return "sha256:..." or "git:..."; reads a file whose digest no link and no record gives.

        Raises WeightsUnavailable when the file changes meanwhile.
        """
        if file.sha256 is not None:
            return f"sha256:{file.sha256}"
        if file.blob_id is not None:
            return f"git:{file.blob_id}"
        return f"sha256:{self._measure(file).sha256}"

    def fetch_file(
        self, file: RemoteFile, into: Path, progress: ReportProgress = ignore_progress
    ) -> Proven:
        """Return the file in its place, once its bytes agree with what is known of it.

        Raises WeightsUnavailable when the file is damaged; `into` is not used.
        """
        del into
        path = self.folder / file.path
        with self._require_readable(file):
            reason = find_fault(path) if file.path.endswith(".safetensors") else None
        if reason:
            raise self._make_damaged(file, reason)
        measured = self._measure(file)
        if reason := find_difference(measured, file):
            raise self._make_damaged(file, reason)
        progress(file, file.size)
        return Proven(path, measured.sha256, disposable=False)

    def read_range(self, file: RemoteFile, start: int, end: int) -> bytes:
        """Return bytes `start` up to `end`; raises WeightsUnavailable when the file is shorter."""
        with self._require_readable(file), (self.folder / file.path).open("rb") as opened:
            opened.seek(start)
            data = opened.read(end - start)
        if len(data) != end - start:
            raise self._make_damaged(file, f"no bytes {start} to {end}")
        return data

    def read_file(self, file: RemoteFile) -> bytes:
        """Return a small file's bytes; raises WeightsUnavailable when it is damaged."""
        with self._require_readable(file):
            data = (self.folder / file.path).read_bytes()
        if reason := find_difference(digest_bytes(data), file):
            raise self._make_damaged(file, reason)
        return data

    def _measure(self, file: RemoteFile) -> Digests:
        """Return a file's digests, taken once; raises WeightsUnavailable if it changed since."""
        path = self.folder / file.path
        with self._require_readable(file):
            state = digest_cache.read_state(path)
            if file.path not in self._read:
                self._read[file.path] = state, self._recall_or_read(file, path, state)
            first, measured = self._read[file.path]
            changed = first != state or digest_cache.read_state(path) != state
        if changed:
            raise self._make_damaged(file, "changed while it was read")
        return measured

    def _recall_or_read(self, file: RemoteFile, path: Path, state: State) -> Digests:
        is_recorded = file.sha256 is not None or file.blob_id is not None
        records = None if is_recorded else self.remembered
        if records is not None and (sha256 := records.read_sha256(file.path, state)) is not None:
            return Digests(state[0], sha256, None)
        measured = digest_file(path, blob_id=file.blob_id is not None)
        if records is not None and digest_cache.read_state(path) == state:
            records.keep(file.path, state, measured.sha256)
        return measured

    @contextmanager
    def _require_readable(self, file: RemoteFile) -> Iterator[None]:
        """Turn a disk error while a file is read into WeightsUnavailable."""
        try:
            yield
        except OSError as error:
            raise WeightsUnavailable(
                f"{self.repository}: the local {file.path} cannot be read ({error.strerror})"
            ) from None

    def _make_damaged(self, file: RemoteFile, reason: str) -> WeightsUnavailable:
        return WeightsUnavailable(
            f"{self.repository}: the local {file.path} has {reason}; replace that file, or take the"
            " folder away so that the weights are downloaded"
        )
