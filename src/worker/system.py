"""Which systems the worker cannot run on; asked first, with the standard library alone."""

import sys
from typing import Final

from worker.finding import Finding

# Python's names for Windows itself and for the POSIX layers on it: no NVIDIA container runtime, no
# prctl, no cgroup, no /proc.
WINDOWS: Final = frozenset({"win32", "cygwin", "msys"})


def find_fault() -> Finding | None:
    """Return why this system cannot run the worker, None if it can."""
    if sys.platform not in WINDOWS:
        return None
    return Finding(
        "system",
        "fatal",
        "Windows, where the worker does not run",
        "use WSL 2, or Docker Desktop with its WSL 2 engine: docs/windows.md",
    )
