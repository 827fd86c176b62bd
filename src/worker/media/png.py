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
# Small chunks that mean nothing here, in a row: 20 MB of them are over a million, 1 s one by one
# and 0.1 s so.
TINY: Final = re.compile(
    rb"(?:\0\0\0(?=.(?!cICP|iCCP|sRGB|cHRM|gAMA|tRNS|eXIf|fcTL|fdAT)[a-z])(?:\x00.{8}|\x01.{9}|\x02.{10}"
    rb"|\x03.{11}|\x04.{12}|\x05.{13}|\x06.{14}|\x07.{15}|\x08.{16}))*+",
    re.DOTALL,
)
# What holds pixels, and how many bytes are before them: fdAT is an animation's.
PICTURES: Final = {b"IDAT": 0, b"fdAT": 4}
CRITICAL: Final = frozenset({b"IHDR", b"PLTE"})
COLOURS: Final = frozenset({b"cICP", b"iCCP", b"sRGB", b"cHRM", b"gAMA"})
KNOWN: Final = COLOURS | {b"tRNS", b"fcTL", b"eXIf", b"tEXt", b"zTXt", b"iTXt"}
FRAME_LENGTH: Final = 12 + 26
XMP: Final = b"XML:com.adobe.xmp"
# Where ImageMagick put the EXIF data before PNG had a chunk for it.
HEX_EXIF: Final = b"Raw profile type exif"


def strip(data: bytes) -> Source:
    """Keep a PNG's critical chunks, a sound tRNS, and the frame (fcTL) of its first picture.

    A chunk that is not needed for the pixels counts only with a right checksum, and is dropped
    otherwise, as libpng does. Texts are read only where they may hold the orientation.
    """
    view, parts, beside = memoryview(data), _Parts(), _Beside()
    for name, start, end in _chunks(data):
        if name in PICTURES:
            parts.draw(name, view[start + PICTURES[name] : end])
        elif name in CRITICAL or name in KNOWN:
            chunk = data[start - 8 : end + 4]
            parts.take(name, chunk)
            if name in KNOWN and _is_sound(chunk):
                beside.take(name, data[start:end])
    return Source(pixels=parts.joined(), profile=beside.colours(), exif=beside.exif, xmp=beside.xmp)


class _Parts:
    """The chunks that decide pixels."""

    def __init__(self) -> None:
        self._head = [PNG_SIGNATURE]
        self._drawn: dict[bytes, list[memoryview]] = {name: [] for name in PICTURES}

    def draw(self, name: bytes, held: memoryview) -> None:
        """Take pixels."""
        self._drawn[name].append(held)

    def take(self, name: bytes, chunk: bytes) -> None:
        if name == b"tRNS":
            if _is_sound(chunk) and len(chunk) - 12 >= _least(self._head):
                self._head.append(chunk)
        elif any(self._drawn.values()):
            return
        elif name in CRITICAL or (name == b"fcTL" and _is_frame(chunk, self._head)):
            self._head.append(chunk)

    def joined(self) -> bytes:
        """Return the file of these chunks; an animation's frames where there is no other picture.

        A decoder ends with the first frame.
        """
        body = self._drawn[b"IDAT"] or self._drawn[b"fdAT"]
        end = [_chunk(b"IDAT", b"".join(body)), _chunk(b"IEND", b"")] if body else []
        return b"".join((*self._head, *end))


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


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield each chunk's name, and where what it holds begins and ends; the last may be cut."""
    at = len(PNG_SIGNATURE)
    while True:
        at = TINY.match(data, at).end()  # type: ignore[union-attr] # it may match nothing
        name = data[at + 4 : at + 8]
        if not NAME.fullmatch(name) or name == b"IEND":
            return
        start = at + 8
        at = start + int.from_bytes(data[at : at + 4]) + 4
        yield name, start, at - 4


def _chunk(name: bytes, held: bytes) -> bytes:
    return len(held).to_bytes(4) + name + held + zlib.crc32(held, zlib.crc32(name)).to_bytes(4)


def _is_sound(chunk: bytes) -> bool:
    """Tell whether a chunk is whole and its checksum right."""
    named = chunk[4:-4]
    return len(named) == 4 + int.from_bytes(chunk[:4]) and zlib.crc32(named) == int.from_bytes(
        chunk[-4:]
    )


def _is_frame(chunk: bytes, head: Sequence[bytes]) -> bool:
    """Tell whether an fcTL is the next one and its frame inside the picture (PNG, 11.3.6.2)."""
    number, *box = (int.from_bytes(chunk[at : at + 4]) for at in range(8, 28, 4))
    sides = [int.from_bytes(head[1][at : at + 4]) for at in (8, 12)] if len(head) > 1 else [0, 0]
    inside = all(0 < box[i] <= sides[i] - box[i + 2] for i in (0, 1))
    due = sum(known[4:8] == b"fcTL" for known in head)
    return _is_sound(chunk) and len(chunk) >= FRAME_LENGTH and number == due and inside


def _least(head: Sequence[bytes]) -> int:
    """Return how many bytes a tRNS must have for this IHDR, to hold one colour."""
    colour = head[1][17:18] if len(head) > 1 else b""
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
