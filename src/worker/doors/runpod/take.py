"""Take jobs from the platform's long poll, so that none goes to a worker that is leaving."""

import asyncio
import contextlib
import json
import socket
import weakref
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, Final, Self

import aiohttp

from worker import log

HOLD_S: Final = 90.0  # the SDK's own limit of a poll
LEAVE_S: Final = 2.0  # how long the platform may still answer once our half is closed
FIRST_WAIT_S: Final = 1.0
LONGEST_WAIT_S: Final = 30.0
BUSY_WAIT_S: Final = 5.0  # the SDK's own wait after 429
# The pause after a platform answers "no job" at once instead of holding the poll.
PAUSE_S: Final = 0.2

TakenJob = dict[str, Any]


class TakeFailed(Exception):
    """The platform did not answer a poll properly; poll again after `wait_s` seconds, if set."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class Taker:
    """The worker's side of job-take; an async context manager.

    A poll that is simply dropped loses the job that is on its way. So `leave` closes only our half
    of the connection: the platform sees that no more requests follow and hangs up, and a job that
    it has sent by then is still read and returned.
    """

    def __init__(self, url: Callable[[int], str], headers: Mapping[str, str]) -> None:
        self._url = url
        self._headers = headers
        self._leaving = asyncio.Event()
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._wait_s = FIRST_WAIT_S

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(socket_factory=self._open_socket),
            headers=self._headers,
            timeout=aiohttp.ClientTimeout(total=HOLD_S),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    def leave(self) -> None:
        """Take no further job; a poll under way returns within LEAVE_S."""
        self._leaving.set()

    async def take(self, count: int) -> list[TakenJob]:
        """Return up to `count` jobs, each with a string `id` and an `input`; [] if none came.

        A platform in trouble is polled again after 1, 2, 4 ... 30 seconds.
        """
        started = asyncio.get_running_loop().time()
        try:
            jobs = await self._poll(count)
        except TakeFailed as failure:
            if self._leaving.is_set():
                return []
            wait = failure.wait_s or self._wait_s
            log.get().warning("no job taken", reason=str(failure), wait_s=wait)
            if failure.wait_s is None:
                self._wait_s = min(2 * self._wait_s, LONGEST_WAIT_S)
            await self._pause(wait)
            return []
        self._wait_s = FIRST_WAIT_S
        if not jobs and asyncio.get_running_loop().time() - started < PAUSE_S:
            await self._pause(PAUSE_S)
        return jobs

    async def _poll(self, count: int) -> list[TakenJob]:
        poll = asyncio.create_task(self._request(count))
        leaving = asyncio.create_task(self._leaving.wait())
        try:
            await asyncio.wait({poll, leaving}, return_when=asyncio.FIRST_COMPLETED)
            end = asyncio.get_running_loop().time() + LEAVE_S
            # More than once: aiohttp may still be connecting, or retry on a new connection.
            while not poll.done() and asyncio.get_running_loop().time() < end:
                for connection in list(self._sockets):
                    with contextlib.suppress(OSError):
                        connection.shutdown(socket.SHUT_WR)
                await asyncio.wait({poll}, timeout=0.1)
            return await poll if poll.done() else []
        finally:
            for task in (poll, leaving):
                task.cancel()
            await asyncio.wait({poll, leaving})

    async def _request(self, count: int) -> list[TakenJob]:
        try:
            async with self._session.get(self._url(count)) as response:
                if response.status in (HTTPStatus.NO_CONTENT, HTTPStatus.BAD_REQUEST):
                    return []  # 400: nothing yet, while FlashBoot restores the worker
                if response.status == HTTPStatus.TOO_MANY_REQUESTS:
                    raise TakeFailed("status 429", BUSY_WAIT_S)
                if response.status != HTTPStatus.OK:
                    raise TakeFailed(f"status {response.status}")
                body = await response.read()
        except TimeoutError:
            return []
        except (aiohttp.ClientError, OSError) as error:
            raise TakeFailed(type(error).__name__) from error
        return _read(body)

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._leaving.wait(), seconds)

    def _open_socket(self, address: aiohttp.AddrInfoType) -> socket.socket:
        family, kind, protocol, _, _ = address
        opened = socket.socket(family, kind, protocol)
        self._sockets.add(opened)
        return opened


def _read(body: bytes) -> list[TakenJob]:
    """Return the jobs in an answer: one object, or a list of them.

    A job without an input is kept, so that its caller gets an answer; without an id none can be
    sent.
    """
    if not body.strip():
        return []
    try:
        answer = json.loads(body)
    except ValueError:
        raise TakeFailed("the answer is not JSON") from None
    jobs = []
    for entry in answer if isinstance(answer, list) else [answer]:
        if isinstance(entry, dict) and isinstance(entry.get("id"), str) and entry["id"]:
            jobs.append({"input": None, **entry})
        else:
            log.get().error("job without an id dropped")
    if not jobs and not isinstance(answer, list):
        raise TakeFailed("the answer is not a job")
    return jobs
