"""Reference pictures, by URL or base64 -> bytes: all of a job in parallel, within one budget."""

import asyncio
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import urljoin

import aiohttp
from yarl import URL

from worker.codings import parse_codings
from worker.errors import (
    Detail,
    ImageFetchFailed,
    ImageFetchRefused,
    ImageTooLarge,
    ImageUnavailable,
    WorkerError,
)
from worker.media.dial import explain_failure, is_refused, is_temporary_status, send_request
from worker.media.inline import decode_base64
from worker.media.unpack import compute_max_packed, unpack
from worker.media.url import check_url, refuse_characters
from worker.settings import Settings

MAX_REDIRECTS: Final = 3
REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
OK: Final = 200
ACCEPTED: Final = 202  # the picture is being made
CHUNK: Final = 1 << 16
ABSOLUTE: Final = re.compile(r"[a-z][a-z0-9+.-]{0,31}:", re.IGNORECASE)
LONE_BYTE: Final = 0xDC00  # where PEP 383 puts a byte that cannot be decoded
NO_UTF8: Final = re.compile("[\udc80-\udcff]")
# A site that chooses a format by Accept would otherwise send AVIF, which takes a child process to
# decode: what this process decodes comes first.
REQUEST_HEADERS: Final = {
    "Accept": "image/png, image/jpeg, image/webp, image/*;q=0.5",
    "User-Agent": "image-worker",
}


@dataclass(frozen=True, slots=True)
class ImageSource:
    """Where a reference picture is: an https URL, or base64 with or without a data URI's head.

    `field` is what messages call it, None where it is one of the `images`. `weight` is what its
    caller wrote next to it, None for nothing.
    """

    kind: Literal["url", "base64"]
    value: str
    field: str | None = None
    weight: float | None = None


async def fetch_all(sources: Sequence[ImageSource], settings: Settings) -> list[bytes]:
    """Return the bytes of every source, in order; the first failure stops the others.

    FETCH_TOTAL_S bounds all of them together, by the event loop's monotonic clock.

    Raises ImageFetchRefused, ImageFetchFailed, ImageTooLarge or InvalidInput; `details` names the
    picture by its field, or as images[i].
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
        field = source.field or f"images[{index}]"
        raise type(error)(
            f"{field}: {error.message}", details=(Detail(field, error.message),)
        ) from None


async def fetch_url(text: str, settings: Settings) -> bytes:
    """Return what a URL holds, following at most three redirects, each checked like the first.

    Reading stops at MAX_IMAGE_BYTES. Raises ImageFetchRefused, ImageFetchFailed or ImageTooLarge.
    """
    async with open_url(text, settings, REQUEST_HEADERS) as response:
        return await read_body(response, settings.max_image_bytes)


@asynccontextmanager
async def open_url(
    text: str, settings: Settings, headers: Mapping[str, str]
) -> AsyncIterator[aiohttp.ClientResponse]:
    """Yield the answer to a URL, of any status but a redirect, to be read inside the block.

    At most three redirects are followed, each checked like the first. Raises ImageFetchRefused or
    ImageFetchFailed, also for what goes wrong while the answer is read.
    """
    url = check_url(text, settings)
    for _ in range(MAX_REDIRECTS + 1):
        try:
            async with send_request("GET", url, settings, headers=headers) as response:
                if response.status not in REDIRECTS:
                    yield response
                    return
                location = response.headers.get("Location", "")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise _translate(error) from None
        url = _follow(url, location, settings)
    raise ImageUnavailable(f"the site redirected more than {MAX_REDIRECTS} times")


def check_status(response: aiohttp.ClientResponse) -> None:
    """Raise ImageFetchFailed unless an answer has what was requested."""
    status = response.status
    if status != OK:
        is_temporary = is_temporary_status(status) or status == ACCEPTED
        failure = ImageFetchFailed if is_temporary else ImageUnavailable
        raise failure(f"the site answered with status {status}")


def _follow(url: URL, location: str, settings: Settings) -> URL:
    # A byte that is not UTF-8 arrives as a surrogate; it is still a byte of the path.
    location = NO_UTF8.sub(lambda match: f"%{ord(match[0]) - LONE_BYTE:02X}", location)
    if not location:
        raise ImageUnavailable("the site redirected to nowhere")
    refuse_characters(location)  # before the standard library's parser drops some of them
    try:
        target = location if ABSOLUTE.match(location) else urljoin(str(url), location)
    except ValueError:
        raise ImageFetchRefused("the site redirected to a malformed URL") from None
    following = check_url(target, settings)
    if url.scheme == "https" and following.scheme != "https":
        raise ImageFetchRefused("the site redirected from https to http")
    return following


async def read_body(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    """Return what a site sent, unpacked, of at most `max_bytes`.

    Raises ImageFetchFailed, ImageUnavailable, ImageTooLarge.
    """
    check_status(response)
    compressed = parse_codings(",".join(response.headers.getall("Content-Encoding", ())))
    most = compute_max_packed(max_bytes) if compressed else max_bytes
    too_large = ImageTooLarge(f"a picture must have at most {max_bytes} bytes")
    if (response.content_length or 0) > most:
        raise too_large
    data = bytearray()
    async for chunk in response.content.iter_chunked(CHUNK):
        data += chunk
        if len(data) > most:
            raise too_large
    if compressed:
        return await asyncio.to_thread(unpack, bytes(data), compressed, max_bytes)
    return bytes(data)


def _translate(error: Exception) -> WorkerError:
    if is_refused(error):
        return ImageFetchRefused("a URL must lead to a public address")
    why = explain_failure(error, "the site")
    return (ImageFetchFailed if why.is_temporary else ImageUnavailable)(why.message)
