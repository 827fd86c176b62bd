"""Why a request has no reply, as an HTTP response: its status, and a body that clients read."""

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from aiohttp import web

from worker.edge.reply import Failure
from worker.openai.replies import format_error, make_error

JSON: Final = "application/json"
# What an error's code means in HTTP; a code that is not here goes by its error_type.
STATUSES: Final[Mapping[str, int]] = {
    "MODEL_NOT_SERVED": HTTPStatus.NOT_FOUND,
    "IMAGE_TOO_LARGE": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    "OUTPUT_TOO_LARGE": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    "DELIVERY_FAILED": HTTPStatus.BAD_GATEWAY,
    "IMAGE_FETCH_FAILED": HTTPStatus.BAD_GATEWAY,
    "DEADLINE_EXCEEDED": HTTPStatus.GATEWAY_TIMEOUT,
    "WORKER_NOT_READY": HTTPStatus.SERVICE_UNAVAILABLE,
    "CUDA_OUT_OF_MEMORY": HTTPStatus.SERVICE_UNAVAILABLE,
    "DEVICE_LOST": HTTPStatus.SERVICE_UNAVAILABLE,
}
KINDS: Final[Mapping[int, str]] = {
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.NOT_FOUND: "not_found_error",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
}
# What is refused without its body, or because of it: the connection ends, for what comes next on it
# could be a part of that body.
UNREAD: Final = frozenset(
    {
        HTTPStatus.BAD_REQUEST,
        HTTPStatus.REQUEST_TIMEOUT,
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    }
)
# A worker that restarts is back after a cold start; the soonest one takes about this long.
RETRY_S: Final = 5
SHOULD_RETRY: Final = "x-should-retry"


class Refused(Exception):
    """Refuse a request before it is a job, with what its caller should know and do."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.retry_after = retry_after
        self.headers = dict(headers or {})

    def describe(self) -> dict[str, Any]:
        """Return it as an error that OpenAI's clients read."""
        is_ours = self.status >= HTTPStatus.INTERNAL_SERVER_ERROR
        kind = KINDS.get(self.status, "server_error" if is_ours else "invalid_request_error")
        return make_error(self.message, kind, self.code, self.param)

    def make_response(self) -> web.Response:
        """Return the response."""
        headers = {SHOULD_RETRY: "false" if self.retry_after is None else "true", **self.headers}
        if self.retry_after is not None:
            headers["Retry-After"] = str(self.retry_after)
        response = make_json(self.describe(), self.status, headers)
        if self.status in UNREAD:
            response.force_close()
        return response


def find_status(failure: Failure) -> int:
    """Return the status of a response that says why a job failed."""
    if failure.code == "IMAGE_FETCH_FAILED" and failure.error_type == "bad_request":
        return HTTPStatus.BAD_REQUEST
    by_type = (
        HTTPStatus.BAD_REQUEST
        if failure.error_type == "bad_request"
        else HTTPStatus.INTERNAL_SERVER_ERROR
    )
    return STATUSES.get(failure.code, by_type)


def make_failed(failure: Failure, headers: Mapping[str, str] | None = None) -> web.Response:
    """Return the response to a job that failed.

    OpenAI's clients try again after every 5xx unless they are asked not to: what fails again would
    be made, and paid, three times.
    """
    status = find_status(failure)
    more = {SHOULD_RETRY: str(failure.retryable).lower(), **(headers or {})}
    if status == HTTPStatus.SERVICE_UNAVAILABLE and failure.retryable:
        more["Retry-After"] = str(RETRY_S)
    return make_json(format_error(failure), status, more)


def make_json(
    value: Any, status: int = HTTPStatus.OK, headers: Mapping[str, str] | None = None
) -> web.Response:
    """Return a response with a JSON body."""
    body = encode_json(value)
    return web.Response(body=body, status=status, headers=headers, content_type=JSON)


def encode_json(value: Any) -> bytes:
    """Return a value as JSON in UTF-8; a lone surrogate, which has none, is a question mark."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode(errors="replace")
