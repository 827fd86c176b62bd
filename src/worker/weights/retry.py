"""What is tried again, how often and how patiently: the only place that decides it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final, TypeVar

import stamina

from worker.errors import HubUnreachable, WeightsUnavailable
from worker.settings import Settings

NOT_FOUND: Final = 404
REQUEST_TIMEOUT: Final = 408
TOO_MANY_REQUESTS: Final = 429
TOO_EARLY: Final = 425
SERVER_ERRORS: Final = 500
# A server that does not know the method or the version of HTTP learns neither by waiting.
NEVER: Final = (501, 505)
ADVICE: Final = {
    401: "the hub wants a token: set HF_TOKEN (and check that MODEL names an existing repository)",
    403: "the hub refuses this account: accept the model's licence on its page, and set HF_TOKEN to"
    " a token of the account that did",
    NOT_FOUND: "there is no such repository, revision or file, or it is private: check MODEL,"
    " MODEL_REVISION and HF_TOKEN",
    410: "the repository was taken down: name another in MODEL",
    451: "the repository may not be delivered here: name another in MODEL",
}

T = TypeVar("T")


class Again(Exception):
    """A fault that another attempt may mend; `wait_s` is what the hub asked for, in seconds."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.wait_s = wait_s


class Missing(WeightsUnavailable):
    """The hub has no such repository, revision or file."""


class WrongBytes(Again):
    """The bytes arrived whole and are not the recorded ones."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a download waits for what; times in seconds, rates in bytes per second.

    Fewer bytes than `slowest` x `stall_s` in `stall_s` seconds count as standing still: a server
    that drips never times out by itself.
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
    def of(cls, settings: Settings) -> "Patience":
        """Return the operator's patience: DOWNLOAD_RETRIES and DOWNLOAD_STALL_S."""
        return cls(attempts=settings.download_retries + 1, stall_s=settings.download_stall_s)

    def insist(self, action: Callable[[], T], what: str) -> T:
        """Do it until it works; raises HubUnreachable about `what` after the last attempt."""
        try:
            for attempt in self.tries():
                with attempt:
                    return action()
        except Again as error:
            raise HubUnreachable(
                f"{what}: {error.reason}, at the last of several attempts; start again later, or"
                " check the network, HF_ENDPOINT and the status of the hub"
            ) from None
        raise AssertionError("stamina ends by success or by raising")

    def tries(self) -> Iterator[stamina.Attempt]:
        """Yield attempts as context managers until one succeeds.

        Only Again is tried again, a wrong sha256 `wrong_bytes` times at most; the last Again is
        raised when they are used up.
        """
        wrong = 0

        def wait(error: Exception) -> bool | float:
            nonlocal wrong
            if not isinstance(error, Again):
                return False
            if isinstance(error, WrongBytes):
                wrong += 1
                return wrong < self.wrong_bytes
            if error.wait_s is None:
                return True
            return min(error.wait_s, self.longest_asked_wait_s)

        yield from stamina.retry_context(
            on=wait,
            attempts=self.attempts,
            timeout=None,
            wait_initial=self.first_wait_s,
            wait_max=self.longest_wait_s,
            wait_jitter=self.first_wait_s,
        )


def refused(status: int, retry_after: str | None, what: str) -> Again | WeightsUnavailable:
    """Return what an HTTP status of 400 and more means for `what` (a repository or a file)."""
    waits = status in (REQUEST_TIMEOUT, TOO_EARLY, TOO_MANY_REQUESTS)
    if waits or (status >= SERVER_ERRORS and status not in NEVER):
        return Again(f"the hub answered {status}", _seconds(retry_after))
    kind = Missing if status == NOT_FOUND else WeightsUnavailable
    return kind(f"{what}: {ADVICE.get(status, 'the hub refuses the request')} (status {status})")


def _seconds(retry_after: str | None) -> float | None:
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
