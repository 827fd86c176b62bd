"""The SDK's worker loop, with the parts of its class that lose jobs replaced.

What is wrong in runpod 1.12 (rp_scale.JobScaler) and fixed here:
- On SIGTERM, refresh_worker and a fatal error the job long-poll stays open for up to 90 s after
  the runner has ended, and a job handed out in that time is lost. Here polling ends first, then the
  jobs that were taken, then the rest.
- Cancels are not received while the last jobs finish, and a cancel of a job that was taken but has
  not started is lost; a task cancelled before its first step counts as in progress forever.
- A full slot is checked once per second, and the queue ten times per second: each job costs more
  than an idle second. Here a job starts when it is taken, and the next is taken when it ends.
- A result is given up at the first dropped connection (worker.doors.runpod.post).
- A malformed entry in a batch ends the process; one without an input is dropped without an answer;
  and a platform that answers 500 is polled again without a pause.
"""

import asyncio
import json
import signal
import time
from collections.abc import Mapping
from typing import Any, Final

import aiohttp
from runpod.http_client import AsyncClientSession, get_auth_header
from runpod.serverless.modules import rp_http, rp_job, rp_scale

from worker import log
from worker.doors.runpod.post import transmit
from worker.doors.runpod.take import TakenJob, Taker

# How long the cancel of a job that has not started is remembered; the same id may come back later.
STOP_S: Final = 10.0


class GuardedScaler(rp_scale.JobScaler):  # type: ignore[misc] # the SDK has no types
    """The loop of one worker; `leave` ends it once the jobs that were taken have their answers."""

    _session: aiohttp.ClientSession  # from run() on: no job is posted before it

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self._leaving = False
        self._changed = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._taker: Taker | None = None
        self._started: set[str] = set()
        self._stopped: dict[str, float] = {}
        self._seconds: float | None = None

    def leave(self) -> None:
        """Take no further job, answer those that were taken, then end; on the loop's thread."""
        self._leaving = True
        self._changed.set()
        if self._taker is not None:
            self._taker.leave()

    def leave_after(self, seconds: float) -> None:
        """Make a run that has not begun leave after this many seconds."""
        self._seconds = seconds

    def kill_worker(self) -> None:
        """Leave; the SDK calls this after a job when config["refresh_worker"] is set."""
        self.leave()

    def handle_shutdown(self, signum: int, frame: object) -> None:
        """Leave on SIGTERM or SIGINT; called between any two bytecodes."""
        del frame
        log.get().info("leaving", signal=signal.Signals(signum).name)
        self._leaving = True
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self.leave)

    async def run(self) -> None:
        """Take and run jobs until asked to leave; then finish those that were taken."""
        self._loop = asyncio.get_running_loop()
        if self._seconds is not None:
            self._loop.call_later(self._seconds, self.leave)
        async with (
            AsyncClientSession() as session,
            Taker(rp_job._job_get_url, get_auth_header()) as taker,  # noqa: SLF001 - the address as the SDK makes it
        ):
            self._session, self._taker = session, taker
            async with asyncio.TaskGroup() as group:
                stops = group.create_task(self.monitor_stop_signals(session))
                try:
                    await self.get_jobs(session)
                finally:
                    while self.job_progress.get_job_count():
                        await self._wait_for_change()
                    self._shutdown_event.set()
                    stops.cancel()

    async def get_jobs(self, session: aiohttp.ClientSession) -> None:
        """Take a job whenever a slot is free and start it, until asked to leave."""
        assert self._taker is not None  # noqa: S101 - run() made it
        await self.set_scale()
        while not self._leaving:
            free = self.current_concurrency - self.job_progress.get_job_count()
            if free <= 0:
                await self._wait_for_change()
                continue
            for job in await self._taker.take(free):
                if self.job_progress.get(job["id"]) is not None:
                    log.get().warning("job handed out twice", job_id=job["id"])
                    continue
                self._start(session, job)

    def _start(self, session: aiohttp.ClientSession, job: TakenJob) -> None:
        self.job_progress.add(job["id"])
        # handle_job marks a job of the SDK's queue as done; the queue has no other use here
        self.jobs_queue.put_nowait(job)
        self.jobs_queue.get_nowait()
        task = asyncio.create_task(self.handle_job(session, job))
        self.jobs_tasks[job["id"]] = task
        task.add_done_callback(_log_failure)

    async def handle_job(self, session: aiohttp.ClientSession, job: TakenJob) -> None:
        """Run one job and post its result, unless it was cancelled before it could start."""
        self._started.add(job["id"])
        try:
            if time.monotonic() - self._stopped.pop(job["id"], -STOP_S) < STOP_S:
                task = asyncio.current_task()
                assert task is not None  # noqa: S101 - the SDK runs this as a task
                task.cancel()
            await super().handle_job(session, job)
        finally:
            self._started.discard(job["id"])
            self._changed.set()

    async def stop_job(self, job_id: str) -> bool:
        """Cancel a job: at once if it runs, else when it starts."""
        if job_id in self._started:
            stopped: bool = await super().stop_job(job_id)
            return stopped
        now = time.monotonic()
        self._stopped = {i: at for i, at in self._stopped.items() if now - at < STOP_S}
        self._stopped[job_id] = now
        return True

    async def post_progress(self, job_id: str, update: Mapping[str, Any]) -> None:
        """Post one update of a running job, without a retry: a newer one follows."""
        url = rp_http.JOB_DONE_URL.replace("$ID", job_id) + "&isStream=false"
        body = json.dumps({"status": "IN_PROGRESS", "output": dict(update)})
        headers = {"X-Request-ID": job_id, "Content-Type": "application/x-www-form-urlencoded"}
        async with self._session.post(url, data=body, headers=headers) as response:
            response.raise_for_status()

    async def post_item(self, job_id: str, item: Mapping[str, Any]) -> None:
        """Post one item of a running job's stream, until the platform has it.

        The SDK does so for a handler that is a generator, and then streams every job's reply.
        """
        url = rp_http.JOB_STREAM_URL.replace("$ID", job_id) + "&isStream=false"
        await transmit(self._session, url, json.dumps({"output": dict(item)}))

    async def _wait_for_change(self) -> None:
        """Wait until a job has ended or `leave` is called."""
        await self._changed.wait()
        self._changed.clear()


def _log_failure(task: asyncio.Task[None]) -> None:
    """Log an error of the SDK itself; a cancel is not a failure."""
    error = None if task.cancelled() else task.exception()
    if error is not None:
        log.get().error("answer lost", reason=type(error).__name__)
