"""A JPEG's segments, read as libjpeg reads them: what the decoder gets, and how many scans."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Final

from worker.errors import ImageUnreadable
from worker.media.header import Source
from worker.media.primaries import UNUSABLE
from worker.media.runs import compile_run, skip_run

# An ordinary progressive file has about 10 scans. Each is a pass over the whole picture (40 ms for
# 49 million pixels) and may take 10 bytes: a file of 20 MB could keep a decoder busy for hours.
MAX_SCANS: Final = 32

END_OF_IMAGE: Final = 0xD9
START_OF_SCAN: Final = 0xDA
START_OF_FRAME: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
PROGRESSIVE: Final = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
COEFFICIENTS: Final = 64  # per block and component
COMMENT: Final = 0xFE
APP0, APP1, APP2, APP14, APP15 = 0xE0, 0xE1, 0xE2, 0xEE, 0xEF
# libjpeg ignores the names of shorter ones (examine_app0 and examine_app14 of jdmarker.c).
JFIF_LENGTH, ADOBE_LENGTH = 14, 12
ICC: Final = b"ICC_PROFILE\0"
EXIF: Final = b"Exif\0\0"
XMP: Final = b"http://ns.adobe.com/xap/1.0/\0"

# The next marker: not a stuffed FF 00, a fill byte, or a marker that stands alone inside a scan.
# libjpeg skips all bytes before it, in the header too (next_marker of jdmarker.c).
MARKER: Final = re.compile(rb"\xff[^\x00\x01\xff\xd0-\xd8]")
# Runs of comments and the like of a few bytes: 20 MB hold 5 million, which take 3 s one by one and
# 0.1 s this way.
TINY: Final = compile_run(
    rb"\xff[\xe0-\xef\xfe]\x00(?:[\x00-\x02]|\x03.|\x04..|\x05.{3}|\x06.{4}|\x07.{5}|\x08.{6})"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Jpeg(Source):
    """A JPEG as its decoder gets it: up to its end, with only the segments that affect pixels.

    `ended` means that it has its end mark, `complete` that its scans give every coefficient to the
    last bit, `buffered` that the decoder must keep all the picture's coefficients in memory,
    2 bytes each.
    """

    ended: bool
    complete: bool
    buffered: bool


def strip(data: bytes) -> Jpeg:
    """Keep what affects a JPEG's pixels; raises ImageUnreadable when it has over 32 scans.

    What follows the end of the first picture (a clip, a gain map) is left out, and the content of
    segments is not searched: the scans of thumbnails do not count.
    """
    kept, metadata = [b"\xff\xd8"], _JpegMetadata()
    scans, begin, end = 0, None, None
    components, known, buffered = 0, set[tuple[int, int]](), False
    for marker, start, after in _iterate_segments(data):
        if marker == END_OF_IMAGE:
            if begin is not None:
                end = after
                break
            # tables may come as a separate file before the picture's (T.81, B.5)
        elif marker == START_OF_SCAN:
            scans += 1
            if scans > MAX_SCANS:
                raise ImageUnreadable(f"a JPEG must have at most {MAX_SCANS} scans")
            scanned = data[start + 5 : after - 3 : 2]
            known.update(_list_completed(scanned, data[after - 3 : after]))
            if begin is None:
                begin = start
                buffered |= len(scanned) < components
        elif begin is None:
            content = data[start + 4 : after]
            metadata.add(marker, content)
            if marker in START_OF_FRAME:
                components, buffered = int.from_bytes(content[5:6]), marker in PROGRESSIVE
            if _is_needed(marker, content):
                kept.append(data[start:after])
    return Jpeg(
        pixels=b"".join((*kept, b"" if begin is None else data[begin:end])),
        profile=_join_profile(metadata.profile),
        exif=EXIF + b"".join(metadata.exif),
        xmp=metadata.xmp,
        ended=end is not None,
        complete=len(known) >= components * COEFFICIENTS,
        buffered=buffered,
    )


class _JpegMetadata:
    """What the segments before the first scan hold besides the picture."""

    def __init__(self) -> None:
        self.profile: list[bytes] = []
        self.exif: list[bytes] = []
        self.xmp: bytes | None = None

    def add(self, marker: int, content: bytes) -> None:
        if marker == APP1 and content.startswith(EXIF):
            self.exif.append(content[len(EXIF) :])
        elif marker == APP1 and content.startswith(XMP):
            self.xmp = content[len(XMP) :]
        elif marker == APP2 and content.startswith(ICC):
            self.profile.append(content[len(ICC) :])


def _iterate_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield each segment's marker, where it starts, and where what follows it starts."""
    at = 2
    while match := MARKER.search(data, at):
        start, body = match.span()
        marker = data[body - 1]
        length = max(2, int.from_bytes(data[body : body + 2]))
        after = body if marker == END_OF_IMAGE else body + length
        yield marker, start, after
        at = skip_run(TINY, data, after)


def _list_completed(components: bytes, parameters: bytes) -> Iterable[tuple[int, int]]:
    """Return the coefficients, as (component, number), that a scan gives to the last bit.

    `parameters` are the last bytes of its header: the first and last coefficient, then in 4 bits
    each how many low bits were missing before this scan and are missing after it (T.81, B.2.3).
    """
    if len(parameters) < 3 or parameters[2] & 0xF:  # noqa: PLR2004 - the three
        return ()
    return product(components, range(parameters[0], min(parameters[1] + 1, COEFFICIENTS)))


def _is_needed(marker: int, content: bytes) -> bool:
    """Return whether libjpeg reads a segment: of the application ones, those that name colours."""
    if marker == APP0:
        return len(content) >= JFIF_LENGTH and content.startswith(b"JFIF\0")
    if marker == APP14:
        return len(content) >= ADOBE_LENGTH and content.startswith(b"Adobe")
    return marker != COMMENT and not APP0 <= marker <= APP15


def _join_profile(parts: list[bytes]) -> bytes | None:
    """Return the profile in numbered parts (ICC.1, annex B.4); None if there are none."""
    if not parts:
        return None
    parts.sort()
    if parts[0][1:2] != bytes((len(parts) & 0xFF,)):
        return UNUSABLE
    return b"".join(part[2:] for part in parts)
