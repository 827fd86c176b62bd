"""Which failures of a request are transient: those known to be, and no others."""

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
from worker.weights.retry import AttemptFailed, is_transient_status

# httpx's own errors (huggingface_hub 1 uses httpx, 2 uses httpx2; neither is imported here), by
# class name: those of the network, and among them those that are the request's own fault.
HTTPX: Final = ("httpx", "httpx2")
NETWORK: Final = frozenset({"TransportError", "DecodingError"})
OWN_FAULT: Final = frozenset({"UnsupportedProtocol", "LocalProtocolError"})
# requests' own errors; its others mean that the request cannot be made at all.
TRANSIENT: Final = (
    requests.ConnectionError,
    requests.Timeout,
    requests.exceptions.ChunkedEncodingError,
    requests.exceptions.ContentDecodingError,
    requests.exceptions.RetryError,
    urllib3.exceptions.ProtocolError,
    urllib3.exceptions.TimeoutError,
    urllib3.exceptions.DecodeError,
)
# Errors that only wrap another one.
WRAPPERS: Final = (
    requests.exceptions.SSLError,
    urllib3.exceptions.SSLError,
    urllib3.exceptions.MaxRetryError,
)
PROXY: Final = (requests.exceptions.ProxyError, urllib3.exceptions.ProxyError)
# A body that is not JSON, or not in the encoding it claims: a sign-in page, a truncated answer.
GARBLED: Final = (JSONDecodeError, UnicodeDecodeError)
# What a network or the machine at its end does for a while (connect(2), recv(2)).
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
# A record garbled on its way; every other alert is about what the two sides are.
TLS_GARBLED: Final = ("BAD_RECORD_MAC", "DECRYPTION_FAILED")
# What a proxy answered to CONNECT, as http.client and httpx write it.
STATUS: Final = re.compile(r"(?:^|Tunnel connection failed: )([1-5]\d\d)\b")
# Of a cause, httpx keeps at least the words.
PERMANENT_WORDS: Final = ("CERTIFICATE_VERIFY_FAILED", "WRONG_VERSION_NUMBER")
OFFLINE: Final = (
    "HF_HUB_OFFLINE is set, and this is not on the machine: unset it (and TRANSFORMERS_OFFLINE), or"
    " prepare the bundle where the hub can be reached"
)


def is_transient(error: BaseException, *, custom_host: bool) -> bool:
    """Return whether another attempt may succeed, by the error and everything that caused it.

    A permanent cause (a certificate that is not accepted, a name that does not exist) outweighs a
    transient error around it. An unknown error is permanent. `custom_host` says that the operator
    wrote the host's name: it may be wrong, whereas the public hub's can only be unknown to name
    servers for a while.
    """
    first, *causes = (_classify(one, custom_host=custom_host) for one in _iterate_chain(error))
    if first is None and not isinstance(error, WRAPPERS):
        return False
    return True in (first, *causes) and False not in (first, *causes)


def classify_error(
    error: BaseException, what: str, *, custom_host: bool
) -> AttemptFailed | WeightsUnavailable:
    """Return our error for one of a request for `what` (a repository or a file).

    `custom_host` says that the operator wrote the name of the requested host.
    """
    if is_transient(error, custom_host=custom_host):
        return AttemptFailed(_describe_transient(error))
    return WeightsUnavailable(f"{what}: {_describe_permanent(error)}")


def _iterate_chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and its causes, wherever Python, requests and urllib3 keep them."""
    waiting, seen = [error], set[int]()
    while waiting:
        one = waiting.pop(0)
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        inner = (one.__cause__, one.__context__, getattr(one, "reason", None), *one.args)
        waiting += [each for each in inner if isinstance(each, BaseException)]


def _classify(error: BaseException, *, custom_host: bool) -> bool | None:
    """Return True for a transient error, False for a permanent one, None if its causes decide."""
    if isinstance(error, socket.gaierror):
        return error.errno == socket.EAI_AGAIN or not custom_host
    rules = (_classify_tls, _classify_proxy, _classify_httpx, _classify_requests, _classify_os)
    return next((answer for rule in rules if (answer := rule(error)) is not None), None)


def _classify_tls(error: BaseException) -> bool | None:
    if not isinstance(error, ssl.SSLError):
        return None
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError | ssl.SSLSyscallError):
        return True
    return any(word in str(getattr(error, "reason", None) or error) for word in TLS_GARBLED)


def _classify_proxy(error: BaseException) -> bool | None:
    if "ProxyError" not in _list_httpx_kinds(error) and not isinstance(error, PROXY):
        return None
    match = STATUS.search(str(error))
    return match is None or is_transient_status(int(match[1]))


def _classify_httpx(error: BaseException) -> bool | None:
    kinds = _list_httpx_kinds(error)
    if not kinds:
        return None
    known = bool(kinds & NETWORK) and not kinds & OWN_FAULT
    return known and not any(word in str(error) for word in PERMANENT_WORDS)


def _classify_requests(error: BaseException) -> bool | None:
    if isinstance(error, WRAPPERS):
        return None
    if isinstance(error, (*TRANSIENT, *GARBLED)):
        return True
    return False if isinstance(error, requests.RequestException) else None


def _classify_os(error: BaseException) -> bool | None:
    if not isinstance(error, OSError) or type(error).__module__ != "builtins":
        return None
    if error.errno is None and not isinstance(error, TimeoutError):
        return None
    return isinstance(error, TimeoutError) or error.errno in ERRNOS


def _list_httpx_kinds(error: BaseException) -> set[str]:
    """Return the names of the httpx classes that an error is an instance of."""
    return {kind.__name__ for kind in type(error).__mro__ if kind.__module__ in HTTPX}


def _describe_transient(error: BaseException) -> str:
    """Describe an error without the address that libraries put into their messages."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if kinds & {"Timeout", "TimeoutException", "TimeoutError"}:
        return "the hub did not answer in time"
    if isinstance(error, GARBLED):
        return "the answer is not one that a hub gives"
    return f"the hub cannot be reached, or hung up ({type(error).__name__})"


def _describe_permanent(error: BaseException) -> str:
    """Describe a permanent error, and what to change."""
    chain = list(_iterate_chain(error))
    if any(type(one).__name__ == "OfflineModeIsEnabled" for one in chain):
        return OFFLINE
    if any(isinstance(one, ssl.SSLError | requests.exceptions.SSLError) for one in chain):
        return (
            "the hub's certificate was not accepted, or the server there does not use TLS: check"
            " HF_ENDPOINT, the clock, and any proxy in between (REQUESTS_CA_BUNDLE, SSL_CERT_FILE)"
        )
    if any(isinstance(one, socket.gaierror) for one in chain):
        return "the hub's name does not resolve: check HF_ENDPOINT and the network's name servers"
    if any(isinstance(one, PROXY) or type(one).__name__ == "ProxyError" for one in chain):
        return "the proxy refuses: check HTTPS_PROXY and NO_PROXY"
    return (
        f"the request to the hub failed ({type(error).__name__}): check HF_ENDPOINT, HF_TOKEN and"
        " the proxy settings"
    )
