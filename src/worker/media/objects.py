"""One object in a store: put, read or deleted, with retries, and the reason if it is refused."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import aiohttp
import stamina
from yarl import URL

from worker.errors import DeliveryFailed, ImageFetchRefused
from worker.media import regions
from worker.media.dial import explain_failure, is_refused, send_request
from worker.media.refusal import Refusal, read_refusal, read_start
from worker.media.s3 import Bucket
from worker.media.url import check_url
from worker.settings import Settings

UPLOAD_ATTEMPTS: Final = 4
UPLOAD_ATTEMPT_S: Final = 30.0  # a picture of 20 MB at 6 Mbit/s
UPLOAD_TOTAL_S: Final = 90.0
WAIT_INITIAL_S: Final = 0.2
REQUEST_TTL_S: Final = 3600
STORED: Final = range(200, 300)


class RefusedError(Exception):
    """The request will not be carried out, however often it is sent.

    The message may be shown to the caller; `refusal` is the store's answer, None if there was none.
    """

    def __init__(self, message: str, refusal: Refusal | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.refusal = refusal

    @property
    def is_of_clock(self) -> bool:
        """Whether the clock of the machine that signed the request is at fault."""
        return self.refusal is not None and self.refusal.is_of_clock


class _TryAgainError(Exception):
    """A request failed and a retry may succeed; the message may be shown to the caller."""


async def put_object(
    bucket: Bucket, key: str, body: bytes, mime_type: str, settings: Settings, *, trusted: bool
) -> Bucket:
    """Put `body` into a bucket; return the bucket with the region that its store took.

    If the store names another region than the one that was signed for, the request is signed again
    for that, once; the region is kept for the uploads that follow. A bucket that is not `trusted`
    obeys the policy for image URLs. Raises as `send_object` does.
    """
    signed = regions.recall(bucket)
    try:
        await _put_signed(signed, key, body, mime_type, settings, trusted=trusted)
    except RefusedError as error:
        region = None if error.refusal is None else error.refusal.region
        if region is None or region == signed.signing_region:
            raise
        signed = replace(signed, region=region)
        await _put_signed(signed, key, body, mime_type, settings, trusted=trusted)
        regions.learn(bucket, region)
    return signed


async def _put_signed(
    bucket: Bucket, key: str, body: bytes, mime_type: str, settings: Settings, *, trusted: bool
) -> None:
    address = await asyncio.to_thread(bucket.sign, "PUT", key, REQUEST_TTL_S, mime_type)
    target = URL(address, encoded=True) if trusted else check_url(address, settings)
    headers = {"Content-Type": mime_type}
    await send_object("PUT", target, settings, body=body, headers=headers, trusted=trusted)


async def send_object(
    method: str,
    url: URL,
    settings: Settings,
    *,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    trusted: bool = False,
) -> bytes:
    """Send a request for one object, again after temporary failures; return the answer's start.

    Raises DeliveryFailed when it was not carried out but may be later, RefusedError when it will
    not be, and ImageFetchRefused when the store's address is not public (unless it is `trusted`).
    """
    start = b""
    try:
        async for attempt in stamina.retry_context(
            on=_TryAgainError,
            attempts=UPLOAD_ATTEMPTS,
            timeout=UPLOAD_TOTAL_S,
            wait_initial=WAIT_INITIAL_S,
            wait_jitter=WAIT_INITIAL_S,
            wait_max=5.0,
        ):
            with attempt:
                start = await _send_once(method, url, settings, body, headers, trusted=trusted)
    except _TryAgainError as error:
        raise DeliveryFailed(f"{error} (tried up to {UPLOAD_ATTEMPTS} times)") from None
    return start


async def _send_once(
    method: str,
    url: URL,
    settings: Settings,
    body: bytes | None,
    headers: Mapping[str, str] | None,
    *,
    trusted: bool,
) -> bytes:
    try:
        async with (
            asyncio.timeout(UPLOAD_ATTEMPT_S),
            send_request(
                method, url, settings, body=body, headers=headers, trusted=trusted
            ) as response,
        ):
            if response.status in STORED:
                return await read_start(response) if method == "GET" else b""
            refusal = await read_refusal(response)
    except (aiohttp.ClientError, OSError, ValueError) as error:
        if is_refused(error):
            raise ImageFetchRefused("a URL must lead to a public address") from None
        why = explain_failure(error, "the store")
        raise (_TryAgainError if why.is_temporary else RefusedError)(why.message) from None
    if refusal.is_temporary:
        raise _TryAgainError(refusal.message)
    raise RefusedError(refusal.message, refusal)  # a redirect too: its target would not be signed
