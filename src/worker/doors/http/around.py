"""What is done around each request: it is checked, and whatever is raised becomes a response."""

from collections.abc import Awaitable, Callable
from http import HTTPStatus

from aiohttp import web

from worker import log
from worker.doors.http.guard import Guard
from worker.doors.http.responses import Refused, make_failed
from worker.edge.reply import log_bug, make_failure

Next = Callable[[web.Request], Awaitable[web.StreamResponse]]


def make_guarded_app(guard: Guard) -> web.Application:
    """Return an application that checks each request, and answers whatever is raised.

    Every response has the headers that caches and browsers go by, one that is streamed too.
    """

    @web.middleware
    async def answer(request: web.Request, handler: Next) -> web.StreamResponse:
        try:
            guard.check(request)
            if request.method == "OPTIONS" and guard.list_cors(request):
                return web.Response(status=HTTPStatus.NO_CONTENT)
            return await handler(request)
        except Refused as refusal:
            return refusal.make_response()
        except web.HTTPException as error:
            return _translate(error).make_response()
        except ConnectionError:
            raise
        except Exception:  # noqa: BLE001 - whatever it is, the caller gets an answer
            return make_failed(make_failure(log_bug("bug")))

    async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
        response.headers.update(guard.list_cors(request))
        response.headers.setdefault("X-Content-Type-Options", "nosniff")
        response.headers.setdefault("Cache-Control", "no-store")

    app = web.Application(middlewares=[answer])
    app.on_response_prepare.append(add_headers)
    return app


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
