"""Which source lines a process runs, and for which test: a trace that survives kill -9.

Only the standard library is used, as this file is copied where every Python process of a recording
imports it at its start. The folder of a recording holds a file per context (a test, a fixture),
to which each process adds the lines that it has not added yet, and `current`, the context of now.
"""

import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final

CURRENT: Final = "current"
# Bound here, as tests put others in their place.
_open, _write, _close = os.open, os.write, os.close

Trace = Callable[[FrameType, str, Any], Any]


class Recorder:
    """Traces this process and those that it forks; `source` is the folder whose lines count."""

    def __init__(self, source: Path, folder: Path) -> None:
        self._prefix = f"{source}/"
        self._folder = folder
        self._seen: set[tuple[str, int]] = set()
        self._inside: dict[CodeType, bool] = {}
        self._context = ""

    def start(self) -> None:
        """Trace from here on, in the context that `current` names."""
        self.join()
        os.register_at_fork(after_in_child=self.join)
        threading.settrace(self._call)
        sys.settrace(self._call)

    def join(self) -> None:
        """Go on in the context of now."""
        try:
            context = (self._folder / CURRENT).read_text()
        except OSError:
            return
        self.enter(context)

    def enter(self, context: str) -> str:
        """Add lines to a context from here on; return the one before."""
        before, self._context, self._seen = self._context, context, set()
        return before

    def switch(self, context: str) -> str:
        """Enter a context and tell it to the processes that start in it; return the one before."""
        (self._folder / CURRENT).write_text(context)
        return self.enter(context)

    def _call(self, frame: FrameType, _event: str, _arg: Any) -> Trace | None:
        code = frame.f_code
        inside = self._inside.get(code)
        if inside is None:
            inside = self._inside[code] = code.co_filename.startswith(self._prefix)
        return self._line if inside else None

    def _line(self, frame: FrameType, event: str, _arg: Any) -> Trace:
        if event == "line":
            key = (frame.f_code.co_filename, frame.f_lineno)
            if key not in self._seen:
                self._seen.add(key)
                self._note(f"{key[0][len(self._prefix) :]}:{key[1]}\n")
        return self._line

    def _note(self, line: str) -> None:
        """Add one line; no descriptor is kept, as processes close what they inherited."""
        target = self._folder / f"{self._context or 'start'}.lines"
        with suppress(OSError):
            file = _open(target, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)
            try:
                _write(file, line.encode())
            finally:
                _close(file)


def lines_of(folder: Path, context: str) -> set[tuple[str, int]]:
    """Return the (file, line) pairs of a context."""
    try:
        text = (folder / f"{context}.lines").read_text()
    except OSError:
        return set()
    pairs = (line.rpartition(":") for line in text.splitlines())
    return {(file, int(number)) for file, _, number in pairs}
