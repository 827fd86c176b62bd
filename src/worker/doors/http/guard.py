"""Who may call: keys, the door's own names, and no web page of another origin.

Without a key a page that somebody opens must not be able to make pictures here. It could by a name
of its own that leads to this machine (DNS rebinding), or by posting a form. Against the first, the
Host must be an address, localhost or a name that the operator allows; against the second, what a
browser says about the origin of a request must be the door's own.
"""

import hashlib
import hmac
import ipaddress
from collections.abc import Sequence
from contextlib import suppress
from http import HTTPStatus
from typing import Final
from urllib.parse import urlsplit

from aiohttp import web

from worker.doors.http.responses import Refused
from worker.settings import Settings

BEARER_START: Final = "bearer "
SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
ALLOWED_HEADERS: Final = "authorization, content-type, x-api-key, accept"
EXPOSED_HEADERS: Final = "retry-after, x-request-id, x-sample-rate, x-should-retry"


class Guard:
    """The rules of one door; `open_paths` need no key."""

    def __init__(self, settings: Settings, open_paths: Sequence[str]) -> None:
        self._keys = [_digest(key) for key in settings.http_keys]
        self._open_paths = frozenset(open_paths)
        self._hosts = frozenset(
            {"localhost", settings.http_host.lower(), *map(str.lower, settings.allowed_hosts)}
        )
        self._origins = frozenset(settings.cors_origins)
        # with a key, or behind a gateway that asks for one, a page gets nowhere without it
        self._checks_host = not self._keys and not settings.is_load_balanced

    def check(self, request: web.Request) -> None:
        """Raise Refused if the request may not be answered."""
        host = request.headers.get("Host", "")
        if not request.raw_path.startswith("/"):
            message = "the target of a request must be a path"
            raise Refused(HTTPStatus.BAD_REQUEST, "invalid_target", message)
        if self._checks_host and not self._is_own(host):
            message = "this door has another name; see ALLOWED_HOSTS"
            raise Refused(HTTPStatus.MISDIRECTED_REQUEST, "wrong_host", message)
        if request.method not in SAFE:
            self._check_origin(request, host)
        if request.path not in self._open_paths and request.method != "OPTIONS":
            self._check_key(request)

    def list_cors(self, request: web.Request) -> dict[str, str]:
        """Return the headers that let a page of an allowed origin read the response."""
        origin = request.headers.get("Origin", "").lower()
        if origin not in self._origins:
            return {}
        return {
            "Access-Control-Allow-Origin": request.headers["Origin"],
            "Access-Control-Allow-Headers": ALLOWED_HEADERS,
            "Access-Control-Allow-Methods": "GET, POST",
            "Access-Control-Expose-Headers": EXPOSED_HEADERS,
            "Vary": "Origin",
        }

    def _is_own(self, host: str) -> bool:
        name = _strip_port(host.lower())
        if name in self._hosts:
            return True
        with suppress(ValueError):
            ipaddress.ip_address(name)
            return True
        return False

    def _check_origin(self, request: web.Request, host: str) -> None:
        origin = request.headers.get("Origin")
        if origin is None:
            is_own = request.headers.get("Sec-Fetch-Site", "none") in ("none", "same-origin")
        else:
            parts = urlsplit(origin.lower())
            is_own = parts.netloc == host.lower() or origin.lower() in self._origins
        if not is_own:
            message = "a page of another origin may not do this; see CORS_ORIGINS"
            raise Refused(HTTPStatus.FORBIDDEN, "wrong_origin", message)

    def _check_key(self, request: web.Request) -> None:
        if not self._keys:
            return
        given = request.headers.get("x-api-key", "")
        authorization = request.headers.get("Authorization", "")
        if authorization.lower().startswith(BEARER_START):
            given = given or authorization[len(BEARER_START) :].strip()
        digest = _digest(given)
        # every key is compared: the time says nothing of which one is near
        matches = [hmac.compare_digest(digest, key) for key in self._keys]
        if not any(matches):
            message = "a key is required: Authorization: Bearer KEY, or x-api-key: KEY"
            headers = {"WWW-Authenticate": "Bearer"}
            raise Refused(HTTPStatus.UNAUTHORIZED, "invalid_api_key", message, headers=headers)


def _digest(key: str) -> bytes:
    """Return a value of one length for any key."""
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()


def _strip_port(host: str) -> str:
    """Return a Host without its port and, for IPv6, its brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
