"""Post a job's result until the platform has it."""

import io
from http import HTTPStatus
from typing import Final

import aiohttp
import stamina

from worker import log

TOTAL_S: Final = 120.0
ATTEMPT_S: Final = 60.0  # 20 MB at 3 Mbit/s
LONGEST_WAIT_S: Final = 10.0
RETRIED: Final = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS})


class _TryAgainError(Exception):
    """The platform did not accept the result, and may accept it later."""


async def transmit(session: aiohttp.ClientSession, url: str, body: str) -> None:
    """Post a result, retrying for TOTAL_S where that may help; raises nothing but CancelledError.

    The SDK's own function (rp_http._transmit of runpod 1.12) tries three times after a 5xx, but
    gives up a result at the first dropped connection, timeout or 429.
    """
    try:
        async for attempt in stamina.retry_context(
            on=_TryAgainError,
            attempts=None,
            timeout=TOTAL_S,
            wait_initial=0.5,
            wait_max=LONGEST_WAIT_S,
            wait_jitter=0.5,
        ):
            with attempt:
                await _post_once(session, url, body.encode())
    except _TryAgainError as error:
        log.get().error("answer lost", reason=str(error))


async def _post_once(session: aiohttp.ClientSession, url: str, body: bytes) -> None:
    timeout = aiohttp.ClientTimeout(total=ATTEMPT_S)
    headers = {"charset": "utf-8", "Content-Type": "application/x-www-form-urlencoded"}
    try:
        # a file, not bytes: aiohttp sends bytes in one go, which blocks the event loop
        data = io.BytesIO(body)
        async with session.post(url, data=data, headers=headers, timeout=timeout) as response:
            status = response.status
    except (aiohttp.ClientError, OSError) as error:
        raise _TryAgainError(type(error).__name__) from error
    if status in RETRIED or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        raise _TryAgainError(f"status {status}")
    if status >= HTTPStatus.BAD_REQUEST:
        log.get().error("answer refused", status=status, bytes=len(body))
