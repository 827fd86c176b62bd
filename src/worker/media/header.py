"""What a picture says of itself in its first bytes: format and size, before any decoder sees it."""

from dataclasses import dataclass
from typing import Final, Literal

from worker.errors import ImageUnreadable

Format = Literal["png", "jpeg", "webp"]

PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
START_OF_FRAME: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
WITHOUT_LENGTH: Final = frozenset({0x01, *range(0xD0, 0xD8)})
START_OF_SCAN: Final = 0xDA
END_OF_IMAGE: Final = 0xD9
# An ordinary progressive file has about 10 scans. Each is a pass over the whole picture (40 ms for
# 49 million pixels) and may take 10 bytes: a file of 20 MB could keep a decoder busy for hours.
MAX_SCANS: Final = 32

UNREADABLE: Final = "a picture must be a whole PNG, JPEG or WEBP file"


@dataclass(frozen=True, slots=True)
class Header:
    """A picture's format, and its size in pixels as stored (before any EXIF orientation)."""

    format: Format
    width: int
    height: int


def read(data: bytes) -> Header:
    """Read the header of a PNG, JPEG or WEBP, by content alone; raises ImageUnreadable."""
    header: Header | None = None
    if data.startswith(PNG_SIGNATURE):
        header = _png(data)
    elif data.startswith(b"\xff\xd8\xff"):
        header = _jpeg(data)
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        header = _webp(data)
    if header is None or not header.width or not header.height:
        raise ImageUnreadable(UNREADABLE)
    return header


def _png(data: bytes) -> Header | None:
    if data[8:16] != b"\x00\x00\x00\rIHDR" or len(data) < 33:  # noqa: PLR2004 - signature and IHDR
        return None
    return Header("png", int.from_bytes(data[16:20]), int.from_bytes(data[20:24]))


def _jpeg(data: bytes) -> Header | None:
    if data.count(b"\xff\xda") > MAX_SCANS:
        raise ImageUnreadable(f"a JPEG must have at most {MAX_SCANS} scans")
    at = 2
    while at + 9 <= len(data):
        if data[at] != 0xFF:  # noqa: PLR2004 - every marker begins with it
            return None
        marker = data[at + 1]
        if marker == 0xFF:  # noqa: PLR2004 - fill bytes
            at += 1
        elif marker in WITHOUT_LENGTH:
            at += 2
        elif marker in START_OF_FRAME:
            height, width = data[at + 5 : at + 7], data[at + 7 : at + 9]
            return Header("jpeg", int.from_bytes(width), int.from_bytes(height))
        elif marker in {START_OF_SCAN, END_OF_IMAGE}:
            return None
        else:
            at += 2 + max(2, int.from_bytes(data[at + 2 : at + 4]))
    return None


def _webp(data: bytes) -> Header | None:
    if len(data) < 30:  # noqa: PLR2004 - RIFF header, chunk header, the longest of the three heads
        return None
    chunk = data[12:16]
    if chunk == b"VP8X":  # canvas: 24 bits each, minus one
        width, height = data[24:27], data[27:30]
        return Header(
            "webp", 1 + int.from_bytes(width, "little"), 1 + int.from_bytes(height, "little")
        )
    if chunk == b"VP8L" and data[20] == 0x2F:  # noqa: PLR2004 - signature; 14 bits each, minus one
        bits = int.from_bytes(data[21:25], "little")
        return Header("webp", 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF))
    if chunk == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = data[26:28], data[28:30]
        return Header(
            "webp",
            int.from_bytes(width, "little") & 0x3FFF,
            int.from_bytes(height, "little") & 0x3FFF,
        )
    return None
