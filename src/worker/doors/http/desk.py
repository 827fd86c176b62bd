"""Where jobs are handed in: the line, the worker behind it, and what became of each."""

import asyncio
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

from worker import log
from worker.doors.http.line import Line, LineFull
from worker.doors.http.meters import Meters
from worker.doors.http.responses import RETRY_S, Refused
from worker.doors.http.results import Results
from worker.doors.http.tracked import JobState, Tracked
from worker.edge.reply import Failure, format_answer, log_bug, make_failure
from worker.errors import WorkerError
from worker.jobs.job import Answer, Handle, Job
from worker.jobs.limit import Limit
from worker.jobs.outflow import Sink
from worker.openai.queued import answer_job
from worker.setting_values import MB
from worker.settings import Settings

# RunPod's load balancer carries 30 MB, of which the reply's own frame takes some.
MOST_REPLY_BYTES: Final = 30 * MB - 100_000
# How long a worker that leaves waits for callers to fetch what it has just made.
FETCH_S: Final = 10.0
# It ends a request after 330 s: an answer that says so must arrive before.
BALANCED: Final = Limit(320, "the longest that RunPod's load balancer waits")


class Desk:
    """Takes jobs while it is open; `closed` is why it does not.

    `open_for` is called with the worker once it is warm. After a job that leaves the worker unable
    to go on, no more are taken, and `on_end` is called.
    """

    def __init__(self, settings: Settings, on_end: Callable[[], None]) -> None:
        self.meters = Meters()
        self.results = Results()
        self.line = Line(settings.jobs_at_once, settings.http_queue)
        self.closed: WorkerError | None = None
        self.is_leaving = False
        self._settings = settings
        self._on_end = on_end
        self._handle: Handle | None = None
        self._until: Callable[[], bool]
        self._running: set[asyncio.Task[None]] = set()

    @property
    def is_ready(self) -> bool:
        """Whether jobs are taken."""
        return self._handle is not None and self.closed is None and not self.is_leaving

    @property
    def is_opening(self) -> bool:
        """Whether jobs will be taken, and are not yet."""
        return self._handle is None and self.closed is None and not self.is_leaving

    def close_for(self, error: WorkerError) -> None:
        """Refuse every job with this reason from now on."""
        self.closed = error

    def open_for(self, handle: Handle, until: Callable[[], bool]) -> None:
        """Take jobs from now on."""
        self._handle, self._until = handle, until

    async def ask(self, op: str) -> Mapping[str, Any]:
        """Return what the worker says about itself, outside the line; raises Refused."""
        handle = self._require_open()
        answer = await handle(Job(uuid.uuid4().hex, {"op": op}, MOST_REPLY_BYTES))
        if isinstance(answer, Failure):
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "worker_not_ready", answer.message)
        return answer

    def take_in(
        self,
        given: Any,
        *,
        warnings: Sequence[str] = (),
        limit: Limit | None = None,
        sink: Sink | None = None,
        is_plain: bool = False,
        is_kept: bool = False,
        shows_pieces: bool = False,
        previews: int = 0,
    ) -> Tracked:
        """Hand in a job; what becomes of it can be asked for by its id if it `is_kept`.

        `sink` gets the parts of what is made, if the job asks for them. With `shows_pieces` what it
        returns gets each piece as soon as that is a file, and before each so many `previews` of it.

        Raises Refused where none is taken or too many wait.
        """
        handle = self._require_open()
        try:
            place = self.line.join()
        except LineFull as full:
            self.meters.note("refused")
            raise Refused(
                HTTPStatus.TOO_MANY_REQUESTS,
                "rate_limit_exceeded",
                "too many jobs wait already; try again",
                retry_after=full.retry_after,
            ) from None
        entry = Tracked(uuid.uuid4().hex, place)
        job = Job(
            entry.id,
            given,
            MOST_REPLY_BYTES,
            listener=entry.announce,
            sink=entry.add_part if previews else sink,
            previews=previews,
            limit=self._choose_limit(limit),
            is_plain=is_plain,
            warnings=list(warnings),
            wait=entry.wait_for_turn,
            show=entry.add_ready if shows_pieces else None,
        )
        self.results.add(entry)
        entry.task = asyncio.create_task(self._run(entry, job, handle, is_kept=is_kept))
        self._running.add(entry.task)
        entry.task.add_done_callback(self._running.discard)
        return entry

    async def finish(self) -> None:
        """Take no more jobs; wait until those that were taken have ended.

        What callers must come for is kept until they have, for at most FETCH_S.
        """
        self.is_leaving = True
        if self._running:
            await asyncio.wait(self._running)
        end = time.monotonic() + FETCH_S
        while self.results.has_unseen and time.monotonic() < end:  # noqa: ASYNC110 - callers poll too
            await asyncio.sleep(0.1)

    def _require_open(self) -> Handle:
        if self._handle is not None and self.is_ready:
            return self._handle
        if self.closed is not None and not self.is_leaving:
            message = self.closed.message
            retry = RETRY_S if self.closed.retryable else None
        else:
            message = "the worker is leaving" if self.is_leaving else "the worker is starting"
            retry = RETRY_S
        status = HTTPStatus.SERVICE_UNAVAILABLE
        raise Refused(status, "worker_not_ready", message, retry_after=retry)

    def _choose_limit(self, limit: Limit | None) -> Limit | None:
        limits = [limit] if limit is not None else []
        if self._settings.is_load_balanced:
            limits.append(BALANCED)
        return min(limits, key=lambda one: one.seconds, default=None)

    async def _run(self, entry: Tracked, job: Job, handle: Handle, *, is_kept: bool) -> None:
        """Handle a job, which waits for its turn once it is known to be right; record its end."""
        end: JobState = "CANCELLED"
        try:

            async def listen(one: Job) -> Answer:
                entry.answer = await handle(one)
                return entry.answer

            entry.output = await answer_job(job, listen)
            end = "FAILED" if "error" in entry.output else "COMPLETED"
        except Exception:  # noqa: BLE001 - whatever it is, the caller gets an answer
            entry.answer = make_failure(log_bug("bug"))
            entry.output = format_answer(entry.answer)
            end = "FAILED"
        finally:
            self._end(entry, end, is_kept=is_kept)

    def _end(self, entry: Tracked, end: JobState, *, is_kept: bool) -> None:
        entry.ended = time.monotonic()
        entry.state = end
        begun = entry.begun if end == "COMPLETED" else None
        entry.place.leave(None if begun is None else entry.ended - begun)
        self.meters.note(end.lower(), entry.answer)
        if is_kept:
            self.results.keep(entry)
        else:
            self.results.drop(entry.id)
        entry.note_change()
        if self._until() and not self.is_leaving:
            log.get().info("leaving", reason="the worker cannot go on")
            self._on_end()
