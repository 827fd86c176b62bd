"""Digests of local files, kept in MODEL_DIR: 54 GB are read once, not at every start."""

import hashlib
import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from worker.weights import temporary

FOLDER: Final = "digests"
DIGITS: Final = 20
# Linux dates a change by its clock's tick, 10 ms at the longest: a file that changed so shortly
# before it was read may have changed once more under the same date.
TICK_NS: Final = 10_000_000

# A file's size in bytes and the times of its last change, of content and of anything, in ns. The
# latter cannot be set by hand: a copy that keeps dates (cp -p, rsync -a) is told from what it
# replaced. No inode: a bucket mounted by FUSE numbers its files anew at each start.
State = tuple[int, int, int]


def state_of(path: Path) -> State:
    """Return what changes whenever a file's bytes do."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


class Remembered:
    """The sha256 of the files of one folder, each for the state in which it was read.

    The folder is known by its way from MODEL_DIR: a volume may be mounted elsewhere tomorrow.
    """

    def __init__(self, folder: Path, home: Path) -> None:
        self._place = os.path.relpath(folder.resolve(), home.resolve())
        digest = hashlib.sha256(self._place.encode(errors="surrogateescape")).hexdigest()
        self._kept = home / FOLDER / f"{digest[:DIGITS]}.json"

    def sha256(self, path: str, state: State) -> str | None:
        """Return the sha256 of a file of the folder in that state; None when it must be read."""
        held = self._files().get(path)
        if not isinstance(held, dict) or held.get("state") != list(state):
            return None
        sha256 = held.get("sha256")
        return sha256 if isinstance(sha256, str) else None

    def keep(self, path: str, state: State, sha256: str) -> None:
        """Remember a file that was read in that state; a place that cannot be written does not."""
        if max(state[1:]) + TICK_NS > time.time_ns():
            return
        files = {**self._files(), path: {"state": list(state), "sha256": sha256}}
        part = temporary.unique(self._kept)
        try:
            self._kept.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps({"folder": self._place, "files": files}))
            temporary.publish(part, self._kept)
        except OSError:
            with suppress(OSError):
                part.unlink()

    def _files(self) -> dict[str, Any]:
        try:
            record = json.loads(self._kept.read_bytes())
            files: dict[str, Any] = record["files"] if record["folder"] == self._place else {}
            return dict(files)
        except (OSError, ValueError, KeyError, TypeError):
            return {}
