"""What became of jobs, until their callers have asked: bounded in number, bytes and time."""

import asyncio
from typing import Any, Final

from worker.doors.http.tracked import Tracked
from worker.setting_values import MB

KEPT_S: Final = 600.0
MOST_KEPT: Final = 100
MOST_KEPT_BYTES: Final = 256 * MB


class Results:
    """The jobs that callers may ask for by id: those that run, and the last that have ended."""

    def __init__(
        self, *, seconds: float = KEPT_S, most: int = MOST_KEPT, most_bytes: int = MOST_KEPT_BYTES
    ) -> None:
        self._seconds, self._most, self._most_bytes = seconds, most, most_bytes
        self._entries: dict[str, Tracked] = {}
        self._ended: dict[str, int] = {}  # the bytes of each, in the order of their ends

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def has_unseen(self) -> bool:
        """Whether a job that has ended is kept, and nobody has seen its end."""
        return any(not self._entries[name].is_seen for name in self._ended)

    def add(self, entry: Tracked) -> None:
        """Make a job known while it runs."""
        self._entries[entry.id] = entry

    def find(self, job_id: str) -> Tracked | None:
        """Return a job, None if none is known by that id."""
        return self._entries.get(job_id)

    def keep(self, entry: Tracked) -> None:
        """Keep what became of a job that has ended, at the cost of the oldest."""
        self._ended[entry.id] = measure_text(entry.output)
        asyncio.get_running_loop().call_later(self._seconds, self.drop, entry.id)
        while len(self._ended) > self._most or (
            len(self._ended) > 1 and sum(self._ended.values()) > self._most_bytes
        ):
            self.drop(next(iter(self._ended)))

    def drop(self, job_id: str) -> None:
        """Forget a job."""
        self._ended.pop(job_id, None)
        self._entries.pop(job_id, None)


def measure_text(value: Any) -> int:
    """Return about how many bytes a JSON value takes: the characters of all its texts."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(len(key) + measure_text(item) for key, item in value.items())
    if isinstance(value, list):
        return sum(map(measure_text, value))
    return 8
