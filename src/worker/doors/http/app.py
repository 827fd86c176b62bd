"""The door as an application: its routes, and what is done around each of them."""

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Middleware

from worker import log
from worker.doors.http.desk import Desk
from worker.doors.http.guard import Guard
from worker.doors.http.openai_routes import OpenAIRoutes
from worker.doors.http.own_routes import OwnRoutes
from worker.doors.http.playground import list_page_routes, list_paths
from worker.doors.http.queue_routes import QueueRoutes
from worker.doors.http.responses import Refused, make_failed
from worker.edge.reply import log_bug, make_failure
from worker.settings import Settings

# As in RunPod's addresses, so that a client needs no other than its base.
ENDPOINT: Final = "/v2/{endpoint}"

Next = Callable[[web.Request], Awaitable[web.StreamResponse]]


def make_app(settings: Settings, desk: Desk) -> web.Application:
    """Return the application of the door."""
    own, queue = OwnRoutes(settings, desk), QueueRoutes(settings, desk)
    openai = OpenAIRoutes(settings, desk)
    pages = list_paths() if settings.has_playground else ()
    guard = Guard(settings, (settings.health_check_path, *pages))
    app = web.Application(middlewares=[_guard_with(guard)])
    app.add_routes([*own.list_checks(), *openai.list_routes()])
    if settings.has_playground:
        app.add_routes(list_page_routes())
    for prefix in ("", ENDPOINT):
        app.add_routes([*own.list_routes(prefix), *queue.list_routes(prefix)])
        app.add_routes(openai.list_routes(f"{prefix}/openai"))
    return app


def make_checks(settings: Settings, desk: Desk) -> web.Application:
    """Return the application of a port for health checks alone."""
    app = web.Application()
    app.add_routes(OwnRoutes(settings, desk).list_checks())
    return app


def _guard_with(guard: Guard) -> Middleware:
    """Return what checks each request, and makes a response of whatever is raised."""

    @web.middleware
    async def answer(request: web.Request, handler: Next) -> web.StreamResponse:
        cors = guard.list_cors(request)
        try:
            guard.check(request)
            if request.method == "OPTIONS" and cors:
                return web.Response(status=HTTPStatus.NO_CONTENT, headers=cors)
            response = await handler(request)
        except Refused as refusal:
            response = refusal.make_response()
        except web.HTTPException as error:
            response = _translate(error).make_response()
        except ConnectionError:
            raise
        except Exception:  # noqa: BLE001 - whatever it is, the caller gets an answer
            response = make_failed(make_failure(log_bug("bug")))
        if not response.prepared:
            response.headers.update(cors)
            response.headers.setdefault("X-Content-Type-Options", "nosniff")
            response.headers.setdefault("Cache-Control", "no-store")
        return response

    return answer


def _translate(error: web.HTTPException) -> Refused:
    """Return aiohttp's own refusal in our form."""
    code = HTTPStatus(error.status).name.lower()
    messages = {
        HTTPStatus.NOT_FOUND: "there is nothing here; /openapi.json lists what there is",
        HTTPStatus.METHOD_NOT_ALLOWED: "not by this method",
    }
    message = messages.get(HTTPStatus(error.status), error.reason)
    headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
    log.get().debug("request refused", status=error.status)
    return Refused(error.status, code, message, headers=headers)
