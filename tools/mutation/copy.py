"""A private copy of the project, in which one file at a time is changed."""

import itertools
import os
import shutil
import sys
import sysconfig
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

LEFT_OUT: Final = shutil.ignore_patterns(
    ".git", ".venv*", "out", "__pycache__", ".*_cache", ".hypothesis", "*.egg-info"
)


@dataclass(frozen=True, slots=True)
class Project:
    """Where things are: `source` and `tests` are folders relative to `root`."""

    root: Path
    source: str = "src/worker"
    tests: str = "tests"

    @property
    def sources(self) -> list[Path]:
        """Return every source file."""
        return sorted((self.root / self.source).rglob("*.py"))

    @property
    def test_files(self) -> list[str]:
        """Return every test file, relative to the root."""
        found = (self.root / self.tests).rglob("test_*.py")
        return sorted(path.relative_to(self.root).as_posix() for path in found)


@dataclass(frozen=True, slots=True)
class Copy:
    """A copy with its own environment, so that processes started by tests see its source too."""

    project: Project
    python: Path
    packages: Path
    ticks: Iterator[int] = field(default_factory=lambda: itertools.count(int(time.time())))

    @property
    def scratch(self) -> Path:
        """Return a folder next to the tree for what tests write and what is recorded."""
        return self.project.root.parent / "scratch"

    @contextmanager
    def changed(self, file: str, text: str) -> Iterator[None]:
        """Replace a source file by `text` until the block ends."""
        path = self.project.root / self.project.source / file
        before = path.read_text()
        try:
            self._write(path, text)
            yield
        finally:
            self._write(path, before)

    def _write(self, path: Path, text: str) -> None:
        """Write with a new time: Python compares compiled files' times by the second."""
        path.write_text(text)
        tick = next(self.ticks)
        os.utime(path, (tick, tick))


def copy_project(project: Project, into: Path) -> Copy:
    """Copy a project and give the copy an environment with our packages."""
    root = into / "tree"
    shutil.copytree(project.root, root, ignore=LEFT_OUT, symlinks=True)
    (into / "scratch").mkdir()
    inner = Project(root.resolve(), project.source, project.tests)
    venv.EnvBuilder(symlinks=True).create(root / ".venv")
    bin_, packages = root / ".venv/bin", _packages_of(root / ".venv")
    for script in Path(sys.executable).parent.iterdir():  # linters that tests run
        if not (bin_ / script.name).exists():
            (bin_ / script.name).symlink_to(script)
    # ahead of the path on which our own environment finds the project
    lines = [str(root / project.source.split("/", maxsplit=1)[0])]
    lines.append(f"import site; site.addsitedir({_packages_of(Path(sys.prefix)).as_posix()!r})")
    (packages / "0-copy.pth").write_text("\n".join(lines) + "\n")
    return Copy(inner, bin_ / "python", packages)


def _packages_of(environment: Path) -> Path:
    scheme = {"base": str(environment), "platbase": str(environment)}
    return Path(sysconfig.get_path("purelib", "venv", scheme))
