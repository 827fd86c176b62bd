"""The guarded dialler: one HTTP request, to an address that is checked at the socket."""

import asyncio
import contextlib
import io
import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import aiodns
import aiohttp
import certifi
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from worker.media.address import Gate
from worker.settings import Settings

ROUNDS_TO_CLOSE: Final = 20  # of the event loop, before it has closed a socket that was shut down
# Statuses that mean "later": 408 Request Timeout, 425 Too Early, 429 Too Many Requests.
LATER: Final = frozenset({408, 425, 429})
SERVER_ERROR: Final = 500
# The name server says that there is no address, rather than that it has no answer for the moment.
NO_ADDRESS: Final = frozenset(
    {aiodns.error.ARES_ENOTFOUND, aiodns.error.ARES_ENODATA, aiodns.error.ARES_EBADNAME}
)
CUT: Final = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)


class AddressRefusedError(OSError):
    """The host resolves to an address that callers may not reach."""


class NoAddressError(OSError):
    """The host's name does not exist, or has no address."""


@dataclass(frozen=True, slots=True)
class Cause:
    """Why there was no answer, in words for the caller, and whether a retry may get one."""

    message: str
    is_temporary: bool


@cache
def make_tls_context() -> ssl.SSLContext:
    """Return what verifies certificates, by the system's and certifi's authorities; takes 20 ms."""
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    return context


class GuardedResolver(AbstractResolver):
    """Resolve a name without a thread per query, and refuse it if any of its addresses is refused.

    One refused address rules out the name: otherwise chance, or a second answer, would decide which
    address is dialled.
    """

    def __init__(self, gate: Gate | None, settings: Settings) -> None:
        self._gate = gate
        # FETCH_NAMESERVERS are for callers' names; the operator's own may resolve only internally.
        self._nameservers = settings.fetch_nameservers if gate is not None else ()
        self._resolver: aiodns.DNSResolver | None = None

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return all addresses of `host`; raises AddressRefusedError, or OSError if it has none."""
        if self._resolver is None:  # it has a thread and sockets, so it is made only for a name
            self._resolver = aiodns.DNSResolver(nameservers=self._nameservers or None)
        try:
            answer = await self._resolver.getaddrinfo(host, family=family, type=socket.SOCK_STREAM)
        except aiodns.error.DNSError as error:
            if error.args[0] in NO_ADDRESS:
                raise NoAddressError("the name has no address") from None
            raise OSError("the name could not be resolved") from None
        results: list[ResolveResult] = []
        for node in answer.nodes:
            address = node.addr[0].decode()
            if self._gate is not None and not self._gate.can_reach(address, port):
                raise AddressRefusedError("an address is not public")
            results.append(
                ResolveResult(
                    hostname=host,
                    host=address,
                    port=port,
                    family=node.family,
                    proto=0,
                    flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
                )
            )
        if not results:
            raise NoAddressError("the name has no address")
        return results

    async def close(self) -> None:
        """Cancel pending queries and close the resolver."""
        if self._resolver is not None:
            await self._resolver.close()


class GuardedSockets:
    """Make the sockets of one request, each only for an address that may be dialled."""

    def __init__(self, gate: Gate | None) -> None:
        self._gate = gate
        self._made: list[socket.socket] = []

    def __call__(self, info: tuple[Any, ...]) -> socket.socket:
        """Return a socket for an address from getaddrinfo; raises AddressRefusedError."""
        family, kind, protocol, _, address = info
        if self._gate is not None and not self._gate.can_reach(str(address[0]), int(address[1])):
            raise AddressRefusedError("an address is not public")
        made = socket.socket(family, kind, protocol)
        self._made.append(made)
        return made

    async def end(self) -> None:
        """Close every connection at once: TLS would wait 30 s for the peer's closing message."""
        for made in self._made:
            with contextlib.suppress(OSError):
                made.shutdown(socket.SHUT_RDWR)
        for _ in range(ROUNDS_TO_CLOSE):
            if all(made.fileno() < 0 for made in self._made):
                break
            await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def send_request(
    method: str,
    url: URL,
    settings: Settings,
    *,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    trusted: bool = False,
) -> AsyncIterator[aiohttp.ClientResponse]:
    """Send one request and yield the response, whatever its status; no redirects, no retries.

    Every address of the host is checked when it is resolved and again when its socket is made, and
    the socket connects to the address that was checked; TLS still verifies the host's name.
    `trusted` is for the operator's own endpoints, which may be anywhere. FETCH_CONNECT_S bounds
    resolving, connecting and TLS together; the caller bounds the rest. Proxies, netrc and cookies
    are not used, and no body is decompressed.

    Raises AddressRefusedError (possibly as the `os_error` of a ClientConnectorError), and otherwise
    aiohttp.ClientError, OSError, TimeoutError or ValueError when there is no answer.
    """
    gate = None if trusted else Gate.from_settings(url.scheme, settings)
    resolver = GuardedResolver(gate, settings)
    sockets = GuardedSockets(gate)
    connector = aiohttp.TCPConnector(
        resolver=resolver,
        socket_factory=sockets,
        ssl=make_tls_context(),
        use_dns_cache=False,
    )
    try:
        async with (
            aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(connect=settings.fetch_connect_s),
                auto_decompress=False,
                trust_env=False,
                requote_redirect_url=False,
            ) as session,
            session.request(
                method,
                url,
                data=None if body is None else io.BytesIO(body),  # bytes would block the loop
                headers={"Accept-Encoding": "identity", **(headers or {})},
                allow_redirects=False,
            ) as response,
        ):
            yield response
    finally:
        await sockets.end()
        await resolver.close()


def is_refused(error: BaseException) -> bool:
    """Return whether `error`, or what it wraps, is a refused address."""
    return isinstance(_unwrap(error), AddressRefusedError)


def explain_failure(error: BaseException, peer: str) -> Cause:
    """Explain an error of `send_request` other than a refused address; `peer` is the other side."""
    match _unwrap(error):
        case NoAddressError():
            return Cause(f"{peer}'s name has no address", is_temporary=False)
        case ssl.SSLCertVerificationError():
            return Cause(f"{peer} has no valid certificate", is_temporary=False)
        case ssl.SSLError() as inner if not isinstance(inner, CUT):
            return Cause(f"{peer} does not speak TLS correctly", is_temporary=False)
        case aiohttp.ClientResponseError():
            return Cause(f"{peer} does not speak HTTP correctly", is_temporary=False)
        case OSError() as inner if not isinstance(inner, aiohttp.ClientOSError):
            return Cause(f"{peer} could not be reached", is_temporary=True)
    return Cause(f"{peer} did not send a complete answer", is_temporary=True)


def is_temporary_status(status: int) -> bool:
    """Return whether the same request may later get a different answer from this `status`."""
    return status in LATER or status >= SERVER_ERROR


def _unwrap(error: BaseException) -> BaseException:
    """Return why a connection failed."""
    match error:
        case aiohttp.ClientConnectorCertificateError():
            return error.certificate_error
        case aiohttp.ClientConnectorError():
            return error.os_error
    return error
