"""OpenAI's routes: /v1/images/*, /v1/audio/speech, /v1/models."""

import asyncio
import base64
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from http import HTTPStatus
from typing import Any

from aiohttp import web

from worker.doors.http.body import is_form, read_form, read_json
from worker.doors.http.desk import Desk
from worker.doors.http.events import EventStream, follow
from worker.doors.http.responses import Refused, encode_json, make_failed, make_json
from worker.doors.http.sounding import stream_sound
from worker.doors.http.tracked import Tracked
from worker.edge.reply import Failure, make_failure
from worker.errors import InvalidInput, UnsupportedTask
from worker.jobs.job import ReadyPiece
from worker.jobs.outflow import Sink
from worker.media.piece import Encoded
from worker.openai.replies import (
    find_model,
    format_error,
    format_pictures,
    list_events,
    list_models,
    make_event,
    make_partial_event,
)
from worker.openai.translate import (
    EDITS,
    EVENTS,
    GENERATIONS,
    LISTING,
    SPEECH_ROUTE,
    Call,
    translate,
)
from worker.settings import Settings

Respond = Callable[[web.Request], Awaitable[web.StreamResponse]]


class OpenAIRoutes:
    """The handlers of OpenAI's routes."""

    def __init__(self, settings: Settings, desk: Desk) -> None:
        self._settings = settings
        self._desk = desk

    def list_routes(self, prefix: str = "") -> list[web.RouteDef]:
        """Return the routes, below a prefix."""
        return [
            web.get(f"{prefix}{LISTING}", self._list_models),
            web.get(f"{prefix}{LISTING}/{{name:.+}}", self._show_model),
            web.post(f"{prefix}{GENERATIONS}", self._handle_call(GENERATIONS)),
            web.post(f"{prefix}{EDITS}", self._handle_call(EDITS)),
            web.post(f"{prefix}{SPEECH_ROUTE}", self._handle_call(SPEECH_ROUTE)),
        ]

    async def _list_models(self, _: web.Request) -> web.Response:
        return make_json(list_models(await self._desk.ask("capabilities")))

    async def _show_model(self, request: web.Request) -> web.Response:
        model = find_model(await self._desk.ask("capabilities"), request.match_info["name"])
        if model is None:
            message = "this worker serves no model of that name"
            raise Refused(HTTPStatus.NOT_FOUND, "model_not_found", message, param="model")
        return make_json(model)

    def _handle_call(self, route: str) -> Respond:
        async def handle(request: web.Request) -> web.StreamResponse:
            if route == EDITS and is_form(request):
                given: Any = await read_form(request, self._settings, await self._list_switches())
            else:
                given = await read_json(request, self._settings)
            try:
                call = translate(route, given)
            except InvalidInput as error:
                return make_failed(make_failure(error))
            if route == SPEECH_ROUTE:
                await self._require_task("speech", route)
                call = replace(call, input={**call.input, "response_format": "base64"})
            if call.streams and route == SPEECH_ROUTE:
                return await self._stream_speech(request, call)
            streams = call.streams and route in EVENTS
            entry = self._desk.take_in(
                call.input,
                warnings=call.warnings,
                is_plain=True,
                shows_pieces=streams,
                previews=call.previews,
            )
            if streams:
                return await self._stream(request, call, entry)
            await entry.wait()
            return await _make_reply(route, entry)

        return handle

    async def _stream_speech(self, request: web.Request, call: Call) -> web.StreamResponse:
        """Answer with sound while it is made; with why there is none before the first of it."""

        def hand_in(sink: Sink) -> Tracked:
            return self._desk.take_in(call.input, warnings=call.warnings, sink=sink, is_plain=True)

        entry, response = await stream_sound(request, hand_in)
        return await _make_reply(call.route, entry) if response is None else response

    async def _list_switches(self) -> frozenset[str]:
        """Name the fields of any task that are true or false: `stream` is one of speech."""
        rows = (await self._desk.ask("capabilities"))["input"]
        switches = [row for row in rows if row["schema"].get("type") == "boolean"]
        return frozenset(name for row in switches for name in (row["field"], *row["aliases"]))

    async def _require_task(self, task: str, route: str) -> None:
        models = (await self._desk.ask("capabilities"))["models"]
        if not any(task in model["tasks"] for model in models):
            message = f"{route}: no model of this worker can do {task}"
            raise Refused(HTTPStatus.NOT_FOUND, "unsupported_task", message)

    async def _stream(self, request: web.Request, call: Call, entry: Tracked) -> web.StreamResponse:
        """Answer with an event per picture as it is made; comments say how far it is.

        What is known of the job once it has ended is in the last event, which waits for that.
        """
        events, sent = EventStream(request, {"x-request-id": entry.id}), set[int]()
        name, partial, complete = EVENTS[call.route], Counter[int](), set[int]()

        async def send_part(part: Encoded) -> None:
            seed = int(part.facts["seed"])
            if seed in complete:  # its file was ready before this one's
                return
            picture = await _show_file(part)
            event = make_partial_event(name, picture, int(time.time()), partial[seed], seed)
            partial[seed] += 1
            await events.send(event["type"], event)

        async def send_ready(piece: ReadyPiece) -> None:
            if len(sent) == piece.count - 1:
                return
            making = {"seed": piece.seed, "index": piece.index}
            picture = await _show_file(piece.file)
            event = make_event(name, picture, int(time.time()), making)
            sent.add(piece.index)
            complete.add(piece.seed)
            await events.send(event["type"], event)

        try:
            response = await events.open()
            await follow(entry, events, name=None, send_ready=send_ready, send_part=send_part)
        finally:
            await entry.stop()
        answer = entry.answer
        if isinstance(answer, Mapping):
            while entry.parts:
                await send_part(entry.parts.popleft())
            try:
                for event in list_events(name, answer, int(time.time()), sent):
                    await events.send(event["type"], event)
            except UnsupportedTask as error:
                await events.send("error", {"type": "error", **format_error(make_failure(error))})
        else:
            await events.send("error", {"type": "error", **_describe_end(answer)})
        return response


async def _show_file(file: Encoded) -> dict[str, Any]:
    """Return a picture as an entry of a reply."""
    data = await asyncio.to_thread(base64.b64encode, file.data)
    return {"base64": data.decode("ascii"), "mime_type": file.mime_type, **file.facts}


async def _make_reply(route: str, entry: Tracked) -> web.Response:
    headers = {"x-request-id": entry.id}
    answer = entry.answer
    if isinstance(answer, Failure):
        return make_failed(answer, headers)
    if answer is None:
        raise _make_cancelled()
    if route == SPEECH_ROUTE:
        sound = answer["audio"]
        data = await asyncio.to_thread(base64.b64decode, sound["base64"])
        return web.Response(body=data, content_type=sound["mime_type"], headers=headers)
    try:
        reply = format_pictures(answer, int(time.time()))
    except UnsupportedTask as error:
        return make_failed(make_failure(error), headers)
    body = await asyncio.to_thread(encode_json, reply)
    return web.Response(body=body, content_type="application/json", headers=headers)


def _describe_end(answer: Failure | None) -> dict[str, Any]:
    return _make_cancelled().describe() if answer is None else format_error(answer)


def _make_cancelled() -> Refused:
    return Refused(HTTPStatus.CONFLICT, "cancelled", "the job was cancelled")
