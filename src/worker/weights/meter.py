"""The progress of a download: a bar in a terminal, otherwise a log line every few seconds."""

import sys
import threading
import time
from types import TracebackType
from typing import Any, Final, Self

from tqdm import tqdm

from worker import log
from worker.weights.proof import RemoteFile

LOG_EVERY_S: Final = 5.0


class Meter:
    """The progress of a download of `total` bytes; a Progress that any thread may call.

    with Meter(total, spec.name) as meter:
        snapshot.fetch_file(file, into, meter)
    """

    def __init__(self, total: int, what: str, *, every_s: float = LOG_EVERY_S) -> None:
        self._total = total
        self._what = what
        self._every_s = every_s
        self._done: dict[str, int] = {}
        self._lock = threading.Lock()
        self._start = self._last = time.monotonic()
        self._bar: Any = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=total, desc=what, unit="B", unit_scale=True)

    def __call__(self, file: RemoteFile, done: int) -> None:
        """Record that `done` bytes of a file are there: fewer than before if it starts over."""
        with self._lock:
            self._done[file.path] = done
            now = time.monotonic()
            if self._bar is not None:
                self._bar.update(sum(self._done.values()) - self._bar.n)
            elif now - self._last >= self._every_s:
                self._last = now
                self._log("downloading", now)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the bar; a download that was long enough for a log line gets a final one."""
        if self._bar is not None:
            self._bar.close()
        elif error is None and self._last > self._start:
            self._log("downloaded", time.monotonic())

    def _log(self, event: str, now: float) -> None:
        done = sum(self._done.values())
        rate = done / max(now - self._start, 1e-3)
        log.get().info(
            event,
            what=self._what,
            done_mb=round(done / 1e6),
            total_mb=round(self._total / 1e6),
            mb_per_s=round(rate / 1e6, 1),
            left_s=round(max(self._total - done, 0) / rate) if rate else None,
        )
