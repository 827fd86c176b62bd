"""What may represent a picture in an input, and how the fetched pictures are decoded."""

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final
from urllib.parse import unquote

from PIL import Image

from worker.edge.fields import read_decimal, show
from worker.errors import Detail, WorkerError
from worker.media import images
from worker.media.fetch import ImageSource
from worker.media.inline import is_base64_uri, is_complete, join_lines

KEYS: Final = ("image", "url", "data", "base64", "image_url", "b64_json")
FORMS: Final = 'an https URL, a data URI, base64, or {"image"|"url"|"data"|"base64": ...}'

# Bounded: 27 MB of base64 are all letters, for which an unbounded star takes 0.7 s.
# What an object may say of a reference next to where it is, and the most of it.
WEIGHT: Final = "weight"
MOST_WEIGHT: Final = 4

SCHEME: Final = re.compile(r"[a-z][a-z0-9+.-]{0,31}://", re.IGNORECASE)
DATA_HEADER: Final = 256
ALPHABET: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/-_"
BLANKS: Final = b" \t\r\n"
END: Final = 1024
# The smallest picture of any kind that we read (a 1x1 WEBP) has 26 bytes: 35 characters.
SHORTEST: Final = 32
# Base64 of a JPEG starts "/9j/": nothing else that we read starts with a slash.
JPEG: Final = "/9j/"
PATH: Final = re.compile(
    r"[/~\\]|\.{1,2}[/\\]|[a-z]:[/\\]"
    r"|.{0,4096}\.(?:png|jpe?g|webp|gif|bmp|avif|hei[cf]|tiff?)$",
    re.IGNORECASE,
)


def describe_one(more: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the JSON Schema of one picture; its media type says that it is one.

    An object may have keys besides those of pictures, `more`.
    """
    keys = {key: {"type": "string"} for key in KEYS}
    keyed = {"type": "object", "properties": {**keys, **(more or {})}}
    return {"anyOf": [{"type": "string"}, keyed], "contentMediaType": "image/*"}


def describe_list(most: int) -> dict[str, Any]:
    """Return the JSON Schema of one picture or a list of them."""
    one = describe_one({WEIGHT: {"type": "number", "minimum": 0, "maximum": MOST_WEIGHT}})
    return {"anyOf": [one, {"type": "array", "items": one, "minItems": 1, "maxItems": most}]}


def read_reference(value: Any) -> ImageSource:
    """Read one picture that may say how often it counts; otherwise as `read_source`."""
    if not isinstance(value, dict) or value.get(WEIGHT) is None:
        return read_source(value)
    weight = read_decimal(value[WEIGHT])
    is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
    if not is_number or not 0 <= weight <= MOST_WEIGHT:
        raise ValueError(f"its weight must be 0 to {MOST_WEIGHT} (got {show(weight)})")
    return replace(read_source(value), weight=float(weight))


def read_source(value: Any) -> ImageSource:
    """Read one picture as the caller wrote it; media.fetch decides whether a URL may be fetched.

    The base64 of the result has no header, but for a data URI that is percent-encoded, which keeps
    a short one. Only its length and ends are checked here, on the event loop, enough to recognise a
    path or a name; media.inline decodes it strictly, in a thread. Raises ValueError, with a message
    for the caller, for anything else.
    """
    if isinstance(value, dict):
        value = _unwrap(value)
    if not isinstance(value, str):
        raise ValueError(f"must be {FORMS}")  # noqa: TRY004 - pydantic reports ValueErrors
    text = value.strip()
    if not text:
        raise ValueError("is empty")
    if SCHEME.match(text):
        return ImageSource("url", text)
    if text[:7].lower() == "data%3a":
        text = unquote(text)
    if text[:5].lower() == "data:":
        return ImageSource("base64", _read_data_uri(text))
    if PATH.match(text) and not text.startswith(JPEG):
        raise ValueError("a file path is never read; send an https URL, a data URI or base64")
    return ImageSource("base64", _read_base64(text))


def _unwrap(value: Mapping[Any, Any]) -> Any:
    """Return what an object has under one of KEYS; OpenAI's form has another object there."""
    given = [key for key in KEYS if value.get(key) is not None]
    if len(given) != 1:
        raise ValueError(f"an object must have exactly one of {', '.join(KEYS)}")
    inner = value[given[0]]
    return inner.get("url") if isinstance(inner, dict) and given[0] == "image_url" else inner


def _read_data_uri(text: str) -> str:
    header, comma, _ = text[:DATA_HEADER].partition(",")
    if not comma or not is_base64_uri(header):
        raise ValueError('a data URI must start "data:image/...;base64,"')
    body = text[len(header) + 1 :]
    return f"data:;base64,{join_lines(body)}" if "%" in body else _read_base64(body)


def _read_base64(text: str) -> str:
    start, end = (part.encode(errors="replace") for part in (text[:END], text[-END:]))
    # a line may break between the two
    tail = end.rstrip(b"=" + BLANKS)
    padding = end.count(b"=", len(tail))
    ends = start.rstrip(b"=" + BLANKS) + tail
    if ends.translate(None, ALPHABET + BLANKS) or padding > 2:  # noqa: PLR2004 - base64's own
        raise ValueError(f"must be {FORMS}")
    has_blanks = any(blank in start + end for blank in BLANKS)
    if has_blanks or not is_complete(len(text) - padding, padding):
        text = join_lines(text)
    if len(text) < SHORTEST:
        raise ValueError(f"must be {FORMS}: this is too short for a picture")
    if not is_complete(len(text) - padding, padding):
        raise ValueError("is incomplete: its base64 lacks a character, or has one too many")
    return text


async def decode_all(
    fetched: Sequence[bytes], max_pixels: int
) -> tuple[tuple[Image.Image, ...], tuple[str, ...]]:
    """Decode references in parallel, off the event loop; return them and the warnings.

    Raises as media.images.decode, with `details` that name the picture as images[i].
    """
    decoding = [
        asyncio.to_thread(_decode, index, data, max_pixels) for index, data in enumerate(fetched)
    ]
    answers = await asyncio.gather(*decoding)
    warnings = tuple(text for _, texts in answers for text in texts)
    return tuple(picture for picture, _ in answers), warnings


def _decode(index: int, data: bytes, max_pixels: int) -> tuple[Image.Image, list[str]]:
    name, warnings = f"images[{index}]", list[str]()
    try:
        picture = images.decode(data, max_pixels, warnings.append)
    except WorkerError as error:
        details = [Detail(name, error.message)]
        raise type(error)(f"{name}: {error.message}", details=details) from error
    return picture, [f"{name}: {text}" for text in warnings]
