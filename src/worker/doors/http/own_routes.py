"""The door's own routes: health, metrics and what can be called."""

import asyncio
from http import HTTPStatus

from aiohttp import web

from worker.doors.http.description import describe_api
from worker.doors.http.desk import Desk
from worker.doors.http.responses import make_json
from worker.settings import Settings

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class OwnRoutes:
    """The handlers of the door's own routes."""

    def __init__(self, settings: Settings, desk: Desk) -> None:
        self._settings = settings
        self._desk = desk

    def list_routes(self, prefix: str) -> list[web.RouteDef]:
        """Return the routes, below a prefix."""
        return [
            web.get(f"{prefix}/health", self._show_health),
            web.get(f"{prefix}/metrics", self._show_metrics),
            web.get(f"{prefix}/openapi.json", self._show_api),
        ]

    def list_checks(self) -> list[web.RouteDef]:
        """Return the route of health checks alone."""
        return [web.get(self._settings.health_check_path, self._ping)]

    async def _ping(self, _: web.Request) -> web.Response:
        """Answer 204 while the worker starts, 200 when it is warm, else 503."""
        if self._desk.is_ready:
            return web.Response(text="ok")
        if self._desk.is_opening:
            return web.Response(status=HTTPStatus.NO_CONTENT)
        return web.Response(status=HTTPStatus.SERVICE_UNAVAILABLE, text="not ready")

    async def _show_health(self, _: web.Request) -> web.Response:
        """Answer with RunPod's counts, and the worker's own report."""
        desk, ends = self._desk, self._desk.meters.ends
        is_ready = desk.is_ready
        counts = {
            "jobs": {
                "completed": ends["completed"],
                "failed": ends["failed"],
                "inProgress": desk.line.inside,
                "inQueue": desk.line.waiting,
                "retried": 0,
            },
            "workers": {
                "idle": int(is_ready and not desk.line.inside),
                "initializing": int(desk.is_opening),
                "ready": int(is_ready),
                "running": int(is_ready and desk.line.inside > 0),
                "throttled": 0,
                "unhealthy": int(not is_ready and not desk.is_opening),
            },
        }
        if not is_ready:
            reason = None if desk.closed is None else desk.closed.message
            return make_json({**counts, "reason": reason}, HTTPStatus.SERVICE_UNAVAILABLE)
        return make_json({**counts, "worker": dict(await desk.ask("health"))})

    async def _show_metrics(self, _: web.Request) -> web.Response:
        line = self._desk.line
        text = self._desk.meters.write(
            waiting=line.waiting,
            inside=line.inside,
            tasks=len(asyncio.all_tasks()),
            is_ready=self._desk.is_ready,
        )
        return web.Response(body=text.encode(), headers={"Content-Type": METRICS_TYPE})

    async def _show_api(self, _: web.Request) -> web.Response:
        return make_json(describe_api(await self._desk.ask("capabilities")))
