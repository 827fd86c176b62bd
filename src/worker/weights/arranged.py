"""A published model whose parts lie in the roots of repositories, as one with a folder per part."""

import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from worker.weights.checkpoint import ABOUT
from worker.weights.names import make_commit_name
from worker.weights.proof import RemoteFile
from worker.weights.snapshot import Proven, ReportProgress, Snapshot, ignore_progress
from worker.weights.spec import Placement


@dataclass(frozen=True)
class ArrangedSnapshot:
    """All parts of a model, each file under the folder of its part; worker.json stays in the root.

    `others` have the parts that are elsewhere, by role. The repository and the commit are those of
    `model`.
    """

    model: Snapshot
    others: Mapping[str, Snapshot]
    placements: tuple[Placement, ...]

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
        """Return every file of a part, under the path that it is given."""
        return tuple(placed for placed, _, _ in self._places.values())

    @cached_property
    def _places(self) -> dict[str, tuple[RemoteFile, Snapshot, RemoteFile]]:
        """Return each file by its new path: as it is there, who has it, and as it is with that."""
        return {placed.path: (placed, holder, own) for placed, holder, own in self._list_places()}

    def _list_places(self) -> Iterator[tuple[RemoteFile, Snapshot, RemoteFile]]:
        for file in self.model.files:
            if file.path == ABOUT:
                yield file, self.model, file
        for one in self.placements:
            inside = is_inside(self.model, one.role)
            holder = self.model if inside else self.others.get(one.role, self.model)
            for file in holder.files:
                folder, name = posixpath.split(file.path)
                if folder == (one.role if inside else "") and re.fullmatch(one.names, name):
                    yield _place(file, one.role), holder, file

    def digest(self, file: RemoteFile) -> str:
        """Return "sha256:..." or "git:...": equal digests mean equal bytes."""
        _, holder, own = self._places[file.path]
        return holder.digest(own)

    def fetch_file(
        self, file: RemoteFile, into: Path, progress: ReportProgress = ignore_progress
    ) -> Proven:
        """Return the file, verified; raises as its own snapshot does."""
        _, holder, own = self._places[file.path]
        if holder is not self.model:
            into /= make_commit_name(holder.repository, holder.commit)
        return holder.fetch_file(own, into, lambda _, done: progress(file, done))

    def read_range(self, file: RemoteFile, start: int, end: int) -> bytes:
        """Return bytes `start` up to `end` (exclusive); raises as its own snapshot does."""
        _, holder, own = self._places[file.path]
        return holder.read_range(own, start, end)

    def read_file(self, file: RemoteFile) -> bytes:
        """Return a small file's bytes, verified; raises as its own snapshot does."""
        _, holder, own = self._places[file.path]
        return holder.read_file(own)


def is_inside(model: Snapshot, role: str) -> bool:
    """Return whether a model has a folder for one of its parts."""
    return any(posixpath.dirname(file.path) == role for file in model.files)


def _place(file: RemoteFile, role: str) -> RemoteFile:
    return replace(file, path=f"{role}/{posixpath.basename(file.path)}")
