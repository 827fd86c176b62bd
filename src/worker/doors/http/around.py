"""What is done around each request: it is checked, and whatever is raised becomes a response."""

from collections.abc import Awaitable, Callable
from http import HTTPStatus

from aiohttp import web
from aiohttp.typedefs import Middleware

from worker import log
from worker.doors.http.guard import Guard
from worker.doors.http.responses import Refused, make_failed
from worker.edge.reply import log_bug, make_failure

Next = Callable[[web.Request], Awaitable[web.StreamResponse]]


def guard_with(guard: Guard) -> Middleware:
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
