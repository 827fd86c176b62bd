"""A hub's requests: redirects are followed here, so that the token goes to the hub alone."""

import threading
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final
from urllib.parse import quote, urljoin, urlsplit

import requests

from worker.errors import WeightsUnavailable
from worker.settings import Settings
from worker.weights.retry import AttemptFailed, Patience, classify_status
from worker.weights.transient import classify_error

HUB: Final = "https://huggingface.co"
MOST_REDIRECTS: Final = 5
REDIRECTION: Final = range(300, 400)

_sessions = threading.local()


class NoAuth(requests.auth.AuthBase):
    """Keep requests from sending a password that a .netrc has for the host."""

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Return the request unchanged."""
        return request


@dataclass(frozen=True, slots=True)
class Hub:
    """A hub's address and its token, which is sent to that scheme, host and port only."""

    endpoint: str
    token: str | None

    @classmethod
    def from_settings(cls, settings: Settings) -> "Hub":
        """Return the hub that HF_ENDPOINT and HF_TOKEN name."""
        token = settings.hf_token.get_secret_value() if settings.hf_token else None
        return cls((settings.hf_endpoint or HUB).rstrip("/"), token)

    @property
    def is_custom(self) -> bool:
        """Whether the operator set the hub's address."""
        return self.endpoint != HUB

    def make_address(self, repository: str, commit: str, path: str) -> str:
        """Return the URL of a file at a commit."""
        return f"{self.endpoint}/{repository}/resolve/{commit}/{quote(path)}"

    def make_headers(self, url: str) -> dict[str, str]:
        """Return the headers for a URL: no compression, and the token for the hub only."""
        headers = {"Accept-Encoding": "identity", "User-Agent": "worker"}
        if self.token and _read_origin(url) == _read_origin(self.endpoint):
            headers["Authorization"] = f"Bearer {self.token}"
        return headers

    def open(
        self,
        url: str,
        patience: Patience,
        *,
        what: str,
        method: str = "GET",
        span: str | None = None,
        accept: tuple[int, ...] = (HTTPStatus.OK,),
    ) -> requests.Response:
        """Request a URL, following redirects; `span` is a Range header's value.

        The body is not read yet; close the response. Its `url` is where the bytes are. Raises
        AttemptFailed, or WeightsUnavailable for what no other attempt will change.
        """
        session = _get_session()
        for _ in range(MOST_REDIRECTS + 1):
            try:
                headers = {**self.make_headers(url), "Range": span}  # None is not sent
                response = session.request(
                    method,
                    url,
                    headers=headers,
                    timeout=(patience.connect_s, patience.stall_s),
                    stream=True,
                    allow_redirects=False,
                )
            except Exception as error:
                # not only requests' own: it passes on errors of urllib3 and of Python
                at_hub = url.startswith(self.endpoint)
                raise classify_error(error, what, custom_host=self.is_custom and at_hub) from error
            if response.status_code in REDIRECTION and "Location" in response.headers:
                response.close()
                url = _resolve_redirect(url, response.headers["Location"], what)
                continue
            if response.status_code in accept:
                return response
            response.close()
            if response.status_code >= HTTPStatus.BAD_REQUEST:
                if _read_origin(url) != _read_origin(self.endpoint):  # an expired signature, say
                    raise AttemptFailed(f"the hub's storage answered {response.status_code}")
                retry_after = response.headers.get("Retry-After")
                raise classify_status(response.status_code, retry_after, what)
            raise AttemptFailed(f"the hub answered {response.status_code}")
        raise AttemptFailed(f"the hub redirected more than {MOST_REDIRECTS} times")


def _get_session() -> requests.Session:
    """Return this thread's session: many headers are read over one connection per host."""
    if not hasattr(_sessions, "session"):
        _sessions.session = requests.Session()
        _sessions.session.auth = NoAuth()
    session: requests.Session = _sessions.session
    return session


def _read_origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _resolve_redirect(url: str, location: str, what: str) -> str:
    """Return where a redirect leads; raises WeightsUnavailable for a place no hub redirects to."""
    try:
        target = urljoin(url, location)
        scheme, _, _ = _read_origin(target)
    except ValueError:
        scheme = ""
    if scheme not in ("http", "https"):
        raise WeightsUnavailable(f"{what}: the hub redirected to something that is no web address")
    if urlsplit(url).scheme == "https" and scheme != "https":
        raise WeightsUnavailable(f"{what}: the hub redirected from https to http")
    return target
