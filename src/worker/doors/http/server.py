"""The event loop of this door, in a thread of its own: it listens, answers and ends there."""

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

from aiohttp import web

# What a connection may take to begin its first request; later ones are limited by KEEP_ALIVE_S.
HEAD_S: Final = 15.0
KEEP_ALIVE_S: Final = 75.0
# A page of the playground takes six, a busy client sixty-four.
MOST_CONNECTIONS: Final = 256
# From a connection's acceptance to the call that connects its protocol.
BURST_S: Final = 0.1
MAX_HEADER_BYTES: Final = 16_384
# How long responses may take once every job has its answer.
FLUSH_S: Final = 10.0

# Of a malformed request aiohttp logs a traceback with a line of it, which may be a key's.
QUIET: Final = logging.getLogger("worker.http")
QUIET.disabled = True

Endpoint = tuple[str, int]
Begin = Callable[[], Sequence[tuple[Endpoint, web.Application]]]


class Server:
    """Applications at their addresses; the calls from other threads return when it is done."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)
        self._runners: list[web.AppRunner] = []
        self._servers: list[asyncio.Server] = []

    def start(self, begin: Begin) -> None:
        """Listen at the addresses of what `begin`, called on the loop, returns; raises OSError."""
        self._loop = asyncio.new_event_loop()
        self._thread.start()
        try:
            self.call(self._listen(begin))
        except BaseException:
            self.stop()
            raise

    def call(self, work: Any) -> Any:
        """Run a coroutine on the loop, from another thread, and return what it returns."""
        return asyncio.run_coroutine_threadsafe(work, self._require_loop()).result()

    def stop(self) -> None:
        """Close everything, once what is being sent has been sent, and end the loop."""
        loop = self._require_loop()
        self.call(self._close())
        loop.call_soon_threadsafe(loop.stop)
        self._thread.join()
        loop.close()

    def _require_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            raise RuntimeError("the server was not started")
        return self._loop

    def _run(self) -> None:
        self._require_loop().run_forever()

    async def _listen(self, begin: Begin) -> None:
        loop = asyncio.get_running_loop()
        for (host, port), app in begin():
            runner = web.AppRunner(
                app,
                access_log=None,
                handler_cancellation=True,
                keepalive_timeout=KEEP_ALIVE_S,
                max_field_size=MAX_HEADER_BYTES,
                max_line_size=MAX_HEADER_BYTES,
                auto_decompress=False,
                logger=QUIET,
                shutdown_timeout=FLUSH_S,
            )
            await runner.setup()
            self._runners.append(runner)
            factory = Connections(runner, loop)
            self._servers.append(await loop.create_server(factory, host, port, backlog=256))

    async def _close(self) -> None:
        for server in self._servers:
            server.close()
        for runner in self._runners:
            await runner.cleanup()


class Connections:
    """Makes the protocol of each connection, and ends those that never begin a request."""

    def __init__(self, runner: web.AppRunner, loop: asyncio.AbstractEventLoop) -> None:
        self._runner = runner
        self._loop = loop
        self._made: list[tuple[Any, float]] = []

    def __call__(self) -> asyncio.Protocol:
        """Return the protocol of a new connection."""
        server = self._runner.server
        assert server is not None  # noqa: S101 - set up before anything connects
        now = self._loop.time()
        # connected, or about to be: a burst of them is accepted at once
        self._made = [
            (one, at) for one, at in self._made if one.transport is not None or now - at < BURST_S
        ]
        if len(self._made) >= MOST_CONNECTIONS:
            return TurnedAway()
        handler = server()
        self._made.append((handler, now))
        self._loop.call_later(HEAD_S, end_if_silent, handler)
        return handler


class TurnedAway(asyncio.Protocol):
    """A connection that is one too many."""

    def connection_made(self, transport: Any) -> None:
        """Say so and close it."""
        transport.write(
            b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\n"
            b"Content-Length: 0\r\nConnection: close\r\n\r\n"
        )
        transport.close()


def end_if_silent(handler: Any) -> None:
    """Close a connection on which no request has begun."""
    if handler.transport is not None and not handler._request_count:  # noqa: SLF001 - aiohttp keeps no other record
        handler.force_close()
