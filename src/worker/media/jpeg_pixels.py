"""A JPEG's pixels: at a fraction of its size if it is too large, even without its end mark."""

import hashlib
import io
from collections.abc import Callable
from typing import Final

from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from worker.errors import ImageTooLarge, ImageUnreadable
from worker.media.header import UNREADABLE
from worker.media.jpeg import Jpeg
from worker.media.limits import check_size

# What the largest cameras produce.
MAX_JPEG_PIXELS: Final = 200_000_000
# For the coefficients that are kept whatever the fraction, 2 bytes each: those of 200 million
# pixels with colour planes halved, as is usual, or of 100 million with full colour planes.
MAX_COEFFICIENT_BYTES: Final = 3 * MAX_JPEG_PIXELS
FRACTIONS: Final = (2, 4, 8)  # by which libjpeg can scale down as it decodes
END_MARK: Final = b"\xff\xd9"
# Appended to a file without its end mark: nothing, which libjpeg reads as zeros, or bits that
# belong to no picture and begin with ones. They follow a restart mark where one is due: libjpeg
# accepts the due one and those three to five away from it, and skips the two before
# (jpeg_resync_to_restart of jdmarker.c), so one of two orders works.
NOISE: Final = hashlib.sha512(b"noise").digest().replace(b"\xff", b"")
TAILS: Final = (
    END_MARK,
    *(
        b"".join(first + NOISE + bytes((0xFF, 0xD0 + (mark + count) % 8)) for count in range(8))
        + END_MARK
        for first, mark in ((b"\xaa", 0), (b"\xd6", 4))
    ),
)


class Reader:
    """Reads one JPEG's pixels; `fraction` is 1, or 2, 4 or 8 if its size is over `max_pixels`.

    Raises ImageTooLarge and what `check_size` raises, before any pixel is decoded.
    """

    def __init__(self, source: Jpeg, max_pixels: int) -> None:
        self._source = source
        with self._open(source.pixels) as opened:
            self.stored = opened.size
            self.fraction = _choose_fraction(opened, max_pixels, buffered=source.buffered)
        width, height = self.stored
        self.size = -(-width // self.fraction), -(-height // self.fraction)
        check_size(*self.size, max_pixels)

    def load(self, warn: Callable[[str], None]) -> Image.Image:
        """Decode the picture in the file's own mode.

        A file without its end mark is accepted, with a warning, if no pixel depends on what is
        missing: the picture must come out the same whatever is appended.
        """
        if self.fraction > 1:
            (width, height), (wide, high) = self.stored, self.size
            warn(
                f"read at 1/{self.fraction} of its {width} x {height} pixels, as {wide} x {high},"
                ' which is also its size for size "input"'
            )
        try:
            picture = self._decode(self._source.pixels)
        except OSError:
            if self._source.ended or not self._source.complete:
                raise
            picture = self._decode_cut()
        if not self._source.ended:
            warn("the file's last bytes are missing, but all its pixels are there")
        return picture

    def _decode_cut(self) -> Image.Image:
        """Decode a file that lacks only its end mark."""
        cut = self._source.pixels.rstrip(b"\xff")
        digests = set[bytes]()
        for tail in TAILS:
            picture = self._decode(cut + tail)
            digests.add(hashlib.sha256(picture.tobytes()).digest())
            if len(digests) > 1:
                raise ImageUnreadable(UNREADABLE)
        return picture

    def _decode(self, data: bytes) -> Image.Image:
        opened = self._open(data)
        width, height = self.stored
        opened.draft(None, (width // self.fraction, height // self.fraction))
        opened.load()
        return opened

    @staticmethod
    def _open(data: bytes) -> JpegImageFile:
        return JpegImageFile(io.BytesIO(data))


def _choose_fraction(opened: JpegImageFile, max_pixels: int, *, buffered: bool) -> int:
    width, height = opened.size
    if width * height <= max_pixels:
        return 1
    fits = [n for n in FRACTIONS if -(-width // n) * -(-height // n) <= max_pixels]
    if width * height > MAX_JPEG_PIXELS or not fits:
        most = min(MAX_JPEG_PIXELS, max_pixels * FRACTIONS[-1] ** 2)
        raise ImageTooLarge(
            f"a picture must have at most {max_pixels} pixels, a JPEG {most}"
            f" (got {width} x {height})"
        )
    sampling = [(across, down) for _, across, down, _ in opened.layer]
    most = max(a for a, _ in sampling) * max(d for _, d in sampling)
    needed = 2 * width * height * sum(a * d for a, d in sampling) // most
    if buffered and needed > MAX_COEFFICIENT_BYTES:
        raise ImageTooLarge(
            f"a progressive JPEG of {width} x {height} takes {needed} bytes to decode, at most"
            f" {MAX_COEFFICIENT_BYTES} are allowed: save it smaller, or not progressive"
        )
    return fits[0]
