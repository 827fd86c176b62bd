"""Which failures of a request may pass by themselves: those known to, and no others."""

import errno
import re
import socket
import ssl
from collections.abc import Iterator
from json import JSONDecodeError
from typing import Final

import requests
import urllib3

from worker.errors import WeightsUnavailable
from worker.weights.retry import Again

# httpx's own tree (huggingface_hub 1 speaks httpx, 2 httpx2; each is imported only with it), by the
# names of its classes: what the network did, and of that what the request itself was wrong in.
HTTPX: Final = ("httpx", "httpx2")
NETWORK: Final = frozenset({"TransportError", "DecodingError"})
OWN_FAULT: Final = frozenset({"UnsupportedProtocol", "LocalProtocolError"})
# requests' own tree, of which the rest says that the request cannot be made.
PASSING: Final = (
    requests.ConnectionError,
    requests.Timeout,
    requests.exceptions.ChunkedEncodingError,
    requests.exceptions.ContentDecodingError,
    requests.exceptions.RetryError,
    urllib3.exceptions.ProtocolError,
    urllib3.exceptions.TimeoutError,
    urllib3.exceptions.DecodeError,
)
# What only says that something lies beneath.
WRAPPERS: Final = (
    requests.exceptions.SSLError,
    urllib3.exceptions.SSLError,
    urllib3.exceptions.MaxRetryError,
)
PROXY: Final = (requests.exceptions.ProxyError, urllib3.exceptions.ProxyError)
# A body that is no JSON, or not in the encoding that it claims: a sign-in page, a cut answer.
GARBLED: Final = (JSONDecodeError, UnicodeDecodeError)
# What a line and a machine behind it do for a while (connect(2), recv(2)).
ERRNOS: Final = frozenset(
    {
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.ECONNABORTED,
        errno.EPIPE,
        errno.ETIMEDOUT,
        errno.ENETUNREACH,
        errno.ENETDOWN,
        errno.ENETRESET,
        errno.EHOSTUNREACH,
        errno.EHOSTDOWN,
        errno.EADDRNOTAVAIL,
        errno.EAGAIN,
    }
)
# A record that a line garbled; every other alert is about what the two sides are.
TLS_GARBLED: Final = ("BAD_RECORD_MAC", "DECRYPTION_FAILED")
# What a proxy answered to CONNECT, as http.client and httpx write it.
STATUS: Final = re.compile(r"(?:^|Tunnel connection failed: )([1-5]\d\d)\b")
# httpx keeps of a cause its words at least.
STAYS: Final = ("CERTIFICATE_VERIFY_FAILED", "WRONG_VERSION_NUMBER")
OFFLINE: Final = (
    "HF_HUB_OFFLINE is set, and this is not on the machine: unset it (and TRANSFORMERS_OFFLINE), or"
    " prepare the bundle where the hub can be reached"
)
# What a proxy says when it is asked again too soon, or has no way on for now.
PROXY_PASSING: Final = (408, 425, 429)
SERVER_ERRORS: Final = 500


def passes(error: BaseException, *, named: bool) -> bool:
    """Tell whether another attempt may go better, by the error and all that caused it.

    A cause that stays (a certificate that is not accepted, a name that does not exist) decides
    against an error around it that would pass. What is not known to pass does not. `named` tells
    that the operator wrote the host's name: then it may be wrong, where that of the public hub can
    only be unknown to name servers for a while.
    """
    first, *causes = (_judged(one, named=named) for one in _chain(error))
    if first is None and not isinstance(error, WRAPPERS):
        return False
    return True in (first, *causes) and False not in (first, *causes)


def failure(error: BaseException, what: str, *, named: bool) -> Again | WeightsUnavailable:
    """Return what an error of a request for `what` (a repository or a file) means.

    `named` tells that the operator wrote the name of the host that was asked.
    """
    if passes(error, named=named):
        return Again(_plainly(error))
    return WeightsUnavailable(f"{what}: {_finally(error)}")


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what it was raised for, as Python, requests and urllib3 keep that."""
    waiting, seen = [error], set[int]()
    while waiting:
        one = waiting.pop(0)
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        inner = (one.__cause__, one.__context__, getattr(one, "reason", None), *one.args)
        waiting += [each for each in inner if isinstance(each, BaseException)]


def _judged(error: BaseException, *, named: bool) -> bool | None:
    """Tell whether one error passes (True) or stays (False); None leaves it to its causes."""
    if isinstance(error, socket.gaierror):
        return error.errno == socket.EAI_AGAIN or not named
    rules = (_of_tls, _of_proxies, _of_httpx, _of_requests, _of_the_system)
    return next((told for rule in rules if (told := rule(error)) is not None), None)


def _of_tls(error: BaseException) -> bool | None:
    if not isinstance(error, ssl.SSLError):
        return None
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError | ssl.SSLSyscallError):
        return True
    return any(word in str(error.reason or error) for word in TLS_GARBLED)


def _of_proxies(error: BaseException) -> bool | None:
    if "ProxyError" not in _httpx(error) and not isinstance(error, PROXY):
        return None
    match = STATUS.search(str(error))
    return match is None or int(match[1]) in PROXY_PASSING or int(match[1]) >= SERVER_ERRORS


def _of_httpx(error: BaseException) -> bool | None:
    kinds = _httpx(error)
    if not kinds:
        return None
    known = bool(kinds & NETWORK) and not kinds & OWN_FAULT
    return known and not any(word in str(error) for word in STAYS)


def _of_requests(error: BaseException) -> bool | None:
    if isinstance(error, WRAPPERS):
        return None
    if isinstance(error, (*PASSING, *GARBLED)):
        return True
    return False if isinstance(error, requests.RequestException) else None


def _of_the_system(error: BaseException) -> bool | None:
    if not isinstance(error, OSError) or type(error).__module__ != "builtins":
        return None
    if error.errno is None and not isinstance(error, TimeoutError):
        return None
    return isinstance(error, TimeoutError) or error.errno in ERRNOS


def _httpx(error: BaseException) -> set[str]:
    """Return the names of httpx's classes that an error is one of."""
    return {
        kind.__name__ for kind in type(error).__mro__ if kind.__module__.partition(".")[0] in HTTPX
    }


def _plainly(error: BaseException) -> str:
    """Name what may pass without the address that libraries put into their messages."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if kinds & {"Timeout", "TimeoutException", "TimeoutError"}:
        return "the hub did not answer in time"
    if isinstance(error, GARBLED):
        return "the hub's answer is not what a hub answers"
    return f"the hub cannot be reached, or hung up ({type(error).__name__})"


def _finally(error: BaseException) -> str:
    """Name what stays, and what to change."""
    chain = list(_chain(error))
    if any(type(one).__name__ == "OfflineModeIsEnabled" for one in chain):
        return OFFLINE
    if any(isinstance(one, ssl.SSLError | requests.exceptions.SSLError) for one in chain):
        return (
            "the hub's certificate was not accepted, or what answers there speaks no TLS: check"
            " HF_ENDPOINT, the clock, and what stands between (REQUESTS_CA_BUNDLE, SSL_CERT_FILE)"
        )
    if any(isinstance(one, socket.gaierror) for one in chain):
        return "the hub's name does not resolve: check HF_ENDPOINT and the network's name servers"
    if any(isinstance(one, PROXY) or type(one).__name__ == "ProxyError" for one in chain):
        return "the proxy refuses: check HTTPS_PROXY and NO_PROXY"
    return (
        f"the hub cannot be asked ({type(error).__name__}): check HF_ENDPOINT, HF_TOKEN and the"
        " proxy settings"
    )
