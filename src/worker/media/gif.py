"""A GIF's first picture, without the extensions before it."""

from typing import Final

from PIL import Image, ImageFile

from worker.media.header import Source
from worker.media.runs import STEP, compile_run, skip_run

EXTENSION, IMAGE, CONTROL = 0x21, 0x2C, 0xF9
CONTROL_LENGTH: Final = 4
TRAILER: Final = ord(";")
# Runs of blocks of a few bytes, and of extensions made of them: 20 MB hold 10 million, which take
# 1 s one by one and 0.2 s this way.
BLOCK: Final = rb"(?:\x01.|\x02..|\x03...|\x04.{4}|\x05.{5}|\x06.{6}|\x07.{7}|\x08.{8})"
TINY: Final = compile_run(BLOCK)
EXTENSIONS: Final = compile_run(rb"![^\xf9]" + BLOCK + rb"{0,100}\x00", STEP // 100)


def strip(data: bytes) -> Source:
    """Keep a GIF's header, its colour table, what makes a colour transparent, and its pictures.

    Comments and application blocks are left out (GIF89a, 22 to 26).
    """
    at = 13 + (3 << (data[10] & 7) + 1 if data[10:11] > b"\x7f" else 0)
    kept, control = data[:at], b""
    while True:
        at = skip_run(EXTENSIONS, data, at)
        if at + 1 >= len(data) or data[at] == TRAILER:
            return Source(pixels=kept)
        if data[at] == IMAGE:
            return Source(pixels=kept + control + data[at:])
        if data[at] == EXTENSION:
            block = data[at + 3 : at + 3 + int.from_bytes(data[at + 2 : at + 3])][:CONTROL_LENGTH]
            if data[at + 1] == CONTROL and len(block) == CONTROL_LENGTH and block[0] & 1:
                control = bytes((EXTENSION, CONTROL, CONTROL_LENGTH)) + block + b"\0"
            at = _skip_blocks(data, at + 2)
        else:
            at += 1


def fill_canvas(picture: ImageFile.ImageFile) -> Image.Image:
    """Return an opened GIF's first picture, with white where it leaves the canvas bare.

    Browsers show nothing there; Pillow shows the first colour, unless one is transparent.
    """
    box = picture.tile[0].extents
    if box in (None, (0, 0, *picture.size)) or "transparency" in picture.info:
        return picture
    canvas = Image.new("RGB", picture.size, "white")
    canvas.paste(picture.convert("RGB").crop(box), box)
    return canvas


def _skip_blocks(data: bytes, at: int) -> int:
    """Return where blocks that each begin with their length end, after the empty one."""
    while True:
        at = skip_run(TINY, data, at)
        if at >= len(data) or not data[at]:
            return at + 1
        at += data[at] + 1
