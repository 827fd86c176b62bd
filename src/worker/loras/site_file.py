"""A LoRA by URL: under the address policy of references, to a part file, and never kept unread."""

import asyncio
import hashlib
import json
from dataclasses import replace
from io import FileIO
from pathlib import Path
from typing import Final

import aiohttp
from yarl import URL

from worker.codings import parse_codings
from worker.errors import (
    ImageFetchFailed,
    ImageFetchRefused,
    ImageTooLarge,
    ImageUnavailable,
    LoraFetchFailed,
    LoraRefused,
)
from worker.loras.configuration import CONFIGURATION_NAME, LARGEST_CONFIGURATION, PEFT_NAME
from worker.loras.form import START_BYTES, find_form_fault, name_other
from worker.loras.kept import Fetched, KeptLoras
from worker.media.fetch import check_status, open_url, read_body
from worker.settings import Settings
from worker.weights import space

RECEIVE: Final = 1 << 20
NOT_MODIFIED: Final = 304
SITE_HEADERS: Final = {"Accept": "*/*", "User-Agent": "worker"}


async def fetch_from_site(
    url: str, key: str, kept: KeptLoras, settings: Settings, known: Fetched | None = None
) -> Fetched:
    """Bring what a URL holds into the cache, and return what it is.

    A file by peft's own name comes with its adapter_config.json, where the site has one.
    `known` is what it had before: a site that says that nothing has changed is not read again.
    Raises LoraRefused, LoraFetchFailed, VolumeFull.
    """
    headers = dict(SITE_HEADERS)
    if known is not None and known.tag is not None:
        headers["If-None-Match"] = known.tag
    try:
        async with open_url(url, settings, headers) as response:
            if known is None or response.status != NOT_MODIFIED:
                check_status(response)
                configuration = await _fetch_configuration(url, settings)
                return await _receive(response, key, kept, settings, configuration)
            # the tag is the file's alone
            fetched = replace(known, configuration=await _fetch_configuration(url, settings))
            await asyncio.to_thread(kept.record, key, fetched)
            return fetched
    except (ImageFetchRefused, ImageUnavailable) as error:
        raise LoraRefused(error.message) from None
    except ImageFetchFailed as error:
        raise LoraFetchFailed(error.message) from None


async def _fetch_configuration(url: str, settings: Settings) -> str | None:
    """Return the adapter_config.json next to a URL; None where it has none.

    A site may answer with a page to an address that it does not have.
    """
    place = URL(url)
    if place.name != PEFT_NAME:
        return None
    beside = place.with_name(CONFIGURATION_NAME).with_query(place.query)
    try:
        async with open_url(str(beside), settings, SITE_HEADERS) as response:
            data = await read_body(response, LARGEST_CONFIGURATION)
    except (ImageUnavailable, ImageTooLarge):
        return None
    try:
        return data.decode() if isinstance(json.loads(data), dict) else None
    except ValueError:
        return None


async def _receive(
    response: aiohttp.ClientResponse,
    key: str,
    kept: KeptLoras,
    settings: Settings,
    configuration: str | None,
) -> Fetched:
    most = settings.max_lora_bytes
    too_large = LoraRefused(f"a LoRA must have at most {most} bytes")
    if parse_codings(",".join(response.headers.getall("Content-Encoding", ()))):
        raise LoraRefused("the site sent it compressed")
    length = response.content_length
    if length is not None and length > most:
        raise too_large
    start = await _read_start(response.content)
    if (other := name_other(start)) is not None:
        raise LoraRefused(f"it is {other}; a LoRA is a safetensors file")
    expected = most if length is None else length
    await asyncio.to_thread(kept.make_room, expected)
    part = kept.make_part(key)
    try:
        with part.open("xb", buffering=0) as file:
            receiver = _Receiver(file, part.parent, expected, settings)
            await asyncio.to_thread(receiver.write, start)
            async for chunk in response.content.iter_chunked(RECEIVE):
                if receiver.size + len(chunk) > most:
                    raise too_large
                await asyncio.to_thread(receiver.write, chunk)
        tag = response.headers.get("ETag")
        fetched = Fetched(receiver.read_sha256(), receiver.size, configuration, tag)
        if fault := await asyncio.to_thread(find_form_fault, part):
            raise LoraRefused(f"{fault}; a LoRA is a safetensors file")
        await asyncio.to_thread(kept.keep, part, key, fetched)
    finally:
        part.unlink(missing_ok=True)
    return fetched


async def _read_start(content: aiohttp.StreamReader) -> bytes:
    """Return the first bytes of a body, fewer only where it ends before."""
    try:
        return await content.readexactly(START_BYTES)
    except asyncio.IncompleteReadError as error:
        return error.partial


class _Receiver:
    """What writes a file without a buffer, and digests it, in order; its methods may block."""

    def __init__(self, file: FileIO, folder: Path, expected: int, settings: Settings) -> None:
        self.size = 0
        self._file = file
        self._folder, self._expected, self._settings = folder, expected, settings
        self._digest = hashlib.sha256()

    def write(self, chunk: bytes) -> None:
        """Append bytes; raises VolumeFull."""
        view = memoryview(chunk)
        self._digest.update(view)
        self.size += len(view)
        with space.translate_errors(self._expected, self._folder, self._settings):
            while view:
                view = view[self._file.write(view) :]

    def read_sha256(self) -> str:
        """Return the sha256 of what was written, in hex."""
        return self._digest.hexdigest()
