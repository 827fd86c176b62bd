"""Picture files made by hand, chunk by chunk, as no library would write them."""

import io
import struct
import zlib
from typing import Any

from PIL import Image


def gradient(width: int = 64, height: int = 48, mode: str = "RGB") -> Image.Image:
    """Return a picture with four different corners."""
    red = Image.linear_gradient("L").resize((width, height))
    green = red.transpose(Image.Transpose.ROTATE_180)
    blue = Image.linear_gradient("L").rotate(90).resize((width, height))
    return Image.merge("RGB", (red, green, blue)).convert(mode)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    """Return the picture as a file written by Pillow."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    """Return one PNG chunk."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(
    width: int,
    height: int,
    *,
    bits: int = 8,
    colour: int = 2,
    raw: bytes | None = None,
    extra: bytes = b"",
) -> bytes:
    """Return a PNG of any claimed size; `raw` are its scan lines, after `extra` chunks."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    body = zlib.compress(raw if raw is not None else bytes(1000))
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            extra,
            chunk(b"IDAT", body),
            chunk(b"IEND", b""),
        )
    )


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    """Return a WEBP container around these chunks."""
    body = b"".join(
        name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)
        for name, data in chunks
    )
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def webp_canvas(width: int, height: int, flags: int = 0) -> tuple[bytes, bytes]:
    """Return the VP8X chunk that claims a canvas of this size."""
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"VP8X", bytes([flags, 0, 0, 0]) + size


def jpeg_claiming(data: bytes, width: int, height: int) -> bytes:
    """Return the JPEG with a different size in its frame header."""
    at = next(i for i in range(2, len(data)) if data[i] == 0xFF and data[i + 1] in {0xC0, 0xC2})
    return data[: at + 5] + struct.pack(">HH", height, width) + data[at + 9 :]


def exif(orientation: int) -> bytes:
    """Return EXIF data with an orientation and a place."""
    data = Image.Exif()
    data[0x0112] = orientation
    data[0x010E] = "taken at home"
    return data.tobytes()
