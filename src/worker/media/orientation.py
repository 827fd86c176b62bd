"""Which way up a picture is, according to its EXIF or XMP."""

from typing import Final

from PIL import Image

ORIENTATION: Final = 0x0112
UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_orientation(exif: bytes | None, xmp: bytes | None) -> int:
    """Return the EXIF orientation, 1 (upright) if there is none or it cannot be read."""
    bare = Image.new("1", (1, 1))
    bare.info = {"exif": exif, "xmp": xmp}
    try:
        value = bare.getexif().get(ORIENTATION, 1)
    except Exception:  # noqa: BLE001 - Pillow's EXIF reader raises anything on broken bytes
        return 1
    return value if isinstance(value, int) else 1


def turn_upright(picture: Image.Image, stored: int) -> Image.Image:
    """Turn upright a picture that is stored in this orientation."""
    return picture.transpose(UPRIGHT[stored]) if stored in UPRIGHT else picture
