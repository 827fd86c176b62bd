"""A JPEG's segments, read as libjpeg reads them: what its decoder gets, and how many scans."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Final

from worker.errors import ImageUnreadable
from worker.media.header import Source
from worker.media.primaries import UNKNOWN

# An ordinary progressive file has about 10 scans. Each is a pass over the whole picture (40 ms for
# 49 million pixels) and may take 10 bytes: a file of 20 MB could keep a decoder busy for hours.
MAX_SCANS: Final = 32

END_OF_IMAGE: Final = 0xD9
START_OF_SCAN: Final = 0xDA
START_OF_FRAME: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
PROGRESSIVE: Final = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
COEFFICIENTS: Final = 64  # of a block, for each component
COMMENT: Final = 0xFE
APP0, APP1, APP2, APP14, APP15 = 0xE0, 0xE1, 0xE2, 0xEE, 0xEF
# Shorter ones are not what they say, to libjpeg (examine_app0 and examine_app14 of jdmarker.c).
JFIF_LENGTH, ADOBE_LENGTH = 14, 12
ICC: Final = b"ICC_PROFILE\0"
EXIF: Final = b"Exif\0\0"
XMP: Final = b"http://ns.adobe.com/xap/1.0/\0"

# The next marker: neither a stuffed FF 00 nor a fill byte, nor one that stands alone inside a scan.
# libjpeg skips all bytes before it, in the header too (next_marker of jdmarker.c).
MARKER: Final = re.compile(rb"\xff[^\x00\x01\xff\xd0-\xd8]")
# Comments and the like of a few bytes in a row: 20 MB of them are 5 million, 3 s one by one and
# 0.1 s so.
TINY: Final = re.compile(
    rb"(?:\xff[\xe0-\xef\xfe]\x00(?:[\x00-\x02]|\x03.|\x04..|\x05.{3}|\x06.{4}|\x07.{5}|\x08.{6}))*+",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Jpeg(Source):
    """A JPEG as its decoder gets it: up to its end, with only the segments that decide pixels.

    `ended` tells that it has its end mark; `complete` that its scans
    have told every coefficient to the last bit. `buffered`
    tells that the decoder must hold the coefficients of the whole picture, 2 bytes each.
    """

    ended: bool
    complete: bool
    buffered: bool


def strip(data: bytes) -> Jpeg:
    """Keep what decides a JPEG's pixels; raises ImageUnreadable when it has over 32 scans.

    What follows the end of the first picture (a clip, a gain map) is left out, and what a segment
    holds is not searched: thumbnails count no scans.
    """
    kept, beside = [b"\xff\xd8"], _Beside()
    scans, begin, end = 0, None, None
    components, drawn, buffered = 0, set[tuple[int, int]](), False
    for marker, start, after in _segments(data):
        if marker == END_OF_IMAGE:
            if begin is not None:
                end = after
                break
            # tables may come as a file of their own before the picture's (T.81, B.5)
        elif marker == START_OF_SCAN:
            scans += 1
            if scans > MAX_SCANS:
                raise ImageUnreadable(f"a JPEG must have at most {MAX_SCANS} scans")
            scanned = data[start + 5 : after - 3 : 2]
            drawn.update(_drawn(scanned, data[after - 3 : after]))
            if begin is None:
                begin = start
                buffered |= len(scanned) < components
        elif begin is None:
            held = data[start + 4 : after]
            beside.take(marker, held)
            if marker in START_OF_FRAME:
                components, buffered = int.from_bytes(held[5:6]), marker in PROGRESSIVE
            if _decides_pixels(marker, held):
                kept.append(data[start:after])
    return Jpeg(
        pixels=b"".join((*kept, b"" if begin is None else data[begin:end])),
        profile=_joined(beside.profile),
        exif=EXIF + b"".join(beside.exif) if beside.exif else None,
        xmp=beside.xmp,
        ended=end is not None,
        complete=len(drawn) >= components * COEFFICIENTS,
        buffered=buffered,
    )


class _Beside:
    """What the segments before the first scan hold besides the picture."""

    def __init__(self) -> None:
        self.profile: list[bytes] = []
        self.exif: list[bytes] = []
        self.xmp: bytes | None = None

    def take(self, marker: int, held: bytes) -> None:
        if marker == APP1 and held.startswith(EXIF):
            self.exif.append(held[len(EXIF) :])
        elif marker == APP1 and held.startswith(XMP):
            self.xmp = held[len(XMP) :]
        elif marker == APP2 and held.startswith(ICC):
            self.profile.append(held[len(ICC) :])


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield each segment's marker, its first byte and the first one behind it."""
    at = 2
    while found := MARKER.search(data, at):
        start, behind = found.span()
        marker = data[behind - 1]
        length = max(2, int.from_bytes(data[behind : behind + 2]))
        after = behind if marker == END_OF_IMAGE else behind + length
        yield marker, start, after
        at = TINY.match(data, after).end()  # type: ignore[union-attr] # it may match nothing


def _drawn(components: bytes, told: bytes) -> Iterable[tuple[int, int]]:
    """Return which coefficients of which components a scan tells to the last bit.

    `told` are the last bytes of its head: the first and last coefficient, and 4 bits each of how
    many are known before and missing after it (T.81, B.2.3).
    """
    if len(told) < 3 or told[2] & 0xF:  # noqa: PLR2004 - the three
        return ()
    return product(components, range(told[0], min(told[1] + 1, COEFFICIENTS)))


def _decides_pixels(marker: int, held: bytes) -> bool:
    """Tell whether libjpeg reads a segment: of all applications' those that name the colours."""
    if marker == APP0:
        return len(held) >= JFIF_LENGTH and held.startswith(b"JFIF\0")
    if marker == APP14:
        return len(held) >= ADOBE_LENGTH and held.startswith(b"Adobe")
    return marker != COMMENT and not APP0 <= marker <= APP15


def _joined(parts: list[bytes]) -> bytes | None:
    """Return the profile of numbered parts (ICC.1, annex B.4); None without any."""
    if not parts:
        return None
    parts.sort()
    if parts[0][1:2] != bytes((len(parts) & 0xFF,)):
        return UNKNOWN
    return b"".join(part[2:] for part in parts)
