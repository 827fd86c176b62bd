"""Digests of local files, recorded in MODEL_DIR: 54 GB are read once, not at every start."""

import hashlib
import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from worker.weights import temporary

DIGESTS_FOLDER: Final = "digests"
NAME_DIGITS: Final = 20
# Linux dates a change by its clock's tick, 10 ms at the longest: a file that changed less than that
# before it was read may have changed again with the same date.
TICK_NS: Final = 10_000_000

# A file's size in bytes, and when its content and its inode last changed, in ns. The latter cannot
# be set by hand: a copy that keeps dates (cp -p, rsync -a) differs from what it replaced. No inode
# number: a bucket mounted by FUSE numbers its files anew at each start.
State = tuple[int, int, int]


def read_state(path: Path) -> State:
    """Return what changes whenever a file's bytes do."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


class DigestCache:
    """The sha256 of each file in one folder, for the state in which it was read.

    The folder is identified by its path relative to MODEL_DIR: a volume may be mounted elsewhere at
    the next start.
    """

    def __init__(self, folder: Path, home: Path) -> None:
        self._place = os.path.relpath(folder.resolve(), home.resolve())
        digest = hashlib.sha256(self._place.encode(errors="surrogateescape")).hexdigest()
        self._record = home / DIGESTS_FOLDER / f"{digest[:NAME_DIGITS]}.json"

    def read_sha256(self, path: str, state: State) -> str | None:
        """Return the sha256 of a file in that state; None when the file must be read."""
        entry = self._read_files().get(path)
        if not isinstance(entry, dict) or entry.get("state") != list(state):
            return None
        sha256 = entry.get("sha256")
        return sha256 if isinstance(sha256, str) else None

    def keep(self, path: str, state: State, sha256: str) -> None:
        """Record the sha256 of a file read in that state, unless MODEL_DIR cannot be written."""
        if max(state[1:]) + TICK_NS > time.time_ns():
            return
        files = {**self._read_files(), path: {"state": list(state), "sha256": sha256}}
        part = temporary.make_path(self._record)
        try:
            self._record.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps({"folder": self._place, "files": files}))
            temporary.publish(part, self._record)
        except OSError:
            with suppress(OSError):
                part.unlink()

    def _read_files(self) -> dict[str, Any]:
        try:
            record = json.loads(self._record.read_bytes())
            files: dict[str, Any] = record["files"] if record["folder"] == self._place else {}
            return dict(files)
        except (OSError, ValueError, KeyError, TypeError):
            return {}
