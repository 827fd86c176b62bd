"""A JPEG's pixels: at a fraction of its size where it is too large, and without its end mark."""

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

# What the largest cameras give.
MAX_JPEG_PIXELS: Final = 200_000_000
# Of the coefficients that are held whatever the fraction, 2 bytes each: those of 200 million pixels
# whose colour planes are halved, as is customary, or of 100 million whose planes are not.
MAX_COEFFICIENT_BYTES: Final = 3 * MAX_JPEG_PIXELS
FRACTIONS: Final = (2, 4, 8)  # what libjpeg can leave out as it decodes
END_OF_IMAGE: Final = b"\xff\xd9"
# Behind a file without its end mark: nothing, which libjpeg reads as zeros, or bits that are no
# picture's and begin with ones. A restart mark is before them where one is due: libjpeg takes the
# due one and those three to five away from it, and skips the two before (jpeg_resync_to_restart
# of jdmarker.c), so that one of two orders serves.
NOISE: Final = hashlib.sha512(b"noise").digest().replace(b"\xff", b"")
TAILS: Final = (
    END_OF_IMAGE,
    *(
        b"".join(first + NOISE + bytes((0xFF, 0xD0 + (mark + count) % 8)) for count in range(8))
        + END_OF_IMAGE
        for first, mark in ((b"\xaa", 0), (b"\xd6", 4))
    ),
)


class Reader:
    """Reads one JPEG's pixels; `fraction` is 1, or 2, 4, 8 where its size was over `max_pixels`.

    Raises ImageTooLarge and what `check_size` raises, before any pixel is decoded.
    """

    def __init__(self, source: Jpeg, max_pixels: int) -> None:
        self._source = source
        with self._open(source.pixels) as opened:
            self.stored = opened.size
            self.fraction = _fraction(opened, max_pixels, buffered=source.buffered)
        width, height = self.stored
        self.size = -(-width // self.fraction), -(-height // self.fraction)
        check_size(*self.size, max_pixels)

    def load(self, tell: Callable[[str], None]) -> Image.Image:
        """Return the picture in the file's own mode.

        A file without its end mark is taken, and told, when no pixel hangs on what follows: it must
        come out the same whatever stands behind it.
        """
        if self.fraction > 1:
            (width, height), (wide, high) = self.stored, self.size
            tell(
                f"read at 1/{self.fraction} of its {width} x {height} pixels, so as {wide} x {high}"
                ', which is also its size for size "input"'
            )
        try:
            picture = self._decoded(self._source.pixels)
        except OSError:
            if self._source.ended or not self._source.complete:
                raise
            picture = self._completed()
        if not self._source.ended:
            tell("the file's last bytes are missing, none of them a pixel's")
        return picture

    def _completed(self) -> Image.Image:
        """Return the picture of a file that only lacks its end mark."""
        cut = self._source.pixels.rstrip(b"\xff")
        seen = set[bytes]()
        for tail in TAILS:
            picture = self._decoded(cut + tail)
            seen.add(hashlib.sha256(picture.tobytes()).digest())
            if len(seen) > 1:
                raise ImageUnreadable(UNREADABLE)
        return picture

    def _decoded(self, data: bytes) -> Image.Image:
        opened = self._open(data)
        if self.fraction > 1:
            width, height = self.stored
            opened.draft(None, (width // self.fraction, height // self.fraction))
        opened.load()
        return opened

    @staticmethod
    def _open(data: bytes) -> JpegImageFile:
        opened = Image.open(io.BytesIO(data), formats=("JPEG",))
        assert isinstance(opened, JpegImageFile)  # noqa: S101 - what was asked for
        return opened


def _fraction(opened: JpegImageFile, max_pixels: int, *, buffered: bool) -> int:
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
    held = 2 * width * height * sum(a * d for a, d in sampling) // max(1, most)
    if buffered and held > MAX_COEFFICIENT_BYTES:
        raise ImageTooLarge(
            f"a progressive JPEG of {width} x {height} takes {held} bytes to decode, at most"
            f" {MAX_COEFFICIENT_BYTES} are given: save it smaller, or not progressive"
        )
    return fits[0]
