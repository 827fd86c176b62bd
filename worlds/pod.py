"""A RunPod platform on loopback: the job API for callers and workers, which can misbehave.

`python -m worlds.pod -- COMMAND` serves it with COMMAND as its worker, and prints its address.
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from aiohttp import web

from worlds.process import Process

RUN_BYTES: Final = 10_000_000  # the platform's limits for /run, /runsync and a result
RUNSYNC_BYTES: Final = 20_000_000
RESULT_BYTES: Final = 20_000_000
RUNSYNC_WAIT_S: Final = 90.0
FINAL: Final = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"})
KEY: Final = "loopback-key"
HANG_S: Final = 60.0  # what has not happened by then never will, even on a busy machine

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Slow:
    """A fault: answer correctly, but only after this many seconds."""

    seconds: float


Fault = int | str | Slow
"""A status code; "garbage" (not JSON), "html", "drop" (close the connection); or Slow. When a job
is handed out: "no-input", "no-id", "list" (in a list, with a stray word) or "cancelled" (the stop
signal overtakes the job)."""


@dataclass(slots=True)
class Job:
    """One job as the platform sees it; times are seconds of the monotonic clock."""

    id: str
    body: dict[str, Any]
    status: str = "IN_QUEUE"
    worker: str | None = None
    output: Any = None
    error: str | None = None
    progress: list[Any] = field(default_factory=list)
    answers: int = 0
    created: float = 0.0
    taken: float = 0.0
    done: float = 0.0

    @property
    def final(self) -> bool:
        """Whether the platform will never change it again."""
        return self.status in FINAL

    def describe(self) -> dict[str, Any]:
        """Return what a caller sees at /status."""
        answer: dict[str, Any] = {"id": self.id, "status": self.status}
        if self.taken:
            answer["delayTime"] = round((self.taken - self.created) * 1000)
            answer["workerId"] = self.worker
        if self.done and self.taken:
            answer["executionTime"] = round((self.done - self.taken) * 1000)
        if self.status == "IN_PROGRESS" and self.progress:
            answer["output"] = self.progress[-1]
        if self.output is not None:
            answer["output"] = self.output
        if self.error is not None:
            answer["error"] = self.error
        return answer


@dataclass(frozen=True, slots=True)
class Event:
    """Something that reached the platform; `at` is seconds of the monotonic clock.

    Kinds: submitted, poll, taken, returned (handed to a connection that was gone), progress,
    answer, refused (a result that the platform does not accept), cancelled, stop (the signal was
    sent to the worker), stop-poll, ping, stop-pod, stream, fault.
    """

    at: float
    kind: str
    job: str | None = None
    data: Any = None


class Pod:
    """The platform, in its own thread; a context manager.

    A poll for a job or a stop signal waits `hold_s` seconds before it is answered with 204. Without
    `keep`, the events of a job are dropped with the job.
    """

    def __init__(
        self,
        *,
        hold_s: float = 2.0,
        endpoint: str = "local",
        port: int = 0,
        keep: bool = True,
    ) -> None:
        self.endpoint = endpoint
        self.pod_id = f"pod-{uuid.uuid4().hex[:12]}"
        self.hold_s = hold_s
        self.events: list[Event] = []
        self.jobs: dict[str, Job] = {}
        self._port = port
        self._keep = keep
        self._queue: deque[str] = deque()
        self._stops: dict[str, list[str]] = {}
        self._faults: dict[str, deque[Fault]] = {}
        self._changed = threading.Condition()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="pod", daemon=True)
        self._runner: web.AppRunner | None = None
        self._arrived: asyncio.Event | None = None
        self._stop_arrived: asyncio.Event | None = None
        self._answered: dict[str, asyncio.Event] = {}

    # What tests use.

    def __enter__(self) -> Self:
        self._thread.start()
        self._call(self._serve())
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def base(self) -> str:
        """The address that stands for https://api.runpod.ai/v2."""
        return f"http://127.0.0.1:{self._port}/v2"

    @property
    def url(self) -> str:
        """The address of this endpoint: what comes before /run."""
        return f"{self.base}/{self.endpoint}"

    def environment(self) -> dict[str, str]:
        """Return the variables that RunPod sets for a worker."""
        return {
            "RUNPOD_ENDPOINT_ID": self.endpoint,
            "RUNPOD_POD_ID": self.pod_id,
            "RUNPOD_AI_API_KEY": KEY,
            "RUNPOD_WEBHOOK_GET_JOB": f"{self.url}/job-take/$ID?gpu=none",
            "RUNPOD_WEBHOOK_POST_OUTPUT": f"{self.url}/job-done/$RUNPOD_POD_ID/$ID?gpu=none",
            "RUNPOD_WEBHOOK_POST_STREAM": f"{self.url}/job-stream/$RUNPOD_POD_ID/$ID?gpu=none",
            "RUNPOD_WEBHOOK_PING": f"{self.url}/ping/$RUNPOD_POD_ID?gpu=none",
            "RUNPOD_PING_INTERVAL": "1000",
            "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
            "RUNPOD_SKIP_GPU_CHECK": "true",
        }

    def submit(self, job_input: Any, **top: Any) -> str:
        """Queue a job (`top` are further top-level keys, such as s3Config) and return its id."""

        async def submit() -> str:
            return self._submit({"input": job_input, **top}).id

        return self._call(submit())

    def cancel(self, job_id: str) -> None:
        """Cancel a job, as POST /cancel does."""

        async def cancel() -> None:
            self._cancel(self.jobs[job_id])

        self._call(cancel())

    def misbehave(self, kind: str, *faults: Fault) -> None:
        """Break the next requests: job-take, hand, job-stop, job-done, progress, ping or status."""

        async def add() -> None:
            self._faults.setdefault(kind, deque()).extend(faults)

        self._call(add())

    def behave(self) -> None:
        """Forget the faults that no request has met yet."""

        async def clear() -> None:
            self._faults.clear()

        self._call(clear())

    def until(self, condition: Callable[[], T], timeout_s: float = HANG_S) -> T:
        """Wait until the condition is true, and return its value."""
        end = time.monotonic() + timeout_s
        with self._changed:
            while not (value := condition()):
                left = end - time.monotonic()
                if left <= 0:
                    seen = ", ".join(f"{e.kind} {e.job or ''}".strip() for e in self.events[-40:])
                    raise TimeoutError(f"not in {timeout_s} s; the platform saw: {seen}")
                self._changed.wait(min(left, 0.02))  # it may read the worker's log
            return value

    def change(self, timeout_s: float) -> None:
        """Wait until something happens, or until the timeout."""
        with self._changed:
            self._changed.wait(timeout_s)

    def forget(self, job_id: str) -> None:
        """Drop a final job, and its events unless `keep` is set."""

        async def forget() -> None:
            del self.jobs[job_id], self._answered[job_id]
            if not self._keep:
                with self._changed:
                    self.events = [e for e in self.events if e.job in self.jobs]

        self._call(forget())

    def answer(self, job_id: str, timeout_s: float = HANG_S) -> Job:
        """Wait for the end of a job and return it."""
        self.until(lambda: self.jobs[job_id].final, timeout_s)
        return self.jobs[job_id]

    def seen(self, kind: str, job_id: str | None = None) -> list[Event]:
        """Return the events of a kind so far, of one job or of all."""
        return [e for e in self.events if e.kind == kind and job_id in (None, e.job)]

    def has_heard(self, job_id: str) -> bool:
        """Whether the worker has received a job's stop signal and polls for the next one."""
        sent = self.seen("stop", job_id)
        return bool(sent) and any(e.at > sent[0].at for e in self.seen("stop-poll"))

    @contextlib.contextmanager
    def worker(
        self,
        command: Sequence[str],
        environ: Mapping[str, str] | None = None,
        *,
        cwd: Path | None = None,
    ) -> Iterator["Process"]:
        """Run a worker of this endpoint; at the end, whatever is left of it is killed."""
        with Process(command, {**self.environment(), **(environ or {})}, cwd=cwd) as process:
            yield process

    # The job API for callers.

    def _submit(self, body: dict[str, Any]) -> Job:
        job = Job(id=f"{uuid.uuid4()}-l1", body=body, created=time.monotonic())
        self.jobs[job.id] = job
        self._answered[job.id] = asyncio.Event()
        self._queue.append(job.id)
        self._record("submitted", job.id)
        assert self._arrived is not None
        self._arrived.set()
        return job

    async def _run(self, request: web.Request) -> web.Response:
        body = await _body(request, RUN_BYTES)
        job = self._submit(body)
        return web.json_response({"id": job.id, "status": job.status})

    async def _runsync(self, request: web.Request) -> web.Response:
        job = self._submit(await _body(request, RUNSYNC_BYTES))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._answered[job.id].wait(), RUNSYNC_WAIT_S)
        return web.json_response(job.describe())

    async def _status(self, request: web.Request) -> web.Response:
        fault = await self._fault("status", request)
        if isinstance(fault, web.Response):
            return fault
        return web.json_response(self._job_of(request).describe())

    async def _cancel_request(self, request: web.Request) -> web.Response:
        job = self._job_of(request)
        self._cancel(job)
        return web.json_response({"id": job.id, "status": job.status})

    def _cancel(self, job: Job) -> None:
        if job.status == "IN_PROGRESS":
            self._stops.setdefault(job.worker or "", []).append(job.id)
            assert self._stop_arrived is not None
            self._stop_arrived.set()
        elif job.status == "IN_QUEUE":
            self._queue.remove(job.id)
        else:
            # A second cancel of a job that its worker may still be stopping is passed on too.
            if job.status == "CANCELLED" and job.worker:
                self._stops.setdefault(job.worker, []).append(job.id)
                assert self._stop_arrived is not None
                self._stop_arrived.set()
            return
        job.status, job.done = "CANCELLED", time.monotonic()
        self._record("cancelled", job.id)
        self._answered[job.id].set()

    async def _health(self, _: web.Request) -> web.Response:
        def count(status: str) -> int:
            return sum(job.status == status for job in self.jobs.values())

        recent = time.monotonic() - 2 * max(self.hold_s, 1)
        ready = bool([e for e in self.events if e.kind in ("poll", "ping") and e.at > recent])
        running = count("IN_PROGRESS")
        return web.json_response(
            {
                "jobs": {
                    "completed": count("COMPLETED"),
                    "failed": count("FAILED"),
                    "inProgress": running,
                    "inQueue": count("IN_QUEUE"),
                    "retried": 0,
                },
                "workers": {
                    "idle": int(ready and not running),
                    "ready": int(ready),
                    "running": int(bool(running)),
                    "initializing": 0,
                    "throttled": 0,
                    "unhealthy": 0,
                },
            }
        )

    async def _purge(self, _: web.Request) -> web.Response:
        removed = [self.jobs[job_id] for job_id in self._queue]
        for job in removed:
            self._cancel(job)
        return web.json_response({"removed": len(removed), "status": "completed"})

    async def _stream_status(self, request: web.Request) -> web.Response:
        job = self._job_of(request)
        return web.json_response({"status": job.status, "stream": []})

    # The job API for workers.

    async def _take(self, request: web.Request) -> web.StreamResponse:
        self._record("poll", data=dict(request.query))
        fault = await self._fault("job-take", request)
        if isinstance(fault, web.Response):
            return fault
        batch = "job-take-batch" in request.path
        most = int(request.query.get("batch_size", "1"))
        end = self._loop.time() + self.hold_s
        assert self._arrived is not None
        while not self._queue:
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), end - self._loop.time())
            except TimeoutError:
                return web.Response(status=204)
        handed = [self._queue.popleft() for _ in range(min(most, len(self._queue)))]
        bodies = [{"id": job_id, **self.jobs[job_id].body} for job_id in handed]
        payload: Any = bodies if batch else bodies[0]
        fault = self._next_fault("hand")
        if fault in ("no-input", "no-id"):
            bodies[0].pop(str(fault).removeprefix("no-"))
        elif fault == "list":
            payload = [*bodies, "stray"]
        return await self._hand(request, handed, payload, cancelled=fault == "cancelled")

    async def _hand(
        self, request: web.Request, handed: list[str], payload: Any, *, cancelled: bool
    ) -> web.StreamResponse:
        worker = request.match_info["worker"]
        for job_id in handed:
            job = self.jobs[job_id]
            job.status, job.worker, job.taken = "IN_PROGRESS", worker, time.monotonic()
            self._record("taken", job_id)
            if cancelled:
                self._cancel(job)
        response = web.json_response(payload)
        try:
            while cancelled and not self.has_heard(handed[-1]):  # noqa: ASYNC110 - for one test
                await asyncio.sleep(0.01)
            await response.prepare(request)
            await response.write_eof()
            if request.transport is None or request.transport.is_closing():
                raise ConnectionResetError
        except (ConnectionError, asyncio.CancelledError):
            for job_id in reversed(handed):
                job = self.jobs[job_id]
                job.status, job.worker, job.taken = "IN_QUEUE", None, 0.0
                self._queue.appendleft(job_id)
                self._record("returned", job_id)
            assert self._arrived is not None
            self._arrived.set()
            raise
        return response

    async def _stop(self, request: web.Request) -> web.Response:
        self._record("stop-poll")
        fault = await self._fault("job-stop", request)
        if isinstance(fault, web.Response):
            return fault
        worker = request.match_info["worker"]
        end = self._loop.time() + self.hold_s
        assert self._stop_arrived is not None
        while not self._stops.get(worker):
            self._stop_arrived.clear()
            try:
                await asyncio.wait_for(self._stop_arrived.wait(), end - self._loop.time())
            except TimeoutError:
                return web.Response(status=204)
        stopped = self._stops.pop(worker)
        for job_id in stopped:
            self._record("stop", job_id)
        return web.json_response({"jobsToStop": stopped})

    async def _done(self, request: web.Request) -> web.Response:
        raw = await request.read()
        job = self._job_of(request)
        try:
            if len(raw) > RESULT_BYTES:
                raise ValueError(f"{len(raw)} bytes")  # noqa: TRY301 - refused like the rest
            result = json.loads(raw, parse_constant=_refuse_constant)
            unfinished = result.get("status") == "IN_PROGRESS"
        except (ValueError, AttributeError) as error:
            self._record("refused", job.id, str(error))
            return web.Response(status=400)
        fault = await self._fault("progress" if unfinished else "job-done", request)
        if isinstance(fault, web.Response):
            return fault
        if unfinished:
            self._record("progress", job.id, result.get("output"))
            job.progress.append(result.get("output"))
            return web.json_response({})
        job.answers += 1
        if not job.final:
            job.output, job.error = result.get("output"), result.get("error")
            job.status = "FAILED" if job.error else "COMPLETED"
            job.done = time.monotonic()
        self._record("answer", job.id, result)
        if result.get("stopPod"):
            self._record("stop-pod", job.id)
        self._answered[job.id].set()
        return web.json_response({})

    async def _streamed(self, request: web.Request) -> web.Response:
        self._record("stream", self._job_of(request).id, await request.text())
        return web.json_response({})

    async def _ping(self, request: web.Request) -> web.Response:
        fault = await self._fault("ping", request)
        if isinstance(fault, web.Response):
            return fault
        self._record("ping", request.query.get("job_id"), dict(request.query))
        return web.json_response({})

    # How it runs.

    async def _serve(self) -> None:
        self._arrived, self._stop_arrived = asyncio.Event(), asyncio.Event()
        app = web.Application(client_max_size=64_000_000, middlewares=[_authorised])
        api = "/v2/{endpoint}"
        app.add_routes(
            [
                web.post(f"{api}/run", self._run),
                web.post(f"{api}/runsync", self._runsync),
                web.get(f"{api}/status/{{job}}", self._status),
                web.post(f"{api}/status/{{job}}", self._status),
                web.post(f"{api}/cancel/{{job}}", self._cancel_request),
                web.get(f"{api}/stream/{{job}}", self._stream_status),
                web.get(f"{api}/health", self._health),
                web.post(f"{api}/purge-queue", self._purge),
                web.get(f"{api}/job-take/{{worker}}", self._take),
                web.get(f"{api}/job-take-batch/{{worker}}", self._take),
                web.get(f"{api}/job-stop/{{worker}}", self._stop),
                web.post(f"{api}/job-done/{{worker}}/{{job}}", self._done),
                web.post(f"{api}/job-stream/{{worker}}/{{job}}", self._streamed),
                web.get(f"{api}/ping/{{worker}}", self._ping),
            ]
        )
        # When a worker hangs up, its poll ends at once, so that no job is lost to it.
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port)
        await site.start()
        self._port = self._runner.addresses[0][1]

    async def _close(self) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(HANG_S)

    def _record(self, kind: str, job: str | None = None, data: Any = None) -> None:
        with self._changed:
            self.events.append(Event(time.monotonic(), kind, job, data))
            self._changed.notify_all()

    def _job_of(self, request: web.Request) -> Job:
        job = self.jobs.get(request.match_info["job"])
        if job is None:
            raise web.HTTPNotFound(text=json.dumps({"error": "job not found"}))
        return job

    def _next_fault(self, kind: str) -> Fault | None:
        waiting = self._faults.get(kind)
        if not waiting:
            return None
        self._record("fault", data=(kind, waiting[0]))
        return waiting.popleft()

    async def _fault(self, kind: str, request: web.Request) -> web.Response | Fault | None:
        fault = self._next_fault(kind)
        if fault is None:
            return None
        match fault:
            case Slow(seconds):
                await asyncio.sleep(seconds)
                return None
            case "drop":
                assert request.transport is not None
                request.transport.abort()
        return {
            "drop": web.Response(),
            "garbage": web.Response(text="{]", content_type="application/json"),
            "html": web.Response(text="<html>gateway</html>", content_type="text/html"),
        }.get(str(fault)) or (
            web.Response(status=fault, text="unwell") if isinstance(fault, int) else fault
        )


def _refuse_constant(word: str) -> Any:
    raise ValueError(f"{word} is not JSON")


async def _body(request: web.Request, limit: int) -> dict[str, Any]:
    raw = await request.read()
    if len(raw) > limit:
        raise web.HTTPRequestEntityTooLarge(limit, len(raw))
    try:
        body = json.loads(raw)
    except ValueError:
        raise web.HTTPBadRequest(text='{"error": "not JSON"}') from None
    if not isinstance(body, dict) or "input" not in body:
        raise web.HTTPBadRequest(text='{"error": "input is required"}')
    return {k: body[k] for k in ("input", "webhook", "policy", "s3Config") if k in body}


@web.middleware
async def _authorised(
    request: web.Request, handler: Callable[[web.Request], Any]
) -> web.StreamResponse:
    if request.headers.get("Authorization", "").removeprefix("Bearer ") != KEY:
        return web.json_response({"error": "unauthorized"}, status=401)
    response: web.StreamResponse = await handler(request)
    return response


def main() -> int:
    """Serve until interrupted or until the worker ends, and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0: any free port")
    parser.add_argument("command", nargs="*", help="the worker's command, after --")
    given = parser.parse_args()
    with Pod(port=given.port) as pod:
        print(f"endpoint: {pod.url}\nkey: {KEY}", flush=True)  # noqa: T201 - what a caller needs
        environ = {**os.environ, **pod.environment()}
        if not given.command:
            signal.sigwait([signal.SIGINT, signal.SIGTERM])
            return 0
        process = subprocess.Popen(given.command, env=environ)
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, lambda *_: process.terminate())
        return process.wait()


if __name__ == "__main__":
    sys.exit(main())
