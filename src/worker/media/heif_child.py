"""The child process that decodes one AVIF or HEIC: `python -I heif_child.py MAX_PIXELS`.

It has little memory and time, no files but its three standard streams, and nothing of the worker's
environment. The picture's file comes on standard input. Standard output carries one line of JSON
{"size", "mode", "orientation", "profile", "numbers"}, the profile (of that many bytes) and the
pixels, row by row; only "size" when it is over MAX_PIXELS. The exit status is not 0 when the file
cannot be read.
"""

import io
import json
import re
import resource
import sys
from pathlib import Path
from typing import Final

import PIL.TiffImagePlugin  # noqa: F401 - reading EXIF imports it, and later no file can be opened
from pi_heif import options
from pi_heif.as_plugin import HeifImageFile
from PIL import AvifImagePlugin, Image

ORIENTATION: Final = 0x0112
# Address space: 24 million pixels take 310 MB beyond what the process starts with, at 8 bits
# without transparency; at 10 bits with transparency about twice that.
BYTES_PER_PIXEL: Final = 24
SPARE_BYTES: Final = 64_000_000
CPU_S: Final = 30
THREADS: Final = 2
ROWS: Final = 64
# Boxes (ISO 23008-12, 6.5.3 and ISO 14496-12): width and height of an item; colours of the first
# item: size, name, kind, primaries, transfer, matrix, range.
SIZE: Final = re.compile(rb"\0\0\0\x14ispe\0\0\0\0(.{4})(.{4})", re.DOTALL)
NCLX: Final = re.compile(rb"\0\0\0\x13colrnclx(..)(..)...", re.DOTALL)
MOST_PROFILE: Final = 4 * 1024 * 1024


def confine(max_pixels: int) -> None:
    """Have the kernel refuse this process more memory and time than a picture needs, and any file.

    Without new descriptors an attacker who has taken over the decoder can open no file, socket or
    program: the limits of OpenSSH's sandbox-rlimit.c. Everything must be imported beforehand.
    """
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        most = pages * resource.getpagesize() + BYTES_PER_PIXEL * max_pixels + SPARE_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    for none in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE):
        resource.setrlimit(none, (0, 0))


def open_picture(data: bytes) -> Image.Image:
    """Open a file as an AVIF, else as a HEIC, whose reader also opens what it cannot decode."""
    try:
        return AvifImagePlugin.AvifImageFile(io.BytesIO(data))
    except Exception:  # noqa: BLE001 - decoders raise anything on broken bytes
        picture: Image.Image = HeifImageFile(io.BytesIO(data))
        return picture


def read_numbers(data: bytes) -> list[int] | None:
    """Return the colours' primaries and transfer, as numbers of ITU-T H.273, if stated."""
    box = NCLX.search(data)
    return [int.from_bytes(number) for number in box.groups()] if box else None


def read_claimed_size(data: bytes) -> tuple[int, int]:
    """Return the largest size that a file's boxes claim, (0, 0) if there is none."""
    sizes = [(int.from_bytes(w), int.from_bytes(h)) for w, h in SIZE.findall(data)]
    return max(sizes, key=lambda size: size[0] * size[1], default=(0, 0))


def write_facts(size: tuple[int, int], **others: object) -> None:
    """Write the line of JSON."""
    sys.stdout.buffer.write(json.dumps({"size": size, **others}).encode() + b"\n")


def main(max_pixels: int) -> None:
    """Decode the picture on standard input."""
    data = sys.stdin.buffer.read()
    confine(max_pixels)
    AvifImagePlugin.DEFAULT_MAX_THREADS = options.DECODE_THREADS = THREADS
    options.THUMBNAILS = options.DEPTH_IMAGES = options.AUX_IMAGES = False
    try:
        picture = open_picture(data)
        width, height = picture.size
        if width * height <= max_pixels:
            picture.load()
    except Exception:
        width, height = read_claimed_size(data)
        if width * height <= max_pixels:
            raise
    if width * height > max_pixels:
        write_facts((width, height))
        return
    profile = picture.info.get("icc_profile") or b""
    profile = profile if len(profile) <= MOST_PROFILE else b""
    write_facts(
        picture.size,
        mode=picture.mode,
        orientation=picture.getexif().get(ORIENTATION, 1),
        profile=len(profile),
        numbers=read_numbers(data),
    )
    sys.stdout.buffer.write(profile)
    for top in range(0, height, ROWS):
        rows = picture.crop((0, top, width, min(top + ROWS, height)))
        sys.stdout.buffer.write(rows.tobytes())


if __name__ == "__main__":
    main(int(sys.argv[1]))
