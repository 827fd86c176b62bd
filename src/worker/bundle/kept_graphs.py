"""Compiled graphs on MODEL_DIR: what one start has compiled, later ones of its kind load.

    HOME/compiled/KEY-SHA256.graphs

The key is a digest of everything that decides what is compiled. A file gets its name by one rename,
once it is complete, and its name says what its bytes must be. It has code in it, which torch loads
without another look: whoever can write to the volume can run code in its workers.
"""

import hashlib
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from worker import log
from worker.engine import artifacts
from worker.errors import WorkerError
from worker.settings import Settings
from worker.weights import space, temporary

KEPT_GRAPHS: Final = "compiled"
GRAPHS_SUFFIX: Final = ".graphs"
KEY_DIGITS: Final = 20
# One block in four graphs is a few megabytes; more than this is not read, nor written.
MOST_FILE_BYTES: Final = 256 << 20
# Of all kinds together: those that were used last stay.
MOST_KINDS: Final = 16
MOST_BYTES: Final = 1 << 30


def digest_sources(folders: Iterable[Path]) -> str:
    """Return a digest of all Python files in folders, each with its name."""
    digest = hashlib.sha256()
    for folder in folders:
        for file in sorted(folder.rglob("*.py")):
            content = file.read_bytes()
            digest.update(f"{file.relative_to(folder)} {len(content)}\n".encode() + content)
    return digest.hexdigest()


class KeptGraphs:
    """The graphs of one kind of start: `words` are what decides what it compiles.

    Nothing that is wrong with them is raised: a start compiles what it does not find, and the log
    says why.
    """

    def __init__(self, settings: Settings, words: Iterable[str]) -> None:
        self._settings = settings
        self._folder = settings.home / KEPT_GRAPHS
        self.key = hashlib.sha256("\n".join(words).encode()).hexdigest()[:KEY_DIGITS]
        self._loaded: frozenset[str] = frozenset()

    def load(self) -> None:
        """Give the compiler what an earlier start has compiled, before it compiles anything."""
        start = time.monotonic()
        file = next(iter(self._list_own()), None)
        if file is None:
            return
        try:
            data = _read(file)
            self._loaded = artifacts.load(data)
        except Exception as error:  # noqa: BLE001 - a start must not fail for what only saves time
            log.get().warning("compiled graphs not loaded", reason=_explain(error))
            if isinstance(error, ValueError):
                _remove(file)
            return
        with suppress(OSError):  # a volume that is read-only
            os.utime(file)
        log.get().info(
            "compiled graphs loaded", bytes=len(data), seconds=round(time.monotonic() - start, 2)
        )

    def keep(self) -> None:
        """Keep what was compiled since the last call, where that is more than what was loaded."""
        try:
            made = artifacts.collect()
            if made is None or made.names <= self._loaded:
                return
            self._write(made.data)
        except Exception as error:  # noqa: BLE001 - the same
            log.get().warning("compiled graphs not kept", reason=_explain(error))
            return
        log.get().info("compiled graphs kept", bytes=len(made.data))

    def settle(self, *, is_compiled: bool) -> None:
        """Keep what was compiled, once all of it is; delete what was loaded where that failed."""
        if is_compiled:
            self.keep()
        else:
            self.drop()

    def drop(self) -> None:
        """Delete the graphs that were loaded: they fail, or do not compute what they should."""
        for file in self._list_own() if self._loaded else ():
            _remove(file)

    def _write(self, data: bytes) -> None:
        if len(data) > MOST_FILE_BYTES:
            raise ValueError(f"they are {len(data)} bytes, over {MOST_FILE_BYTES}")
        target = self._folder / f"{self.key}-{hashlib.sha256(data).hexdigest()}{GRAPHS_SUFFIX}"
        self._folder.mkdir(parents=True, exist_ok=True)
        temporary.sweep(self._folder)
        space.require_space(len(data), self._folder, self._settings)
        part = temporary.make_path(target)
        try:
            part.write_bytes(data)
            temporary.publish(part, target)
        finally:
            with suppress(OSError):  # renamed, or a disk that refuses that too
                part.unlink()
        for older in self._list_own():
            if older != target:
                _remove(older)
        self._limit()

    def _limit(self) -> None:
        """Delete what was not used for longest until the others are within the limits."""
        total = 0
        for place, file in enumerate(self._list("*")):
            total += file.stat().st_size
            if place >= MOST_KINDS or total > MOST_BYTES:
                _remove(file)

    def _list_own(self) -> list[Path]:
        return self._list(f"{self.key}-*")

    def _list(self, pattern: str) -> list[Path]:
        """Return files of graphs, the last used first."""
        dated = []
        for file in self._folder.glob(f"{pattern}{GRAPHS_SUFFIX}"):
            with suppress(OSError):  # another worker deleted it
                dated.append((file.stat().st_mtime_ns, file))
        return [file for _, file in sorted(dated, reverse=True)]


def _read(file: Path) -> bytes:
    """Return a file's bytes; raise ValueError unless they are those that its name promises."""
    if file.stat().st_size > MOST_FILE_BYTES:
        raise ValueError(f"more than {MOST_FILE_BYTES} bytes")
    data = file.read_bytes()
    if hashlib.sha256(data).hexdigest() != file.stem.rpartition("-")[2]:
        raise ValueError("its digest differs")
    return data


def _remove(file: Path) -> None:
    with suppress(OSError):
        file.unlink()


def _explain(error: Exception) -> str:
    """Return what is wrong, without the path that an OSError has."""
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return str(error) if isinstance(error, ValueError | WorkerError) else type(error).__name__
