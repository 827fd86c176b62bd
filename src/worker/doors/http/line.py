"""The waiting line: so many jobs at once, so many that wait, and when to come again."""

import asyncio
import math
from collections import deque
from typing import Final

# Of the last jobs, how many say how long the next ones take.
RECENT: Final = 20
SHORTEST_S: Final = 1
LONGEST_S: Final = 60
# What a caller waits before anything has been made here.
UNKNOWN_S: Final = 5


class LineFull(Exception):
    """No more may wait; `retry_after` is when one probably may, in seconds."""

    def __init__(self, retry_after: int) -> None:
        self.retry_after = retry_after


class Line:
    """Jobs in the order of their arrival: `slots` are handled at once, `most_waiting` wait."""

    def __init__(self, slots: int, most_waiting: int) -> None:
        self._slots = slots
        self._most_waiting = most_waiting
        self._inside: set[Turn] = set()
        self._waiting: deque[Turn] = deque()
        self._durations: deque[float] = deque(maxlen=RECENT)

    @property
    def inside(self) -> int:
        """How many jobs are being handled."""
        return len(self._inside)

    @property
    def waiting(self) -> int:
        """How many jobs wait."""
        return len(self._waiting)

    def join(self) -> "Turn":
        """Take the next place; raises LineFull."""
        if len(self._inside) < self._slots:
            place = Turn(self)
            self._admit(place)
            return place
        if len(self._waiting) >= self._most_waiting:
            raise LineFull(self.estimate())
        place = Turn(self)
        self._waiting.append(place)
        return place

    def estimate(self) -> int:
        """Return the seconds until the last of those that wait probably has its turn."""
        if not self._durations:
            return UNKNOWN_S
        usual = sum(self._durations) / len(self._durations)
        seconds = math.ceil(usual * (len(self._waiting) + 1) / self._slots)
        return max(SHORTEST_S, min(LONGEST_S, seconds))

    def find_position(self, place: "Turn") -> int:
        """Return how many are before a place, 0 when it is its turn."""
        return self._waiting.index(place) + 1 if place in self._waiting else 0

    def leave(self, place: "Turn", seconds: float | None) -> None:
        """Give up a place, and let the next one in; `seconds` are what a finished job took."""
        if seconds is not None:
            self._durations.append(seconds)
        self._inside.discard(place)
        if place in self._waiting:
            self._waiting.remove(place)
        if self._waiting and len(self._inside) < self._slots:
            self._admit(self._waiting.popleft())

    def _admit(self, place: "Turn") -> None:
        self._inside.add(place)
        place.turn.set()


class Turn:
    """One place in the line; `turn` is set when it is its turn."""

    def __init__(self, line: Line) -> None:
        self.turn = asyncio.Event()
        self._line = line

    @property
    def position(self) -> int:
        """How many are before it."""
        return self._line.find_position(self)

    def leave(self, seconds: float | None = None) -> None:
        """Give it up; may be called again."""
        self._line.leave(self, seconds)
