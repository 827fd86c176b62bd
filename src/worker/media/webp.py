"""A WEBP's chunks: its canvas, its first picture, and the metadata that is used."""

from typing import Final

from worker.media.header import Source
from worker.media.runs import compile_run, skip_run

# Flags in VP8X's first byte for the metadata chunks; without its flag a chunk does not count.
METADATA: Final = {b"ICCP": 0x20, b"EXIF": 0x08, b"XMP ": 0x04}
# Runs of small chunks that mean nothing here: 20 MB hold 2.5 million.
TINY: Final = compile_run(
    rb"(?!ICCP|EXIF|XMP |VP8|ANIM|ANMF|ALPH).{4}"
    rb"(?:\x00\0\0\0|[\x01\x02]\0\0\0..|[\x03\x04]\0\0\0.{4}|[\x05\x06]\0\0\0.{6})"
)
STILL: Final = frozenset({b"VP8 ", b"VP8L"})


def read_canvas(data: bytes) -> tuple[int, int] | None:
    """Return (width, height) in pixels as given by the first chunk; None if it gives none.

    The decoder allocates memory for it as soon as it sees the file
    (developers.google.com/speed/webp, container specification, and RFC 6386, 9.1).
    """
    name, body = data[12:16], data[20:30]
    if name == b"VP8X" and len(body) == 10:  # noqa: PLR2004 - flags, then 24 bits each, minus one
        return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:], "little")
    if name == b"VP8L" and body[:1] == b"\x2f" and len(body) >= 5:  # noqa: PLR2004 - 14 bits each, minus one
        bits = int.from_bytes(body[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if name == b"VP8 " and body[3:6] == b"\x9d\x01\x2a" and len(body) == 10:  # noqa: PLR2004 - 14 bits each
        width, height = int.from_bytes(body[6:8], "little"), int.from_bytes(body[8:], "little")
        return width & 0x3FFF, height & 0x3FFF
    return None


def strip(data: bytes) -> Source:
    """Keep a WEBP's canvas and its first picture, whatever follows it.

    A file without a picture stays as it is, for the decoder to refuse.
    """
    kept, metadata = list[bytes](), dict[bytes, bytes]()
    has_picture, flags, at = False, 0, 12
    while True:
        at = skip_run(TINY, data, at)
        if at + 8 > len(data):
            break
        name, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        content = data[at + 8 : at + 8 + size]
        if name in METADATA:
            metadata.setdefault(name, content)
        elif not has_picture and name in {b"VP8X", b"ANIM", b"ANMF", b"ALPH", *STILL}:
            if name == b"VP8X":
                flags = int.from_bytes(content[:1])
                content = bytes((flags & ~sum(METADATA.values()),)) + content[1:]
            kept.append(name + size.to_bytes(4, "little") + content + b"\0" * (size & 1))
            has_picture = name in STILL or name == b"ANMF"
        at += 8 + size + (size & 1)
    flagged = {name: content for name, content in metadata.items() if flags & METADATA[name]}
    body = b"WEBP" + b"".join(kept)
    return Source(
        pixels=b"RIFF" + len(body).to_bytes(4, "little") + body if has_picture else data,
        profile=flagged.get(b"ICCP"),
        exif=flagged.get(b"EXIF"),
        xmp=flagged.get(b"XMP "),
    )
