"""Bytes <-> RGB picture, within a pixel budget; formats are told by content alone."""

import contextlib
import io
import threading
import warnings
import zlib
from collections.abc import Callable, Mapping
from typing import Final

from PIL import Image, PngImagePlugin

from worker.errors import ImageUnreadable, WorkerError
from worker.media import colour, gif, header, heif, jpeg, png, webp
from worker.media.header import UNREADABLE, Format, Kind, Source
from worker.media.jpeg_pixels import Reader
from worker.media.limits import MAX_PIXELS, check_size
from worker.media.orientation import read_orientation, turn_upright

# Above this, pictures are decoded one at a time: a file of 40 bytes can ask for 200 MB.
LARGE: Final = 4_000_000
STRIP: Final[Mapping[Kind, Callable[[bytes], Source]]] = {
    "png": png.strip,
    "jpeg": jpeg.strip,
    "webp": webp.strip,
    "gif": gif.strip,
}
MIME_TYPES: Final[Mapping[Format, str]] = {
    "png": "image/png",
    "jpeg": "image/jpeg",
    "webp": "image/webp",
}
FULL_CHROMA_QUALITY: Final = 90  # below it JPEG halves the colour planes, as is customary

# Memory is one picture's at a time; the lock is taken again where the size is known in two steps.
_one_at_a_time = threading.RLock()

# Sizes are judged here, before a decoder takes memory for them.
Image.MAX_IMAGE_PIXELS = None
# Pillow tells of broken EXIF and the like as warnings; a caller's file is not worth a log line.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


def _nobody(_: str) -> None:
    """Tell nobody."""


def decode(
    data: bytes, max_pixels: int = MAX_PIXELS, warn: Callable[[str], None] = _nobody
) -> Image.Image:
    """Decode a PNG, JPEG, WEBP, GIF, AVIF or HEIC into an upright RGB picture without metadata.

    Its colours in sRGB; the first frame of an animation; transparency over white; 16 bits a channel
    become 8; EXIF orientation is applied. Sizes are in pixels as stored. A JPEG over `max_pixels`,
    up to 200 million, is read at 1/2, 1/4 or 1/8 of its size. `warn` takes what the caller should
    know of it, a sentence each.

    The picture takes 4 bytes a pixel, the decoding up to 12 (of a JPEG over the limit 600 MB more);
    a WEBP's, which may be an animation, takes 16, so that it may have half of `max_pixels`. Use it
    off the event loop: Pillow's decoders free the GIL.

    Raises ImageUnreadable, ImageTooLarge, or InvalidInput (a side under 16 pixels, or one 32 times
    the other).
    """
    kind = header.detect_kind(data)
    if kind is None:
        raise ImageUnreadable(UNREADABLE)
    with contextlib.ExitStack() as held:
        try:
            picture = turn_upright(*_decoded(data, kind, max_pixels, warn, held))
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
    """Encode an RGB picture; `quality` is 1-100 for jpeg and webp, `metadata` PNG text chunks.

    PNG uses zlib's run-length strategy: on a 1024 x 1024 photograph 82 ms and 1.07 MB, where level
    6 takes 539 ms and 1.17 MB; drawings come out larger (255 KB for 95 KB). WEBP uses effort 2:
    35 ms for 75, at the same size. Use it off the event loop: the encoders free the GIL.
    """
    buffer = io.BytesIO()
    if format == "png":
        text = PngImagePlugin.PngInfo()
        for key, value in (metadata or {}).items():
            text.add_text(key, value)
        image.save(buffer, "PNG", compress_level=1, compress_type=zlib.Z_RLE, pnginfo=text)
    elif format == "jpeg":
        subsampling = 0 if quality >= FULL_CHROMA_QUALITY else 2
        image.save(buffer, "JPEG", quality=quality, subsampling=subsampling)
    else:
        image.save(buffer, "WEBP", quality=quality, method=2)
    return buffer.getvalue()


def _decoded(
    data: bytes,
    kind: Kind,
    max_pixels: int,
    warn: Callable[[str], None],
    held: contextlib.ExitStack,
) -> tuple[Image.Image, int]:
    """Return the picture as stored, in RGB, and its orientation; frees the decoder's own.

    `held` keeps other large pictures out until the caller is done with this one.
    """
    if kind not in STRIP:
        held.enter_context(_one_at_a_time)
        stored = heif.decode(data, kind, max_pixels)
        return colour.to_rgb(stored.picture, stored.profile, warn), stored.orientation
    source = STRIP[kind](data)
    if kind == "webp":  # its decoder takes memory for the canvas at once
        max_pixels //= 2
        _admit(webp.read_canvas(source.pixels), max_pixels, held)
    if isinstance(source, jpeg.Jpeg):
        reader = Reader(source, max_pixels)
        _admit(reader.size, max_pixels, held, large=reader.fraction > 1)
        picture = reader.load(warn)
    else:
        picture = Image.open(io.BytesIO(source.pixels), formats=(kind.upper(),))
        _admit(picture.size, max_pixels, held)
        picture.load()
    return colour.to_rgb(picture, source.profile, warn), read_orientation(source.exif, source.xmp)


def _admit(
    size: tuple[int, int] | None,
    max_pixels: int,
    held: contextlib.ExitStack,
    *,
    large: bool = False,
) -> None:
    """Judge a size before memory is taken for it, and have large pictures wait for each other."""
    if size is None:
        raise ImageUnreadable(UNREADABLE)
    check_size(*size, max_pixels)
    if large or size[0] * size[1] > LARGE:
        held.enter_context(_one_at_a_time)
