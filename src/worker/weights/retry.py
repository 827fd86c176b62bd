"""What is retried of the hub's answers and downloads, how often and after what wait.

What else is retried is decided elsewhere: in weights by `download` (an attempt that made progress
does not count), `parallel` (a range, inside hf_transfer) and `push` (huggingface_hub's retries); in
bundle by `stream` and `prepare` (a download that another worker deleted); in families (a damaged
part, what ran out of memory); in media by `deliver` (an upload); in doors.runpod by `take` (a poll)
and `post` (a result).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Final, TypeVar

import stamina

from worker.errors import HubUnreachable, WeightsUnavailable
from worker.settings import Settings

# A server, or a proxy asked for CONNECT, that does not know the method or the version of HTTP will
# not learn it by waiting.
PERMANENT: Final = (HTTPStatus.NOT_IMPLEMENTED, HTTPStatus.HTTP_VERSION_NOT_SUPPORTED)
# Requests come too soon, or there is no way on for the moment.
BUSY: Final = (
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.TOO_EARLY,
    HTTPStatus.TOO_MANY_REQUESTS,
)
ADVICE: Final = {
    401: "the hub needs a token: set HF_TOKEN (and check that MODEL names an existing repository)",
    403: "the hub refuses this account: accept the model's licence on its page, and set HF_TOKEN to"
    " a token of the account that did",
    404: "there is no such repository, revision or file, or it is private: check MODEL,"
    " MODEL_REVISION and HF_TOKEN",
    410: "the repository was taken down: name another in MODEL",
    451: "the repository may not be delivered here: name another in MODEL",
}

T = TypeVar("T")


class AttemptFailed(Exception):
    """One attempt failed, and another may succeed after `wait_s` seconds, if the hub named any."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.wait_s = wait_s


class Missing(WeightsUnavailable):
    """The hub has no such repository, revision or file."""


class WrongBytes(AttemptFailed):
    """All bytes arrived, and they are not the recorded ones."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How often a download is tried and how long it waits; seconds, and bytes per second.

    Fewer bytes than `slowest` x `stall_s` in `stall_s` seconds count as a stall: a server that
    drips bytes never times out.
    """

    attempts: int = 6
    wrong_bytes: int = 2
    first_wait_s: float = 0.5
    longest_wait_s: float = 30
    longest_asked_wait_s: float = 60
    connect_s: float = 10
    stall_s: float = 60
    slowest: int = 16 * 1024

    @classmethod
    def from_settings(cls, settings: Settings) -> "Patience":
        """Return the operator's patience: DOWNLOAD_RETRIES and DOWNLOAD_STALL_S."""
        return cls(attempts=settings.download_retries + 1, stall_s=settings.download_stall_s)

    def retry(self, action: Callable[[], T], what: str) -> T:
        """Call `action` until it succeeds; raises HubUnreachable on `what` after all attempts."""
        try:
            for attempt in self.iterate_attempts():
                with attempt:
                    return action()
        except AttemptFailed as error:
            raise HubUnreachable(
                f"{what}: {error.reason}, at the last of several attempts; start again later, or"
                " check the network, HF_ENDPOINT and the status of the hub"
            ) from None
        raise AssertionError("stamina ends by success or by raising")

    def iterate_attempts(self) -> Iterator[stamina.Attempt]:
        """Yield attempts as context managers until one succeeds.

        Only AttemptFailed is retried, WrongBytes up to `wrong_bytes` attempts. The last error is
        raised when no attempt is left.
        """
        wrong = 0

        def decide(error: Exception) -> bool | float:
            nonlocal wrong
            if not isinstance(error, AttemptFailed):
                return False
            if isinstance(error, WrongBytes):
                wrong += 1
                return wrong < self.wrong_bytes
            if error.wait_s is None:
                return True
            return min(error.wait_s, self.longest_asked_wait_s)

        yield from stamina.retry_context(
            on=decide,
            attempts=self.attempts,
            timeout=None,
            wait_initial=self.first_wait_s,
            wait_max=self.longest_wait_s,
            wait_jitter=self.first_wait_s,
        )


def is_transient_status(status: int) -> bool:
    """Return whether a hub, or a proxy on the way to it, may answer otherwise after a wait."""
    return status in BUSY or (
        status >= HTTPStatus.INTERNAL_SERVER_ERROR and status not in PERMANENT
    )


def classify_status(
    status: int, retry_after: str | None, what: str
) -> AttemptFailed | WeightsUnavailable:
    """Return the error for an HTTP status of 400 or more about `what` (a repository or a file)."""
    if is_transient_status(status):
        return AttemptFailed(f"the hub answered {status}", _read_seconds(retry_after))
    kind = Missing if status == HTTPStatus.NOT_FOUND else WeightsUnavailable
    return kind(f"{what}: {ADVICE.get(status, 'the hub refuses the request')} (status {status})")


def _read_seconds(retry_after: str | None) -> float | None:
    """Read Retry-After: seconds, or an HTTP date (RFC 9110, section 10.2.3)."""
    if retry_after is None:
        return None
    if retry_after.strip().isdecimal():
        return float(retry_after)
    try:
        date = parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.now(UTC)).total_seconds())
