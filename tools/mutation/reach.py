"""Which marks a process reaches, and in which context: written at once, so that kill -9 loses none.

Only the standard library is used: this file is copied to where every Python process of a recording
imports it at its start. The folder of a recording has a file per context (a test, a fixture), to
which each process adds the places that it has not added yet, and `current`, the current context.
A test may bound how large a file may be: a context has another file where one takes no more.
"""

import builtins
import errno
import os
from collections.abc import Callable
from contextlib import suppress
from itertools import count, takewhile
from pathlib import Path
from typing import Final

CURRENT: Final = "current"
WHOLE: Final = ";"  # how a line ends that was written to its end
# Bound here, because tests replace them.
_open, _write, _close = os.open, os.write, os.close


class Recorder:
    """Record the marks that this process and its forks reach."""

    def __init__(self, folder: Path | str) -> None:
        self._folder = str(folder)
        self._seen: set[str] = set()
        self._context, self._number = "start", 0

    def start(self, mark: str) -> None:
        """Become callable by that built-in name, in the context that `current` names."""
        self.join()
        os.register_at_fork(after_in_child=self.join)
        setattr(builtins, mark, self._make_mark())

    def __call__(self, place: str) -> None:
        """Record a place ("file:line") if it is new in this context."""
        if place not in self._seen:
            self._seen.add(place)
            self._append(place)

    def _make_mark(self) -> Callable[[str], None]:
        """Return a function that records a place, and of which torch makes no part of a graph."""

        def record(place: str) -> None:
            self(place)

        # torch.compile runs it while it traces, and continues with what it returns
        vars(record)["_dynamo_marked_constant"] = True
        return record

    def join(self) -> None:
        """Continue in the current context of the recording."""
        with suppress(OSError):
            self.enter(Path(self._folder, CURRENT).read_text())

    def enter(self, context: str) -> str:
        """Record into a context from here on; return the previous one."""
        before, self._context = self._context, context
        self._seen, self._number = set(), 0
        return before

    def switch(self, context: str) -> str:
        """Enter a context, also for processes that start in it; return the previous one."""
        Path(self._folder, CURRENT).write_text(context)
        return self.enter(context)

    def _append(self, place: str) -> None:
        """Append one line to the file that takes it, or to the next one."""
        with suppress(OSError):
            if not self._put(f"\n{place}{WHOLE}".encode()):
                self._number += 1
                self._put(f"\n{place}{WHOLE}".encode())

    def _put(self, line: bytes) -> bool:
        """Return whether a file took a line; none stays open, as processes close theirs."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        file = _open(_place_lines(self._folder, self._context, self._number), flags)
        try:
            return _write(file, line) == len(line)
        except OSError as error:
            if error.errno == errno.EFBIG:
                return False
            raise
        finally:
            _close(file)


def lines_of(folder: Path, context: str) -> set[tuple[str, int]]:
    """Return the (file, line) pairs of a context."""
    places = (Path(_place_lines(str(folder), context, number)) for number in count())
    texts = [path.read_text() for path in takewhile(Path.exists, places)]
    lines = (line for text in texts for line in text.splitlines() if line.endswith(WHOLE))
    pairs = (line.removesuffix(WHOLE).rpartition(":") for line in lines)
    return {(file, int(number)) for file, _, number in pairs}


def _place_lines(folder: str, context: str, number: int) -> str:
    return f"{folder}/{context}.{number}.lines"
