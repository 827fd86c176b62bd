"""How a picture was made, inside a JPEG or WEBP: a TIFF of two texts, as EXIF 2.32 has it.

Pillow writes a comment as bytes, where EXIF, and those who read it, have "undefined".
"""

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Final

LEAD: Final = b"Exif\0\0"
# Its segment in a JPEG has at most 65,535 bytes, its own length among them.
MOST_BYTES: Final = 65_533
HEADER: Final = struct.pack(">2sHI", b"MM", 42, 8)

# Types of values.
TEXT, LONG, UNDEFINED = 2, 4, 7
# Tags.
DESCRIPTION, EXIF_IFD, VERSION, COMMENT = 0x010E, 0x8769, 0x9000, 0x9286

TiffEntry = tuple[int, int, bytes]


def write_exif(record: Mapping[str, str], comment: str) -> bytes:
    """Return both, each exactly: the record as JSON in the description, the text as the comment.

    A comment that does not fit is left out, and so is a record that does not fit without it.
    """
    described = json.dumps(dict(record), ensure_ascii=False, separators=(",", ":"))
    for text in (comment, ""):
        data = _write(described.encode(), text)
        if len(data) <= MOST_BYTES:
            return data
    return b""


def _write(described: bytes, comment: str) -> bytes:
    inner: list[TiffEntry] = [(VERSION, UNDEFINED, b"0232")]
    if comment:
        inner.append((COMMENT, UNDEFINED, b"UNICODE\0" + comment.encode("utf-16-be")))
    about = (DESCRIPTION, TEXT, described + b"\0")
    size = len(_write_entries([about, (EXIF_IFD, LONG, bytes(4))], len(HEADER)))
    place = len(HEADER) + size
    outer = _write_entries([about, (EXIF_IFD, LONG, struct.pack(">I", place))], len(HEADER))
    return LEAD + HEADER + outer + _write_entries(inner, place)


def _write_entries(entries: Sequence[TiffEntry], place: int) -> bytes:
    """Return a directory that stands `place` bytes after the header's start, and its values."""
    table, values = struct.pack(">H", len(entries)), b""
    after = place + 2 + 12 * len(entries) + 4
    for tag, kind, value in entries:
        count = len(value) // 4 if kind == LONG else len(value)
        table += struct.pack(">HHI", tag, kind, count)
        if len(value) <= 4:  # noqa: PLR2004 - TIFF's own: such a value stands in its entry
            table += value.ljust(4, b"\0")
        else:
            table += struct.pack(">I", after + len(values))
            values += value + b"\0" * (len(value) % 2)
    return table + bytes(4) + values
