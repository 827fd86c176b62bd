"""Where the bytes of a hub file really are: redirects followed by hand, the token kept at home."""

import threading
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, urljoin, urlsplit

import requests

from worker.errors import WeightsUnavailable
from worker.settings import Settings
from worker.weights.passing import failure
from worker.weights.retry import Again, Patience, refused

HUB: Final = "https://huggingface.co"
MOST_REDIRECTS: Final = 5
OK: Final = 200
REDIRECT: Final = range(300, 400)
FAILURES: Final = 400
SHORT_BYTES: Final = 16 * 1024

_sessions = threading.local()


class NoAuth(requests.auth.AuthBase):
    """Keep requests from sending the password that a .netrc may hold for a host."""

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Return the request as it is."""
        return request


@dataclass(frozen=True, slots=True)
class Hub:
    """A hub's address and the token for it; the token goes to that scheme, host and port only."""

    endpoint: str
    token: str | None

    @classmethod
    def of(cls, settings: Settings) -> "Hub":
        """Return the hub of HF_ENDPOINT and HF_TOKEN."""
        token = settings.hf_token.get_secret_value() if settings.hf_token else None
        return cls((settings.hf_endpoint or HUB).rstrip("/"), token)

    @property
    def named(self) -> bool:
        """Whether the operator wrote the hub's address."""
        return self.endpoint != HUB

    def address(self, repository: str, commit: str, path: str) -> str:
        """Return the URL of a file at a commit."""
        return f"{self.endpoint}/{repository}/resolve/{commit}/{quote(path)}"

    def headers(self, url: str) -> dict[str, str]:
        """Return the headers for a URL: bytes as they are, and the token at home only."""
        headers = {"Accept-Encoding": "identity", "User-Agent": "worker"}
        if self.token and _origin(url) == _origin(self.endpoint):
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
        accept: tuple[int, ...] = (OK,),
    ) -> requests.Response:
        """Request a URL, following redirects; `span` is a Range header's value.

        The body is not read yet; close the response. Its `url` is where the bytes are. Raises
        Again, or WeightsUnavailable for a status that no other attempt will change.
        """
        session = _session()
        for _ in range(MOST_REDIRECTS + 1):
            try:
                headers = self.headers(url) | ({"Range": span} if span else {})
                response = session.request(
                    method,
                    url,
                    headers=headers,
                    timeout=(patience.connect_s, patience.stall_s),
                    stream=True,
                    allow_redirects=False,
                )
            except Exception as error:
                # requests lets urllib3's own and Python's through
                at_home = url.startswith(self.endpoint)
                raise failure(error, what, named=self.named and at_home) from error
            if response.status_code in REDIRECT and "Location" in response.headers:
                _release(response)
                url = _next(url, response.headers["Location"], what)
                continue
            if response.status_code in accept:
                return response
            response.close()
            if response.status_code >= FAILURES:
                if _origin(url) != _origin(self.endpoint):  # a signature that ran out, say
                    raise Again(f"the hub's storage answered {response.status_code}")
                raise refused(response.status_code, response.headers.get("Retry-After"), what)
            raise Again(f"the hub answered {response.status_code}")
        raise Again(f"the hub redirected more than {MOST_REDIRECTS} times")


def _session() -> requests.Session:
    """Return this thread's session: many headers are read over one connection a host."""
    if not hasattr(_sessions, "mine"):
        _sessions.mine = requests.Session()
        _sessions.mine.auth = NoAuth()
    mine: requests.Session = _sessions.mine
    return mine


def _release(response: requests.Response) -> None:
    """Give the connection back for the next request, if what is left of the body is short."""
    if response.headers.get("Content-Length", "").isdecimal():
        left = int(response.headers["Content-Length"])
        if left <= SHORT_BYTES and len(response.raw.read(SHORT_BYTES)) == left:
            response.raw.release_conn()
            return
    response.close()


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _next(url: str, location: str, what: str) -> str:
    """Return where a redirect leads; raises WeightsUnavailable for what no hub redirects to."""
    try:
        there = urljoin(url, location)
        scheme, _, _ = _origin(there)
    except ValueError:
        scheme = ""
    if scheme not in ("http", "https"):
        raise WeightsUnavailable(f"{what}: the hub redirected to what is no web address")
    if urlsplit(url).scheme == "https" and scheme != "https":
        raise WeightsUnavailable(f"{what}: the hub redirected from https to http")
    return there
