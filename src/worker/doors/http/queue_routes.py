"""RunPod's own routes, and those that answer at once or by a job's id."""

import asyncio
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from aiohttp import web

from worker.doors.http.body import read_json
from worker.doors.http.desk import Desk
from worker.doors.http.events import EventStream, follow, is_for_events
from worker.doors.http.responses import (
    JSON,
    Refused,
    encode_json,
    make_failed,
    make_json,
)
from worker.doors.http.tracked import Tracked
from worker.edge.fields import show
from worker.edge.reply import Failure, find_carrier
from worker.jobs.limit import read_limit
from worker.settings import Settings

# As long as RunPod's own /runsync waits; then its callers go on with /status.
WAIT_S: Final = 90.0
KNOWN: Final = frozenset({"input", "policy", "id"})
MOST_NAMED: Final = 10
# What a job that has not ended does.
SIMPLE_WORDS: Final = {"IN_QUEUE": "queued", "IN_PROGRESS": "running"}


class QueueRoutes:
    """The handlers of RunPod's routes."""

    def __init__(self, settings: Settings, desk: Desk) -> None:
        self._settings = settings
        self._desk = desk

    def list_routes(self, prefix: str) -> list[web.RouteDef]:
        """Return the routes, below a prefix."""
        return [
            web.post(f"{prefix}/run", self._run),
            web.post(f"{prefix}/runsync", self._run_and_wait),
            web.get(f"{prefix}/status/{{id}}", self._show_status),
            web.post(f"{prefix}/cancel/{{id}}", self._stop_job),
            web.post(f"{prefix}/generate", self._run_flat),
            web.post(f"{prefix}/generate_async", self._plan_flat),
            web.get(f"{prefix}/result/{{id}}", self._show_result),
        ]

    async def _read_job(self, request: web.Request) -> Tracked:
        """Hand in the job of a body in RunPod's form."""
        body = await read_json(request, self._settings)
        if not isinstance(body, dict) or "input" not in body:
            message = 'the body must be an object with "input", as in {"input": {"prompt": "..."}}'
            raise Refused(HTTPStatus.BAD_REQUEST, "invalid_input", message, param="input")
        others = sorted(show(name) for name in set(body) - KNOWN)[:MOST_NAMED]
        return self._desk.take_in(
            body["input"],
            warnings=[f"{name}: has no effect at this door" for name in others],
            limit=read_limit(body.get("policy")),
            is_kept=True,
        )

    async def _run(self, request: web.Request) -> web.Response:
        entry = await self._read_job(request)
        return make_json({"id": entry.id, "status": "IN_QUEUE"})

    async def _run_and_wait(self, request: web.Request) -> web.StreamResponse:
        """Answer when the job has ended; a caller that leaves before cancels it."""
        entry = await self._read_job(request)
        if is_for_events(request):
            return await self._stream(request, entry, is_owned=True)
        try:
            async with asyncio.timeout(WAIT_S):
                while not entry.is_final:
                    await entry.news.wait()
        except TimeoutError:
            pass
        except asyncio.CancelledError:
            await entry.stop()
            raise
        return await _make_state(entry)

    async def _show_status(self, request: web.Request) -> web.StreamResponse:
        entry = self._find(request)
        if is_for_events(request):
            return await self._stream(request, entry, is_owned=False)
        return await _make_state(entry)

    async def _stream(
        self, request: web.Request, entry: Tracked, *, is_owned: bool
    ) -> web.StreamResponse:
        """Answer with events: `progress` while the job goes on, then `result`."""
        events = EventStream(request, {"x-request-id": entry.id})
        try:
            response = await events.open()
            await follow(entry, events, name="progress")
        finally:
            if is_owned:
                await entry.stop()
        await events.send("result", entry.describe())
        return response

    async def _stop_job(self, request: web.Request) -> web.Response:
        entry = self._find(request)
        await entry.stop()
        return await _make_state(entry)

    async def _run_flat(self, request: web.Request) -> web.Response:
        entry = self._desk.take_in(await read_json(request, self._settings), is_plain=True)
        await entry.wait()
        if isinstance(entry.answer, Failure):
            return make_failed(entry.answer, {"x-request-id": entry.id})
        return await _make_result(entry)

    async def _plan_flat(self, request: web.Request) -> web.Response:
        entry = self._desk.take_in(
            await read_json(request, self._settings), is_plain=True, is_kept=True
        )
        return make_json({"job_id": entry.id, "status": "queued", "detail": None})

    async def _show_result(self, request: web.Request) -> web.Response:
        entry = self._find(request)
        if not entry.is_final:
            word = SIMPLE_WORDS[entry.state]
            return make_json({"detail": f"Job status: {word}"}, HTTPStatus.ACCEPTED)
        entry.is_seen = True
        if isinstance(entry.answer, Failure):
            return make_failed(entry.answer, {"x-request-id": entry.id})
        return await _make_result(entry)

    def _find(self, request: web.Request) -> Tracked:
        entry = self._desk.results.find(request.match_info["id"])
        if entry is None:
            message = "no job is known by that id: it is another worker's, or its result is gone"
            raise Refused(HTTPStatus.NOT_FOUND, "job_not_found", message)
        return entry


async def _make_state(entry: Tracked) -> web.Response:
    state = entry.describe()
    detail = None if entry.output is None else entry.output.get("error")
    state |= {"job_id": entry.id, "detail": detail}
    body = await asyncio.to_thread(encode_json, state)
    return web.Response(body=body, content_type=JSON, headers={"x-request-id": entry.id})


async def _make_result(entry: Tracked) -> web.Response:
    """Answer with the first piece under its own word, and what the reply has in addition."""
    output = entry.output
    if output is None:
        raise Refused(HTTPStatus.CONFLICT, "cancelled", "the job was cancelled")
    body = await asyncio.to_thread(encode_json, _simplify(output))
    return web.Response(body=body, content_type=JSON, headers={"x-request-id": entry.id})


def _simplify(output: Mapping[str, Any]) -> dict[str, Any]:
    """Return an output whose first piece is at the top, as `image` or what else it is."""
    found = find_carrier(output)
    if found is None:
        return dict(output)
    key, carrier = found
    if isinstance(output[key], Mapping):  # a single piece is at the top already
        return dict(output)
    first, *others = output[key]
    rest = {name: value for name, value in first.items() if name != carrier}
    return {key.removesuffix("s"): first[carrier], **output, key: [rest, *others]}
