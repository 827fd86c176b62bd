"""A reference picture, URL or base64 -> bytes, all of a job's side by side within one budget."""

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import aiohttp
from yarl import URL

from worker.errors import Detail, ImageFetchFailed, ImageFetchRefused, ImageTooLarge, WorkerError
from worker.media.dial import request, was_refused
from worker.media.inline import decode_base64
from worker.media.url import check
from worker.settings import Settings

MAX_REDIRECTS: Final = 3
REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
OK: Final = 200
CHUNK: Final = 1 << 16
ABSOLUTE: Final = re.compile(r"[a-z][a-z0-9+.-]{0,31}:", re.IGNORECASE)
# Sites that choose a format by what is asked would else send AVIF.
ASKED: Final = {"Accept": "image/png, image/jpeg, image/webp", "User-Agent": "image-worker"}


@dataclass(frozen=True, slots=True)
class ImageSource:
    """Where a reference picture is: an https URL, or base64 with or without a data URI's head."""

    kind: Literal["url", "base64"]
    value: str


async def fetch_all(sources: Sequence[ImageSource], settings: Settings) -> list[bytes]:
    """Return the bytes of every source, in order; the first failure stops the others.

    FETCH_TOTAL_S bounds all of them together, by the event loop's monotonic clock.

    Raises ImageFetchRefused, ImageFetchFailed, ImageTooLarge or InvalidInput; `details` names the
    picture as images[i].
    """
    try:
        async with asyncio.timeout(settings.fetch_total_s), asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(_fetch_one(index, source, settings))
                for index, source in enumerate(sources)
            ]
    except TimeoutError:
        raise ImageFetchFailed(
            f"the pictures did not arrive within {settings.fetch_total_s:g} s"
        ) from None
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


async def _fetch_one(index: int, source: ImageSource, settings: Settings) -> bytes:
    try:
        if source.kind == "base64" or source.value[:5].lower() == "data:":
            return await asyncio.to_thread(decode_base64, source.value, settings.max_image_bytes)
        return await fetch_url(source.value, settings)
    except WorkerError as error:
        field = f"images[{index}]"
        raise type(error)(
            f"{field}: {error.message}", details=(Detail(field, error.message),)
        ) from None


async def fetch_url(text: str, settings: Settings) -> bytes:
    """Return what a URL holds, following at most three redirects, each judged like the first.

    Reading stops at MAX_IMAGE_BYTES. Raises ImageFetchRefused, ImageFetchFailed or ImageTooLarge.
    """
    url = check(text, settings)
    for _ in range(MAX_REDIRECTS + 1):
        try:
            async with request("GET", url, settings, headers=ASKED) as response:
                if response.status not in REDIRECTS:
                    return await _read(response, settings.max_image_bytes)
                location = response.headers.get("Location", "")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise _translated(error) from None
        url = _follow(url, location, settings)
    raise ImageFetchFailed(f"the site redirected more than {MAX_REDIRECTS} times")


def _follow(url: URL, location: str, settings: Settings) -> URL:
    if not location:
        raise ImageFetchFailed("the site redirected to nowhere")
    try:
        target = (
            location if ABSOLUTE.match(location) else str(url.join(URL(location, encoded=True)))
        )
    except ValueError:
        raise ImageFetchRefused("the site redirected to a malformed URL") from None
    following = check(target, settings)
    if url.scheme == "https" and following.scheme != "https":
        raise ImageFetchRefused("the site redirected from https to http")
    return following


async def _read(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    if response.status != OK:
        raise ImageFetchFailed(f"the site answered with status {response.status}")
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise ImageFetchFailed("the site sent compressed bytes, which were not asked for")
    too_large = ImageTooLarge(f"a picture must have at most {max_bytes} bytes")
    if (response.content_length or 0) > max_bytes:
        raise too_large
    data = bytearray()
    async for chunk in response.content.iter_chunked(CHUNK):
        data += chunk
        if len(data) > max_bytes:
            raise too_large
    return bytes(data)


def _translated(error: Exception) -> WorkerError:
    if was_refused(error):
        return ImageFetchRefused("a URL must lead to a public address")
    if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ClientSSLError):
        return ImageFetchFailed("the site has no valid certificate")
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return ImageFetchFailed("the site's name has no address")
    if isinstance(error, aiohttp.ClientConnectorError | TimeoutError):
        return ImageFetchFailed("the site could not be reached")
    return ImageFetchFailed("the site did not answer with a whole picture")
