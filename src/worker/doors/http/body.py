"""A request's body, limited while it is read: JSON, or a form whose files become base64."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any, Final

from aiohttp import BodyPartReader, MultipartReader, web
from multidict import MultiMapping

from worker.codings import parse_codings
from worker.doors.http.responses import JSON, Refused
from worker.settings import Settings

FORM: Final = "multipart/form-data"
# How long a caller may take to send a body: 30 MB at 8 Mbit/s.
SEND_S: Final = 30.0
MOST_FILES: Final = 16
MOST_FIELDS: Final = 64
MOST_TEXT_BYTES: Final = 65_536
# Fields of a form that take files, or addresses of pictures as text.
FILE_FIELDS: Final = (
    *("image", "image[]", "images", "images[]", "mask"),
    *("image_2", "image_3", "image_4"),
)
# What a part's Content-Transfer-Encoding may be: words for bytes as they are.
UNENCODED: Final = frozenset({"7bit", "8bit", "binary"})
TRUTHS: Final[Mapping[str, bool]] = {"true": True, "false": False}


async def read_json(request: web.Request, settings: Settings) -> Any:
    """Return the JSON that a request has as its body; raises Refused."""
    _check_type(request, JSON)
    async with _limit_sending():
        data = await _read_limited(request, settings.max_body_bytes)
    try:
        return await asyncio.to_thread(json.loads, data)
    except (ValueError, RecursionError):
        raise Refused(HTTPStatus.BAD_REQUEST, "invalid_json", "the body is not JSON") from None


async def read_form(
    request: web.Request, settings: Settings, switches: frozenset[str]
) -> dict[str, Any]:
    """Return the fields of a form; files become base64, in order.

    A field that is given several times, or whose name ends with [], is a list. `switches` are the
    fields that are true or false. Raises Refused.
    """
    _check_type(request, FORM)
    _check_declared(request, settings.max_body_bytes)
    async with _limit_sending():
        try:
            parts = [part async for part in _read_parts(request, settings)]
        except (ValueError, AssertionError, LookupError, RuntimeError, web.RequestPayloadError):
            raise _make_bad_form() from None
    found: dict[str, Any] = {}
    for name, value in parts:
        given = TRUTHS.get(value.lower(), value) if name in switches else value
        if name in found or name.endswith("[]"):
            earlier = found.get(name, [])
            found[name] = [*(earlier if isinstance(earlier, list) else [earlier]), given]
        else:
            found[name] = given
    return found


def is_form(request: web.Request) -> bool:
    """Return whether a request's body is a form."""
    return request.content_type == FORM


@asynccontextmanager
async def _limit_sending() -> AsyncIterator[None]:
    """Give a caller SEND_S for a body."""
    try:
        async with asyncio.timeout(SEND_S):
            yield
    except TimeoutError:
        message = f"the body did not arrive within {SEND_S:g} s"
        raise Refused(HTTPStatus.REQUEST_TIMEOUT, "request_timeout", message) from None


def _check_type(request: web.Request, expected: str) -> None:
    """Check the media type: another origin's page can send only other ones without asking first."""
    if request.headers.get("Transfer-Encoding", "chunked").lower() != "chunked":
        message = "no other Transfer-Encoding than chunked is accepted"
        raise Refused(HTTPStatus.BAD_REQUEST, "invalid_body", message)
    if _is_compressed(request.headers):
        message = "a compressed body is not accepted"
        raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message)
    if "Content-Type" not in request.headers or request.content_type != expected:
        message = f"the body must be {expected}, and Content-Type must say so"
        raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message)


def _check_declared(request: web.Request, most: int) -> None:
    if request.content_length is not None and request.content_length > most:
        raise _make_too_large(most)


async def _read_limited(request: web.Request, most: int) -> bytes:
    """Return a body of at most `most` bytes, whatever length it declares."""
    _check_declared(request, most)
    data = bytearray()
    try:
        async for chunk in request.content.iter_any():
            data += chunk
            if len(data) > most:
                raise _make_too_large(most)
    except web.RequestPayloadError:
        message = "the body is not complete"
        raise Refused(HTTPStatus.BAD_REQUEST, "invalid_body", message) from None
    return bytes(data)


async def _read_parts(request: web.Request, settings: Settings) -> AsyncIterator[tuple[str, str]]:
    """Yield (name, text) of each part; a file's text is its base64."""
    reader = await request.multipart()
    left = settings.max_body_bytes
    files = fields = 0
    while (part := await reader.next()) is not None:
        if isinstance(part, MultipartReader) or not part.name:
            raise _make_bad_form()
        is_file = part.filename is not None
        files, fields = files + is_file, fields + (not is_file)
        if files > MOST_FILES or fields > MOST_FIELDS:
            message = f"a form may have {MOST_FILES} files and {MOST_FIELDS} fields"
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too_many_parts", message)
        most = settings.max_image_bytes if is_file or part.name in FILE_FIELDS else MOST_TEXT_BYTES
        data = await _read_part(part, min(most, left))
        left -= len(data)
        if is_file:
            yield part.name, await asyncio.to_thread(_encode, data)
        else:
            try:
                yield part.name, data.decode()
            except UnicodeDecodeError:
                raise _make_bad_form() from None


async def _read_part(part: BodyPartReader, most: int) -> bytes:
    """Return a part of at most `most` bytes."""
    how = part.headers.get("Content-Transfer-Encoding", "binary").strip().lower()
    if how not in UNENCODED or _is_compressed(part.headers):
        raise _make_bad_form()
    data = bytearray()
    while chunk := await part.read_chunk():
        data += chunk
        if len(data) > most:
            raise _make_too_large(most, part.name)
    return bytes(data)


def _is_compressed(headers: MultiMapping[str]) -> bool:
    return bool(parse_codings(",".join(headers.getall("Content-Encoding", ()))))


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _make_too_large(most: int, name: str | None = None) -> Refused:
    what = "the body" if name is None else name[:60]
    message = f"{what} may have at most {most} bytes"
    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    return Refused(status, "request_too_large", message, param=name and name[:60])


def _make_bad_form() -> Refused:
    message = "the body is not a complete form of multipart/form-data"
    return Refused(HTTPStatus.BAD_REQUEST, "invalid_form", message)
