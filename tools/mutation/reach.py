"""Which marks a process reaches, and in which context: written at once, so that kill -9 loses none.

Only the standard library is used: this file is copied to where every Python process of a recording
imports it at its start. The folder of a recording has a file per context (a test, a fixture), to
which each process adds the places that it has not added yet, and `contexts`: when each began. A
process takes a moment to start, and its fixture may have ended by then: it is of every context
since it was started. A test may bound how large a file may be: a context has another file where one
takes no more.
"""

import builtins
import errno
import os
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import count, takewhile
from pathlib import Path
from typing import Final

CONTEXTS: Final = "contexts"
WHOLE: Final = ";"  # how a line ends that was written to its end
# Bound here, because tests replace them.
_open, _write, _close = os.open, os.write, os.close


class Recorder:
    """Record the marks that this process and its forks reach."""

    def __init__(self, folder: Path | str) -> None:
        self._folder = str(folder)
        self._seen: set[str] = set()
        self._contexts = ["start"]
        self._numbers: dict[str, int] = {}

    def start(self, mark: str) -> None:
        """Become callable by that built-in name, in every context since this process started."""
        with suppress(OSError):
            started = _find_start()
            since = [context for end, context in self._read_contexts() if end > started]
            self._enter(list(dict.fromkeys(since)))
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
            self._enter([self._read_contexts()[-1][1]])

    def enter(self, context: str) -> str:
        """Record into a context from here on; return the previous one."""
        return self._enter([context])

    def switch(self, context: str) -> str:
        """Enter a context, also for processes that start in it; return the previous one."""
        with Path(self._folder, CONTEXTS).open("a") as file:
            file.write(f"{time.clock_gettime(time.CLOCK_BOOTTIME)} {context}\n")
        return self.enter(context)

    def _enter(self, contexts: list[str]) -> str:
        before, self._contexts = self._contexts[-1], contexts
        self._seen, self._numbers = set(), {}
        return before

    def _read_contexts(self) -> list[tuple[float, str]]:
        """Return when each context ended, in seconds since the machine started, in their order."""
        lines = Path(self._folder, CONTEXTS).read_text().splitlines()
        begun = [(float(when), name) for when, _, name in (line.partition(" ") for line in lines)]
        ends = [*(when for when, _ in begun[1:]), float("inf")]
        return [(end, name) for end, (_, name) in zip(ends, begun, strict=True)]

    def _append(self, place: str) -> None:
        """Append one line to the file of each context that takes it, or to its next one."""
        with suppress(OSError):
            line = f"\n{place}{WHOLE}".encode()
            for context in self._contexts:
                number = self._numbers.get(context, 0)
                if not _put(_place_lines(self._folder, context, number), line):
                    self._numbers[context] = number + 1
                    _put(_place_lines(self._folder, context, number + 1), line)


def _put(path: str, line: bytes) -> bool:
    """Append a line and return whether the file took it; none stays open for a test to close."""
    file = _open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)
    try:
        return _write(file, line) == len(line)
    except OSError as error:
        if error.errno == errno.EFBIG:
            return False
        raise
    finally:
        _close(file)


def _find_start() -> float:
    """Return when this process was started, in seconds since the machine was, rounded down."""
    ticks = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    return int(ticks) / os.sysconf("SC_CLK_TCK")


def lines_of(folder: Path, context: str) -> set[tuple[str, int]]:
    """Return the (file, line) pairs of a context."""
    places = (Path(_place_lines(str(folder), context, number)) for number in count())
    texts = [path.read_text() for path in takewhile(Path.exists, places)]
    lines = (line for text in texts for line in text.splitlines() if line.endswith(WHOLE))
    pairs = (line.removesuffix(WHOLE).rpartition(":") for line in lines)
    return {(file, int(number)) for file, _, number in pairs}


def _place_lines(folder: str, context: str, number: int) -> str:
    return f"{folder}/{context}.{number}.lines"
