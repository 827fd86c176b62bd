"""Unfinished files: a unique name until verified, then the final name by one rename.

A name such as `.model.safetensors.h1a2b3c4d-77-90210-1.part` says which process is writing the
file, so that what a dead one left is found and deleted. On network file systems locks can be wrong;
names are not.
"""

import hashlib
import itertools
import os
import re
import socket
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Final

SUFFIX: Final = ".part"
RESUMABLE: Final = ".resume.part"
# A part of another machine is an orphan once it has not been written to for this long.
FOREIGN_ORPHAN_S: Final = 900.0

_OWNER: Final = re.compile(r"\.h([0-9a-f]{8})-(\d+)-(\d+)-\d+(?:\.resume)?\.part$")
_serial = itertools.count()


def make_path(target: Path, *, resumable: bool = False) -> Path:
    """Return a name next to `target` that no other process or call uses.

    A resumable part is written in order, so that its size says how much is there.
    """
    tail = RESUMABLE if resumable else SUFFIX
    owner = f"h{_identify_machine()}-{os.getpid()}-{_read_start(os.getpid())}"
    return target.with_name(f".{target.name}.{owner}-{next(_serial)}{tail}")


def list_parts(target: Path) -> list[Path]:
    """Return every part of `target`, whichever process wrote it."""
    return sorted(target.parent.glob(f".{_escape_literal(target.name)}.h*{SUFFIX}"))


def adopt(target: Path) -> Path | None:
    """Take over the largest resumable part that a dead process left, and delete the others.

    Returns None when there is none.
    """
    adopted = None
    for orphan in sorted(filter(is_orphan, list_parts(target)), key=_read_size, reverse=True):
        with suppress(OSError):  # another process was faster
            if adopted is None and orphan.name.endswith(RESUMABLE):
                adopted = orphan.rename(make_path(target, resumable=True))
            else:
                orphan.unlink()
    return adopted


def is_orphan(part: Path) -> bool:
    """Return whether the process that was writing a part is gone."""
    match = _OWNER.search(part.name)
    if match is None:
        return False
    machine, process, started = match[1], int(match[2]), match[3]
    if machine == _identify_machine():
        return _read_start(process) != started
    try:
        return time.time() - part.stat().st_mtime > FOREIGN_ORPHAN_S
    except OSError:
        return False


def sweep(root: Path) -> int:
    """Delete the parts that dead processes left below a folder; return the bytes freed."""
    freed = 0
    for part in root.rglob(f".*{SUFFIX}"):
        if is_orphan(part):
            size = _read_size(part)
            with suppress(OSError):
                part.unlink()
                freed += size
    return freed


def publish(part: Path, target: Path) -> None:
    """Give a verified part its final name; a crash leaves the complete file or none."""
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@cache
def _identify_machine() -> str:
    """Return an id for this container among those that share a volume."""
    namespace = Path("/proc/self/ns/pid")
    identity = f"{socket.gethostname()}|{namespace.readlink() if namespace.exists() else None}"
    return hashlib.sha256(identity.encode()).hexdigest()[:8]


def _read_start(process: int) -> str | None:
    """Return when a process started, in clock ticks after boot; None when there is none.

    A process id alone does not identify a process: ids are reused. Field 22 of /proc/PID/stat, see
    proc_pid_stat(5).
    """
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return None if Path("/proc/self/stat").exists() else _read_life(process)
    after_name = stat.rpartition(")")[2].split()
    return None if after_name[0] == "Z" else after_name[19]


def _read_life(process: int) -> str | None:
    """Return "1" for a process that exists, None for none, where there is no /proc."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "1"


def _escape_literal(name: str) -> str:
    return re.sub(r"([\[\]*?])", r"[\1]", name)


def _read_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
