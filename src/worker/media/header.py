"""What format a picture file is, by its content alone, and the part that its decoder gets."""

from dataclasses import dataclass
from typing import Final, Literal

Format = Literal["png", "jpeg", "webp"]
Kind = Literal["png", "jpeg", "webp", "gif", "avif", "heic"]

KINDS: Final = "PNG, JPEG, WEBP, GIF, AVIF or HEIC"
UNREADABLE: Final = f"a picture must be a complete {KINDS} file"

PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
# Brands of the first box, "ftyp": AV1 (av1-avif 6), HEVC (ISO 23008-12, annex B), and those that
# name only the container.
AV1: Final = frozenset({b"avif", b"avis"})
HEVC: Final = frozenset(
    {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
)
MOST_BRANDS: Final = 512  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A file without what does not affect its picture: many decoders fail at a broken comment.

    `pixels` is a complete file of the same format. `profile` is an ICC profile, `exif` (with or
    without its "Exif" mark) and `xmp` may hold the orientation; none of them has been validated.
    """

    pixels: bytes
    profile: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None


def detect_kind(data: bytes) -> Kind | None:  # noqa: PLR0911 - one for each kind
    """Return a file's format by its first bytes; None if it is not one of those that are read."""
    if data.startswith(PNG_SIGNATURE):
        return "png"
    if data.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "gif"
    if data[4:8] == b"ftyp":
        listed = data[16 : min(int.from_bytes(data[:4]), MOST_BRANDS)]
        brands = {data[8:12], *(listed[at : at + 4] for at in range(0, len(listed), 4))}
        if brands & AV1:
            return "avif"
        if brands & HEVC:
            return "heic"
    return None
