"""The door as an application: its routes."""

from typing import Final

from aiohttp import web

from worker.doors.http.around import make_guarded_app
from worker.doors.http.desk import Desk
from worker.doors.http.guard import Guard
from worker.doors.http.openai_routes import OpenAIRoutes
from worker.doors.http.own_routes import OwnRoutes
from worker.doors.http.playground import list_page_routes, list_paths
from worker.doors.http.queue_routes import QueueRoutes
from worker.settings import Settings

# As in RunPod's addresses, so that a client needs no other than its base.
ENDPOINT_BASE: Final = "/v2/{endpoint}"
# Where the page's examples expect a key: a name that no other program reads.
KEY_VARIABLE: Final = "WORKER_KEY"


def make_app(settings: Settings, desk: Desk) -> web.Application:
    """Return the application of the door."""
    own, queue = OwnRoutes(settings, desk), QueueRoutes(settings, desk)
    openai = OpenAIRoutes(settings, desk)
    pages = list_paths() if settings.has_playground else ()
    guard = Guard(settings, (settings.health_check_path, *pages))
    app = make_guarded_app(guard)
    app.add_routes([*own.list_checks(), *openai.list_routes()])
    if settings.has_playground:
        variable = KEY_VARIABLE if settings.http_keys else None
        app.add_routes(list_page_routes(jobs="", openai="v1", variable=variable))
    for prefix in ("", ENDPOINT_BASE):
        app.add_routes([*own.list_routes(prefix), *queue.list_routes(prefix)])
        app.add_routes(openai.list_routes(f"{prefix}/openai"))
    return app


def make_checks(settings: Settings, desk: Desk) -> web.Application:
    """Return the application of a port for health checks alone."""
    app = web.Application()
    app.add_routes(OwnRoutes(settings, desk).list_checks())
    return app
