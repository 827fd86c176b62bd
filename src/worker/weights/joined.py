"""A published model whose transformer is another repository's, as one snapshot."""

import posixpath
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from worker.errors import WeightsUnavailable
from worker.weights.checkpoint import CONFIG
from worker.weights.names import make_commit_name
from worker.weights.proof import RemoteFile
from worker.weights.snapshot import Proven, ReportProgress, Snapshot, ignore_progress


@dataclass(frozen=True)
class JoinedSnapshot:
    """All of `model` but its folder `replaced`, and `other`'s folder `place` in its stead.

    Its repository and commit are the model's.
    """

    model: Snapshot
    other: Snapshot
    place: str
    replaced: str

    @property
    def repository(self) -> str:
        """Return the model's "org/name"."""
        return self.model.repository

    @property
    def commit(self) -> str:
        """Return the model's commit."""
        return self.model.commit

    @cached_property
    def files(self) -> tuple[RemoteFile, ...]:
        """Return every file, under the path that it has in a published model."""
        kept = [file for file in self.model.files if not _is_inside(file.path, self.replaced)]
        return (*kept, *(_place(file, self.replaced) for file in self._theirs.values()))

    @cached_property
    def _theirs(self) -> dict[str, RemoteFile]:
        """Return the other transformer's files by the path that they are given."""
        found = [f for f in self.other.files if posixpath.dirname(f.path) == self.place]
        return {_place(file, self.replaced).path: file for file in found}

    def digest(self, file: RemoteFile) -> str:
        """Return "sha256:..." or "git:...": equal digests mean equal bytes."""
        holder, own = self._find_holder(file)
        return holder.digest(own)

    def fetch_file(
        self, file: RemoteFile, into: Path, progress: ReportProgress = ignore_progress
    ) -> Proven:
        """Return the file, verified; raises as its own snapshot does."""
        holder, own = self._find_holder(file)
        if holder is self.model:
            return holder.fetch_file(own, into, progress)
        folder = into / make_commit_name(holder.repository, holder.commit)
        return holder.fetch_file(own, folder, lambda _, done: progress(file, done))

    def read_range(self, file: RemoteFile, start: int, end: int) -> bytes:
        """Return bytes `start` up to `end` (exclusive); raises as its own snapshot does."""
        holder, own = self._find_holder(file)
        return holder.read_range(own, start, end)

    def read_file(self, file: RemoteFile) -> bytes:
        """Return a small file's bytes, verified; raises as its own snapshot does."""
        holder, own = self._find_holder(file)
        return holder.read_file(own)

    def _find_holder(self, file: RemoteFile) -> tuple[Snapshot, RemoteFile]:
        """Return the snapshot that has a file, and the file as it is there."""
        theirs = self._theirs.get(file.path)
        return (self.model, file) if theirs is None else (self.other, theirs)


def join(model: Snapshot, other: Snapshot, folder: str, replaced: str) -> JoinedSnapshot:
    """Return a model whose folder `replaced` is that of another repository.

    Without a folder it is the one of the same name, else the root. Raises WeightsUnavailable when
    there is none: such a folder has a config.json.
    """
    paths = {file.path for file in other.files}
    for place in (folder,) if folder else (replaced, ""):
        if posixpath.join(place, CONFIG) in paths:
            return JoinedSnapshot(model, other, place, replaced)
    where = f"{folder}/" if folder else f"{replaced}/ or its root"
    raise WeightsUnavailable(
        f"TRANSFORMER: {other.repository} has no {CONFIG} in {where}: only a transformer of a"
        " diffusers checkpoint can be used"
    )


def _is_inside(path: str, folder: str) -> bool:
    return posixpath.dirname(path) == folder


def _place(file: RemoteFile, folder: str) -> RemoteFile:
    return replace(file, path=f"{folder}/{posixpath.basename(file.path)}")
