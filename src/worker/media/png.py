"""A PNG's chunks: those that affect pixels, and the metadata that is used."""

import re
import zlib
from collections.abc import Iterator, Sequence
from typing import Final

from worker.media.header import PNG_SIGNATURE, Source
from worker.media.primaries import UNUSABLE, build_chunk_profile, build_numbered_profile
from worker.media.runs import compile_run, skip_run

# Real profiles have at most 3 MB; a bomb of 20 MB would unpack to 20 GB.
MOST_UNPACKED: Final = 4 * 1024 * 1024
NAME: Final = re.compile(rb"[0-9A-Za-z_]{4}")
# Runs of small chunks that mean nothing here: 20 MB hold over a million, which take 1 s one by one
# and 0.1 s this way.
TINY: Final = compile_run(
    rb"\0\0\0(?=.(?!cICP|iCCP|sRGB|cHRM|gAMA|tRNS|eXIf|fcTL|fdAT)[a-z][0-9A-Za-z_]{3})(?:\x00.{8}"
    rb"|\x01.{9}|\x02.{10}|\x03.{11}|\x04.{12}|\x05.{13}|\x06.{14}|\x07.{15}|\x08.{16})"
)
# The chunks of pixels, and how many bytes precede the pixels in them: fdAT is for animations.
PICTURES: Final = {b"IDAT": 0, b"fdAT": 4}
CRITICAL: Final = frozenset({b"IHDR", b"PLTE"})
COLOURS: Final = frozenset({b"cICP", b"iCCP", b"sRGB", b"cHRM", b"gAMA"})
KNOWN: Final = COLOURS | {b"tRNS", b"fcTL", b"eXIf", b"tEXt", b"zTXt", b"iTXt"}
FRAME_LENGTH: Final = 12 + 26
XMP: Final = b"XML:com.adobe.xmp"
# Where ImageMagick put EXIF data before PNG had a chunk for it.
HEX_EXIF: Final = b"Raw profile type exif"


def strip(data: bytes) -> Source:
    """Keep a PNG's critical chunks, a valid tRNS, and the frame (fcTL) of its first picture.

    A chunk that is not needed for the pixels counts only if its checksum is right, and is dropped
    otherwise, as libpng does. Texts are read only where they may hold the orientation.
    """
    view, parts, metadata = memoryview(data), _Parts(), _PngMetadata()
    for name, start, end in _iterate_chunks(data):
        if name in PICTURES:
            parts.add_pixels(name, view[start + PICTURES[name] : end])
        elif name in CRITICAL or name in KNOWN:
            chunk = data[start - 8 : end + 4]
            parts.add(name, chunk)
            if name in KNOWN and _is_valid(chunk):
                metadata.add(name, data[start:end])
    return Source(
        pixels=parts.join(),
        profile=metadata.build_profile(),
        exif=metadata.exif,
        xmp=metadata.xmp,
    )


class _Parts:
    """The chunks that affect pixels."""

    def __init__(self) -> None:
        self._head = [PNG_SIGNATURE]
        self._pixels: dict[bytes, list[memoryview]] = {name: [] for name in PICTURES}

    def add_pixels(self, name: bytes, content: memoryview) -> None:
        self._pixels[name].append(content)

    def add(self, name: bytes, chunk: bytes) -> None:
        if name == b"tRNS":
            if _is_valid(chunk) and len(chunk) - 12 >= _find_min_transparency(self._head):
                self._head.append(chunk)
        elif not any(self._pixels.values()) and (
            name in CRITICAL or (name == b"fcTL" and _is_frame(chunk, self._head))
        ):
            self._head.append(chunk)

    def join(self) -> bytes:
        """Return the file of these chunks, with an animation's frames if it has no other picture.

        A decoder stops after the first frame.
        """
        body = self._pixels[b"IDAT"] or self._pixels[b"fdAT"]
        end = _make_chunk(b"IDAT", b"".join(body)) + _make_chunk(b"IEND", b"")
        return b"".join((*self._head, end))


class _PngMetadata:
    """What a PNG's valid ancillary chunks hold besides the picture."""

    def __init__(self) -> None:
        self._colours: dict[bytes, bytes] = {}
        self.exif: bytes | None = None
        self.xmp: bytes | None = None

    def add(self, name: bytes, content: bytes) -> None:
        keyword, _, text = content.partition(b"\0")
        if name in COLOURS:
            self._colours[name] = content
        elif name == b"eXIf":
            self.exif = b"Exif\0\0" + content
        elif keyword == XMP and name == b"iTXt":
            self.xmp = _read_international(text)
        elif keyword == HEX_EXIF and self.exif is None:
            self.exif = _parse_hex(_inflate(text[1:]) if name == b"zTXt" else text)

    def build_profile(self) -> bytes | None:
        """Return the profile of the chunk that takes precedence (PNG, 4.3); None for sRGB."""
        chunks = self._colours
        numbers = chunks.get(b"cICP", b"")
        if len(numbers) == 4:  # noqa: PLR2004 - primaries, transfer, matrix, range
            return build_numbered_profile(numbers[0], numbers[1])
        if b"iCCP" in chunks:
            return _read_profile(chunks[b"iCCP"])
        if b"sRGB" in chunks:
            return None
        return build_chunk_profile(chunks.get(b"cHRM"), chunks.get(b"gAMA"))


def _inflate(packed: bytes) -> bytes | None:
    """Unpack zlib's format; None if it is broken or unpacks to over 4 MB."""
    stream = zlib.decompressobj()
    try:
        plain = stream.decompress(packed, MOST_UNPACKED)
    except zlib.error:
        return None
    return None if stream.unconsumed_tail else plain


def _iterate_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield each chunk's name, and where its content starts and ends; the last may be cut off."""
    at = len(PNG_SIGNATURE)
    while True:
        at = skip_run(TINY, data, at)
        name = data[at + 4 : at + 8]
        if not NAME.fullmatch(name) or name == b"IEND":
            return
        start = at + 8
        at = start + int.from_bytes(data[at : at + 4]) + 4
        yield name, start, at - 4


def _make_chunk(name: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(content, zlib.crc32(name))
    return len(content).to_bytes(4) + name + content + checksum.to_bytes(4)


def _is_valid(chunk: bytes) -> bool:
    """Return whether a chunk is complete and its checksum right."""
    named = chunk[4:-4]
    return len(named) == 4 + int.from_bytes(chunk[:4]) and zlib.crc32(named) == int.from_bytes(
        chunk[-4:]
    )


def _is_frame(chunk: bytes, head: Sequence[bytes]) -> bool:
    """Return whether an fcTL is the next one and its frame in the picture (PNG, 11.3.6.2)."""
    number, *box = (int.from_bytes(chunk[at : at + 4]) for at in range(8, 28, 4))
    sides = [int.from_bytes(head[1][at : at + 4]) for at in (8, 12)] if len(head) > 1 else [0, 0]
    inside = all(0 < box[i] <= sides[i] - box[i + 2] for i in (0, 1))
    due = sum(known[4:8] == b"fcTL" for known in head)
    return _is_valid(chunk) and len(chunk) >= FRAME_LENGTH and number == due and inside


def _find_min_transparency(head: Sequence[bytes]) -> int:
    """Return how many bytes a tRNS needs to hold one colour, by the IHDR."""
    colour = head[1][17:18] if len(head) > 1 else b""
    return {b"\0": 2, b"\2": 6}.get(colour, 0)


def _read_profile(content: bytes) -> bytes:
    """Return the profile in an iCCP: name, zero, compression method (0 is the only one), data."""
    _, _, packed = content.partition(b"\0")
    return (_inflate(packed[1:]) if packed[:1] == b"\0" else None) or UNUSABLE


def _read_international(text: bytes) -> bytes | None:
    """Return the text of an iTXt whose keyword has been read."""
    _, _, plain = text[2:].partition(b"\0")
    _, _, plain = plain.partition(b"\0")
    return _inflate(plain) if text[:1] == b"\1" else plain


def _parse_hex(text: bytes | None) -> bytes | None:
    """Return what ImageMagick wrote as three lines of header, then hexadecimal digits."""
    try:
        return bytes.fromhex("".join((text or b"").decode().split("\n")[3:])) or None
    except ValueError:
        return None
