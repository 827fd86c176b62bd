"""What the coverage-guided fuzzer calls with bytes; whatever leaves but these errors is a bug."""

import base64
import struct
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Final

from fuzz.strategies import SEEDS

from worker import settings
from worker.edge import reply
from worker.edge.reply import format_answer
from worker.errors import (
    ImageFetchRefused,
    ImageTooLarge,
    ImageUnreadable,
    InvalidInput,
    ModelNotServed,
    UnsupportedTask,
    WorkerError,
)
from worker.media import images
from worker.media.inline import decode_base64
from worker.media.url import check_url
from worker.tasks import registry
from worker.tasks.request import parse
from worlds.standin import SERVED

PLAIN: Final = settings.read({})
STRICT: Final = settings.read({"STRICT_INPUT": "1"})
OPEN: Final = settings.read({"ALLOW_HTTP_IMAGES": "1"})
FIELDS: Final = sorted(registry.map_words())
STRINGS: Final = (
    "edit",
    "text-to-image",
    "generate",
    "health",
    "png",
    "jpeg",
    "webp",
    "url",
    "base64",
    "data_url",
    "auto",
    "input",
    "1:1",
    "16:9",
    "512",
    "-1",
    "512x512",
    "64*64",
    "nan",
    "1e3",
    "true",
    "standin",
    "tests/standin",
    "match_input_image",
    "https://a.test/x.png",
    "http://127.0.0.1/",
    "file:///x",
    "/etc/passwd",
    "data:image/png;base64,",
    "a.png",
)
MAX_PIXELS: Final = 250_000


class _Reader:
    """Build JSON out of bytes, so that every byte that changes changes some value."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, count: int) -> bytes:
        taken = self._data[self._at : self._at + count]
        self._at += count
        return taken

    def byte(self) -> int:
        return (self.take(1) or b"\0")[0]

    def job_input(self) -> dict[str, Any]:
        given: dict[str, Any] = {"prompt": "a cat"} if self.byte() % 4 else {}
        while self._at < len(self._data):
            index = self.byte()
            name = FIELDS[index % len(FIELDS)] if index < 250 else self.text()
            given[name] = self.value(0)
        return given

    def text(self) -> str:
        return self.take(self.byte()).decode(
            "utf-8", "surrogatepass" if self.byte() % 2 else "replace"
        )

    def value(self, depth: int) -> Any:  # noqa: C901, PLR0911 - a case for each kind of value
        kind = self.byte() % (12 if depth < 5 else 9)
        match kind:
            case 0:
                return None
            case 1:
                return self.byte() % 2 == 0
            case 2:
                return self.byte() - 4
            case 3:
                return int.from_bytes(self.take(9), "big", signed=True)
            case 4:
                return struct.unpack(">d", self.take(8).rjust(8, b"\0"))[0]
            case 5:
                return STRINGS[self.byte() % len(STRINGS)]
            case 6:
                return str(int.from_bytes(self.take(3), "big"))
            case 7:
                try:
                    return self.text()
                except UnicodeDecodeError:
                    return "\udcff"
            case 8:
                return base64.b64encode(SEEDS[self.byte() % len(SEEDS)]).decode("ascii")
            case 9 | 10:
                return [self.value(depth + 1) for _ in range(self.byte() % 5)]
            case _:
                keys = ("url", "image", "data", "base64", "x")
                return {
                    keys[self.byte() % 5]: self.value(depth + 1) for _ in range(self.byte() % 3)
                }


def parsing(data: bytes) -> None:
    """Parse a job: a Request, or a fault of the caller that can be told."""
    try:
        given = _Reader(data).job_input()
    except UnicodeDecodeError:
        return
    try:
        parse(given, [SERVED], STRICT if data[:1] > b"\x7f" else PLAIN)
    except (InvalidInput, UnsupportedTask, ModelNotServed) as error:
        fault: WorkerError = error
    else:
        return
    told = format_answer(reply.make_failure(fault))
    if not told["details"] or reply.measure(told, 200_000) <= 0:
        raise AssertionError(told)


def decoding(data: bytes) -> None:
    """Decode a file: an RGB picture within the budget, or an error of ours."""
    try:
        picture = images.decode(data, max_pixels=MAX_PIXELS)
    except (ImageUnreadable, ImageTooLarge, InvalidInput):
        return
    if picture.mode != "RGB" or picture.width * picture.height > MAX_PIXELS or picture.info:
        raise AssertionError(picture)


def addressing(data: bytes) -> None:
    """Judge a URL and a base64 text."""
    text = data.decode("utf-8", "replace")
    for chosen in (PLAIN, OPEN):
        try:
            url = check_url(f"https://{text}" if chosen is PLAIN else text, chosen)
        except ImageFetchRefused:
            continue
        if url.user or url.password or not url.raw_host or url.port not in {80, 443}:
            raise AssertionError(url)
    try:
        decode_base64(text, 1000)
    except (InvalidInput, ImageTooLarge):
        return


def sound(data: bytes) -> bytes:
    """Return a PNG with its checksums made right again, so that mutations reach the decoder."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    fixed, at = bytearray(data), 8
    while at + 12 <= len(fixed):
        length = int.from_bytes(fixed[at : at + 4])
        end = at + 8 + length
        if end + 4 > len(fixed):
            break
        fixed[end : end + 4] = struct.pack(">I", zlib.crc32(fixed[at + 4 : end]))
        at = end + 4
    return bytes(fixed)


TARGETS: Final[Mapping[str, Callable[[bytes], None]]] = {
    "parsing": parsing,
    "decoding": decoding,
    "addressing": addressing,
}
EXAMPLES: Final[Mapping[str, list[bytes]]] = {
    "parsing": [bytes([1, *range(length)]) for length in (4, 30, 120, 250)],
    "decoding": SEEDS,
    "addressing": [b"a.test/x.png", b"127.0.0.1", b"https://[::1]:443/", b"data:;base64,AAAA"],
}
