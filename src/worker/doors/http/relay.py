"""The page without a worker: what it asks for is forwarded to a queue endpoint of RunPod.

The key of the environment is added here, so that no browser has it. This server is on loopback
alone; a job whose page is closed is cancelled, since nobody would see what it makes.
"""

import asyncio
import queue
import re
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from typing import Any, Final

from aiohttp import web

from worker import log
from worker.doors.http.around import make_guarded_app
from worker.doors.http.body import read_json
from worker.doors.http.door import SIGNALS
from worker.doors.http.endpoint import ENDPOINT_ID, FINAL, QueueEndpoint
from worker.doors.http.events import EventStream, is_for_events
from worker.doors.http.guard import Guard
from worker.doors.http.playground import list_page_routes
from worker.doors.http.responses import Refused, make_json
from worker.doors.http.server import Server
from worker.errors import Detail, InvalidSettings
from worker.settings import Settings

VARIABLE: Final = "RUNPOD_API_KEY"
# Checked here alone: workers have these variables too, and no use for them.
KEY: Final = re.compile(r"[!-~]+")
ADDRESS: Final = re.compile(r"https?://[^\s/@]+[^\s@?#]*", re.IGNORECASE)


class Relay:
    """The handlers of the routes that the page calls, for one endpoint."""

    def __init__(self, settings: Settings, endpoint: QueueEndpoint) -> None:
        self._settings = settings
        self._endpoint = endpoint
        self._running: set[asyncio.Task[Any]] = set()

    def make_app(self) -> web.Application:
        """Return the application, with the rules of a door without keys and the page."""
        app = make_guarded_app(Guard(self._settings, ()))
        base = self._endpoint.base
        app.add_routes(
            [
                web.get("/ping", self._ping),
                web.get("/health", self._show_health),
                web.post("/run", self._run),
                web.post("/runsync", self._run_and_wait),
                web.get("/status/{id}", self._show_status),
                web.post("/cancel/{id}", self._stop_job),
                *list_page_routes(jobs=base, openai=f"{base}/openai/v1", variable=VARIABLE),
            ]
        )
        app.on_shutdown.append(self._end)
        app.on_cleanup.append(self._close)
        return app

    async def _ping(self, _: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def _show_health(self, _: web.Request) -> web.Response:
        return make_json(await self._endpoint.show_health())

    async def _run(self, request: web.Request) -> web.Response:
        return make_json(await self._endpoint.post(await self._read_job(request)))

    async def _show_status(self, request: web.Request) -> web.Response:
        return make_json(await self._endpoint.show_status(request.match_info["id"]))

    async def _stop_job(self, request: web.Request) -> web.Response:
        return make_json(await self._endpoint.stop(request.match_info["id"]))

    async def _run_and_wait(self, request: web.Request) -> web.StreamResponse:
        """Answer when the job has ended, with events until then if they are accepted."""
        body = await self._read_job(request)
        async with self._follow_job(body) as states:
            if not is_for_events(request):
                async for state in states:
                    last = state
                return make_json(last)
            events = EventStream(request, {})
            response = await events.open()
            try:
                async for state in states:
                    name = "result" if state.get("status") in FINAL else "progress"
                    await events.send(name, state)
            except Refused as refusal:
                await events.send("result", {"status": "FAILED", "error": refusal.message})
            return response

    async def _read_job(self, request: web.Request) -> Mapping[str, Any]:
        body = await read_json(request, self._settings)
        if not isinstance(body, dict) or "input" not in body:
            message = 'the body must be an object with "input"'
            raise Refused(HTTPStatus.BAD_REQUEST, "invalid_input", message, param="input")
        return body

    @asynccontextmanager
    async def _follow_job(
        self, body: Mapping[str, Any]
    ) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        """Queue a job and yield its states; one that is left before its end is cancelled."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a handler is a task
        self._running.add(task)
        posting = asyncio.create_task(self._endpoint.post(body))
        last: dict[str, Any] = {}

        async def follow(job_id: str) -> AsyncIterator[dict[str, Any]]:
            async for state in self._endpoint.follow(job_id):
                last.update(state)
                yield state

        try:
            queued = await asyncio.shield(posting)
            yield follow(queued["id"])
        finally:
            self._running.discard(task)
            if last.get("status") not in FINAL:
                await asyncio.shield(self._stop(posting))

    async def _stop(self, posting: asyncio.Task[dict[str, Any]]) -> None:
        """Cancel what may just be posted, or may have ended."""
        with suppress(Refused):
            queued = await posting
            await self._endpoint.try_to_stop(queued["id"])

    async def _end(self, _: web.Application) -> None:
        """Leave the jobs that are followed, which cancels them."""
        for task in tuple(self._running):
            task.cancel()

    async def _close(self, _: web.Application) -> None:
        await self._endpoint.close()


def serve_page(settings: Settings, endpoint_id: str) -> int:
    """Serve the page for an endpoint until SIGINT or SIGTERM; return the exit code.

    Raises InvalidSettings without a key, or for an id or an address that is none, and OSError where
    the port is taken.
    """
    key = settings.runpod_api_key
    if key is None:
        raise _refuse(VARIABLE, "is required to call an endpoint")
    if not KEY.fullmatch(key.get_secret_value()):
        raise _refuse(VARIABLE, "must be a key alone: no blanks, ASCII only")
    if not ADDRESS.fullmatch(settings.runpod_endpoint_base_url):
        raise _refuse("RUNPOD_ENDPOINT_BASE_URL", "must be an https:// address")
    if not ENDPOINT_ID.fullmatch(endpoint_id):
        raise _refuse("--endpoint", "must be the id of an endpoint, as in its address")
    reasons: queue.SimpleQueue[int] = queue.SimpleQueue()
    for one in SIGNALS:
        signal.signal(one, lambda signum, _: reasons.put(signum))
    base = f"{settings.runpod_endpoint_base_url.rstrip('/')}/{endpoint_id}"
    server, (host, port) = Server(), (settings.http_host, settings.http_port)

    def make_apps() -> list[tuple[tuple[str, int], web.Application]]:
        relay = Relay(settings, QueueEndpoint(base, key.get_secret_value()))
        return [((host, port), relay.make_app())]

    server.start(make_apps)
    log.get().info("listens", host=host, port=port, endpoint=base)
    print(f"http://{host}:{port}", flush=True)  # noqa: T201 - what its user opens
    reasons.get()
    server.stop()
    return 0


def _refuse(name: str, message: str) -> InvalidSettings:
    return InvalidSettings(f"{name}: {message}", details=[Detail(name, message)])
