"""A PNG's chunks: those that decide pixels, and what is known beside them."""

import re
import zlib
from collections.abc import Iterator, Sequence
from typing import Final

from worker.media.header import PNG_SIGNATURE, Source
from worker.media.primaries import UNKNOWN, by_chunks, by_number

# Known profiles have at most 3 MB; a bomb of 20 MB would unpack to 20 GB.
MOST_UNPACKED: Final = 4 * 1024 * 1024
NAME: Final = re.compile(rb"[0-9A-Za-z_]{4}")
# Texts of a few bytes in a row: 20 MB of them are over a million, 0.6 s one by one and 0.1 s so.
TINY: Final = re.compile(
    rb"(?:\0\0\0(?:\x00[itz][A-Z]Xt.{4}|\x01[itz][A-Z]Xt.{5}|\x02[itz][A-Z]Xt.{6}"
    rb"|\x03[itz][A-Z]Xt.{7}|\x04[itz][A-Z]Xt.{8}|\x05[itz][A-Z]Xt.{9}|\x06[itz][A-Z]Xt.{10}))*+",
    re.DOTALL,
)
CRITICAL: Final = frozenset({b"IHDR", b"PLTE"})
COLOURS: Final = frozenset({b"cICP", b"iCCP", b"sRGB", b"cHRM", b"gAMA"})
KNOWN: Final = COLOURS | {b"tRNS", b"eXIf", b"tEXt", b"zTXt", b"iTXt"}
XMP: Final = b"XML:com.adobe.xmp"
# Where ImageMagick put the EXIF data before PNG had a chunk for it.
HEX_EXIF: Final = b"Raw profile type exif"


def strip(data: bytes) -> Source:
    """Keep a PNG's critical chunks and a sound tRNS; an animation becomes its default picture.

    A chunk that is not needed for the pixels counts only with a right checksum, and is dropped
    otherwise, as libpng does. Texts are read only where they may hold the orientation.
    """
    head: list[bytes | memoryview] = [PNG_SIGNATURE]
    body: list[bytes | memoryview] = []
    checksum, length = zlib.crc32(b"IDAT"), 0
    beside = _Beside()
    for name, held, whole in _chunks(data):
        if name == b"IDAT":
            body.append(held)
            checksum, length = zlib.crc32(held, checksum), length + len(held)
        elif name in CRITICAL:
            if not body:
                head.append(whole)
        elif name in KNOWN and _is_sound(whole):
            if name == b"tRNS" and len(held) >= _least(head):
                head.append(whole)
            beside.take(name, bytes(held))
    if not body:
        return Source(pixels=data)
    head += [length.to_bytes(4), b"IDAT", *body, checksum.to_bytes(4)]
    head += [bytes(4), b"IEND", zlib.crc32(b"IEND").to_bytes(4)]
    return Source(pixels=b"".join(head), profile=beside.colours(), exif=beside.exif, xmp=beside.xmp)


class _Beside:
    """What a PNG's sound ancillary chunks hold besides the picture."""

    def __init__(self) -> None:
        self._colours: dict[bytes, bytes] = {}
        self.exif: bytes | None = None
        self.xmp: bytes | None = None

    def take(self, name: bytes, held: bytes) -> None:
        keyword, _, text = held.partition(b"\0")
        if name in COLOURS:
            self._colours[name] = held
        elif name == b"eXIf":
            self.exif = b"Exif\0\0" + held
        elif keyword == XMP and name == b"iTXt":
            self.xmp = _international(text)
        elif keyword == HEX_EXIF and self.exif is None:
            self.exif = _from_hex(unpacked(text[1:]) if name == b"zTXt" else text)

    def colours(self) -> bytes | None:
        """Return the profile of the chunk that counts most (PNG, 4.3); None for sRGB."""
        told = self._colours
        numbers = told.get(b"cICP", b"")
        if len(numbers) == 4:  # noqa: PLR2004 - primaries, transfer, matrix, range
            return by_number(numbers[0], numbers[1])
        if b"iCCP" in told:
            return _profile(told[b"iCCP"])
        return None if b"sRGB" in told else by_chunks(told.get(b"cHRM"), told.get(b"gAMA"))


def unpacked(packed: bytes) -> bytes | None:
    """Unpack zlib's format; None when it is broken or would have over 4 MB."""
    stream = zlib.decompressobj()
    try:
        plain = stream.decompress(packed, MOST_UNPACKED)
    except zlib.error:
        return None
    return None if stream.unconsumed_tail else plain


def _chunks(data: bytes) -> Iterator[tuple[bytes, memoryview, memoryview]]:
    """Yield each chunk's name, what it holds, and all of it; the last may be cut short."""
    view, at = memoryview(data), len(PNG_SIGNATURE)
    while True:
        at = TINY.match(data, at).end()  # type: ignore[union-attr] # it may match nothing
        name = data[at + 4 : at + 8]
        if not NAME.fullmatch(name) or name == b"IEND":
            return
        end = at + 8 + int.from_bytes(data[at : at + 4])
        yield name, view[at + 8 : end], view[at : end + 4]
        at = end + 4


def _is_sound(chunk: memoryview) -> bool:
    """Tell whether a chunk is whole and its checksum right."""
    length = int.from_bytes(chunk[:4])
    return len(chunk) == length + 12 and zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:])


def _least(head: Sequence[bytes | memoryview]) -> int:
    """Return how many bytes a tRNS must have for this IHDR, to hold one colour."""
    colour = bytes(head[1][17:18]) if len(head) > 1 else b""
    return {b"\0": 2, b"\2": 6}.get(colour, 0)


def _profile(held: bytes) -> bytes:
    """Return the profile of an iCCP: a name, a zero, the one method of packing, the packed."""
    _, _, packed = held.partition(b"\0")
    return (unpacked(packed[1:]) if packed[:1] == b"\0" else None) or UNKNOWN


def _international(text: bytes) -> bytes | None:
    """Return the text of an iTXt, whose keyword has been read."""
    _, _, plain = text[2:].partition(b"\0")
    _, _, plain = plain.partition(b"\0")
    return unpacked(plain) if text[:1] == b"\1" else plain


def _from_hex(text: bytes | None) -> bytes | None:
    """Return what ImageMagick wrote as three lines of header and hexadecimal digits."""
    try:
        return bytes.fromhex("".join((text or b"").decode("ascii").split("\n")[3:])) or None
    except ValueError:
        return None
