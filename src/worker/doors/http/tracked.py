"""One job of this door, from its arrival to its end, as those who ask for it see it."""

import asyncio
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from worker.doors.http.line import Turn
from worker.jobs.job import Answer, ReadyPiece
from worker.media.piece import Encoded

JobState = Literal["IN_QUEUE", "IN_PROGRESS", "COMPLETED", "FAILED", "CANCELLED"]


@dataclass(eq=False, slots=True)
class Tracked:
    """One job; times are seconds of the monotonic clock.

    `answer` is what the worker said, `output` the same in RunPod's form. `ready` has the pieces
    that were files before it, `parts` what was on the way to them, both as far as nobody has taken
    it yet. `news` is set, and replaced, with each change. `is_seen` says that somebody has asked
    for its end.
    """

    id: str
    place: Turn
    arrived: float = field(default_factory=time.monotonic)
    begun: float | None = None
    ended: float | None = None
    state: JobState = "IN_QUEUE"
    progress: Mapping[str, Any] | None = None
    answer: Answer | None = None
    output: dict[str, Any] | None = None
    parts: deque[Encoded] = field(default_factory=deque)
    ready: deque[ReadyPiece] = field(default_factory=deque)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None
    is_seen: bool = False

    @property
    def is_final(self) -> bool:
        """Whether it has ended."""
        return self.ended is not None

    def note_change(self) -> None:
        """Wake those who follow it."""
        news, self.news = self.news, asyncio.Event()
        news.set()

    async def wait_for_turn(self) -> None:
        """Wait for its turn."""
        await self.place.turn.wait()
        self.begun = time.monotonic()
        self.state = "IN_PROGRESS"
        self.note_change()

    async def announce(self, update: Mapping[str, Any]) -> None:
        """Take the job's progress."""
        self.progress = update
        self.note_change()

    def add_ready(self, piece: ReadyPiece) -> None:
        """Take a piece of the job."""
        self.ready.append(piece)
        self.note_change()

    async def add_part(self, _number: int, part: Encoded) -> None:
        """Take a part of what the job makes."""
        self.parts.append(part)
        self.note_change()

    async def wait(self) -> None:
        """Wait for its end; a cancel of this wait cancels the job, and then waits for that."""
        assert self.task is not None  # noqa: S101 - it is known by its task's start
        try:
            await asyncio.wait({self.task})
        except asyncio.CancelledError:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Cancel it, unless it has ended, and wait for its end."""
        assert self.task is not None  # noqa: S101 - it is known by its task's start
        self.task.cancel()
        await asyncio.wait({self.task})

    def describe(self) -> dict[str, Any]:
        """Return what RunPod's callers see of it, with `position` while it waits."""
        answer: dict[str, Any] = {"id": self.id, "status": self.state}
        self.is_seen = self.is_final
        now = time.monotonic()
        if self.begun is not None:
            answer["delayTime"] = round((self.begun - self.arrived) * 1000)
        if self.begun is not None and self.ended is not None:
            answer["executionTime"] = round((self.ended - self.begun) * 1000)
        if self.state == "IN_QUEUE":
            answer["position"] = self.place.position
            answer["waitedTime"] = round((now - self.arrived) * 1000)
        if self.state == "IN_PROGRESS" and self.progress is not None:
            answer["output"] = dict(self.progress)
        if self.output is not None:
            output = dict(self.output)
            if "error" in output:
                answer["error"] = output.pop("error")
            answer["output"] = output
        return answer
