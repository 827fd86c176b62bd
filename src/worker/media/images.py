"""Bytes <-> RGB picture, within a pixel budget; formats are recognised by content alone."""

import contextlib
import io
import threading
import warnings
import zlib
from collections.abc import Callable, Mapping
from typing import Final

from PIL import Image, PngImagePlugin

from worker.errors import ImageUnreadable, WorkerError
from worker.media import colour, gif, header, heif, jpeg, masks, png, webp
from worker.media.exif import write_exif
from worker.media.header import UNREADABLE, Format, Kind, Source
from worker.media.jpeg_pixels import Reader
from worker.media.limits import MAX_PIXELS, check_size
from worker.media.orientation import read_orientation, turn_upright
from worker.media.parameters import write_parameters

# Pictures of more pixels are decoded one after another: a file of 40 bytes can take 200 MB.
LARGE: Final = 4_000_000
STRIP: Final[Mapping[Kind, Callable[[bytes], Source]]] = {
    "png": png.strip,
    "jpeg": jpeg.strip,
    "webp": webp.strip,
    "gif": gif.strip,
}
# A picture as stored, its colour profile and a place for warnings -> the picture in another form.
Convert = Callable[[Image.Image, bytes | None, Callable[[str], None]], Image.Image]
MIME_TYPES: Final[Mapping[Format, str]] = {
    "png": "image/png",
    "jpeg": "image/jpeg",
    "webp": "image/webp",
}
FULL_CHROMA_QUALITY: Final = 90  # below it JPEG halves the colour planes, as is customary

# Only one large picture is decoded at a time; reentrant, as some sizes are checked in two steps.
_one_at_a_time = threading.RLock()

# Sizes are checked here, before a decoder takes memory for them.
Image.MAX_IMAGE_PIXELS = None
# Pillow warns of broken EXIF and the like; a caller's file is not worth a log line.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


def _ignore(_: str) -> None:
    """Ignore a warning."""


def decode(
    data: bytes, max_pixels: int = MAX_PIXELS, warn: Callable[[str], None] = _ignore
) -> Image.Image:
    """Decode a PNG, JPEG, WEBP, GIF, AVIF or HEIC into an upright RGB picture without metadata.

    Colours become sRGB with 8 bits per channel, transparency is laid over white, EXIF orientation
    is applied, and only the first frame of an animation is read. Sizes are in pixels as stored. A
    JPEG over `max_pixels`, up to 200 million, is read at 1/2, 1/4 or 1/8 of its size. `warn` gets
    what the caller should know about the picture, one sentence per call.

    The picture takes 4 bytes per pixel, decoding up to 12 (600 MB more for a JPEG over the limit);
    a WEBP, which may be an animation, takes 16, so it may have only half of `max_pixels`. Call it
    off the event loop: Pillow's decoders release the GIL.

    Raises ImageUnreadable, ImageTooLarge, or InvalidInput (a side under 16 pixels, or one 32 times
    the other).
    """
    return _decode_as(colour.to_rgb, data, max_pixels, warn)


def decode_mask(
    data: bytes, max_pixels: int = MAX_PIXELS, warn: Callable[[str], None] = _ignore
) -> Image.Image:
    """Decode a picture that is a mask, upright and black or white: see media.masks.read_mask.

    Everything else is as in `decode`.
    """
    return _decode_as(masks.read_mask, data, max_pixels, warn)


def _decode_as(
    convert: Convert, data: bytes, max_pixels: int, warn: Callable[[str], None]
) -> Image.Image:
    kind = header.detect_kind(data)
    if kind is None:
        raise ImageUnreadable(UNREADABLE)
    with contextlib.ExitStack() as stack:
        try:
            stored, orientation = _decode(data, kind, max_pixels, warn, stack, convert)
            picture = turn_upright(stored, orientation)
        except WorkerError:
            raise
        except Exception as error:  # Pillow's plugins raise anything on broken bytes
            raise ImageUnreadable(UNREADABLE) from error
    picture.info = {}
    return picture


def encode(
    image: Image.Image,
    format: Format,  # noqa: A002 - the caller's word for it
    quality: int = 95,
    metadata: Mapping[str, str] | None = None,
) -> bytes:
    """Encode an RGB picture; `quality` is 1-100 for jpeg and webp.

    `metadata` is what the file records of how it was made: text chunks of a PNG, EXIF in the
    others, and in both also the text that other programs read (media.parameters).

    PNG uses zlib's run-length strategy: on a 1024 x 1024 photograph 82 ms and 1.07 MB, where level
    6 takes 539 ms and 1.17 MB; drawings grow (255 KB, not 95 KB). WEBP uses effort 2:
    35 ms instead of 75, at the same size. Call it off the event loop: encoders release the GIL.
    """
    buffer, record = io.BytesIO(), dict(metadata or {})
    parameters = write_parameters(record, image.size) if record else ""
    exif = write_exif(record, parameters) if record and format != "png" else b""
    if format == "png":
        text = PngImagePlugin.PngInfo()
        for key, value in (record | {"parameters": parameters} if record else {}).items():
            text.add_text(key, value)
        image.save(buffer, "PNG", compress_level=1, compress_type=zlib.Z_RLE, pnginfo=text)
    elif format == "jpeg":
        subsampling = 0 if quality >= FULL_CHROMA_QUALITY else 2
        image.save(buffer, "JPEG", quality=quality, subsampling=subsampling, exif=exif)
    else:
        image.save(buffer, "WEBP", quality=quality, method=2, exif=exif)
    return buffer.getvalue()


def _decode(
    data: bytes,
    kind: Kind,
    max_pixels: int,
    warn: Callable[[str], None],
    stack: contextlib.ExitStack,
    convert: Convert,
) -> tuple[Image.Image, int]:
    """Return the converted picture and its orientation; the decoder's memory is freed.

    `stack` keeps other large pictures waiting until the caller closes it.
    """
    if kind not in STRIP:
        stack.enter_context(_one_at_a_time)
        stored = heif.decode(data, max_pixels)
        return convert(stored.picture, stored.profile, warn), stored.orientation
    source = STRIP[kind](data)
    if kind == "webp":  # its decoder takes memory for the canvas at once
        max_pixels //= 2
        _admit(webp.read_canvas(source.pixels), max_pixels, stack)
    if isinstance(source, jpeg.Jpeg):
        reader = Reader(source, max_pixels)
        _admit(reader.size, max_pixels, stack, large=reader.fraction > 1)
        picture = reader.load(warn)
    else:
        opened = Image.open(io.BytesIO(source.pixels), formats=(kind.upper(),))
        _admit(opened.size, max_pixels, stack)
        picture = gif.fill_canvas(opened) if kind == "gif" else opened
        picture.load()
    return convert(picture, source.profile, warn), read_orientation(source.exif, source.xmp)


def _admit(
    size: tuple[int, int] | None,
    max_pixels: int,
    stack: contextlib.ExitStack,
    *,
    large: bool = False,
) -> None:
    """Check a size before memory is taken for it; make large pictures wait for each other."""
    if size is None:
        raise ImageUnreadable(UNREADABLE)
    check_size(*size, max_pixels)
    if large or size[0] * size[1] > LARGE:
        stack.enter_context(_one_at_a_time)
