"""Convert a picture's colours to sRGB, 8 bits per channel, over white."""

import io
from collections.abc import Callable
from typing import Final

from PIL import Image, ImageChops, ImageCms
from PIL.ImageCms import Flags, ImageCmsProfile, ImageCmsTransform, Intent

# Colours inside sRGB stay what they are and white stays white, as callers see them elsewhere: sRGB
# has no table for any other intent. Black point compensation keeps the shadows of print, whose
# black is not the screen's.
INTENT: Final = Intent.RELATIVE_COLORIMETRIC
FLAGS: Final = Flags.BLACKPOINTCOMPENSATION
SPACES: Final = {"RGB": "RGB ", "RGBA": "RGB ", "L": "GRAY", "LA": "GRAY", "CMYK": "CMYK"}
# There lcms expands 64 KB into gigabytes of steps, and runs them for each of its 36,000 nodes; the
# integer tables, which come alongside, are bounded by their format.
FLOAT_TABLES: Final = b"D2B"
# Different vendors' sRGB curves differ by this much; a picture that is in sRGB keeps its pixels.
ROUNDING: Final = 1


def to_rgb(image: Image.Image, profile: bytes | None, warn: Callable[[str], None]) -> Image.Image:
    """Convert a picture to 8-bit RGB in sRGB, transparency over white; may change `image`.

    A profile that cannot be read, or is for a different colour space from the picture's, gives a
    warning and leaves the colours as they are.
    """
    plain = simplify(image)
    if profile is not None:
        converted = to_srgb(plain, profile)
        if converted is None:
            warn("its colour profile cannot be read or does not match: treated as sRGB")
        else:
            plain = converted
    if plain.mode in {"LA", "RGBA"}:
        return _flatten(plain)
    return plain.convert("RGB")


def to_srgb(image: Image.Image, profile: bytes) -> Image.Image | None:
    """Convert a picture of mode RGB, RGBA, L, LA or CMYK to sRGB; None if that is impossible.

    RGB is converted in place, as it takes 4 bytes per pixel. A profile that changes no colour by
    more than 1 of 255 is sRGB's own, and leaves every pixel as it is. A transform is built for each
    picture (3 ms for a matrix, 60 ms for CMYK), so that none is shared between threads.
    """
    bands = image.mode.removesuffix("A")
    to = "RGBA" if image.mode == "RGBA" else "RGB"
    try:
        source = ImageCmsProfile(io.BytesIO(_hide_float_tables(profile)))
        if source.profile.xcolor_space != SPACES[image.mode]:
            return None
        srgb = ImageCmsProfile(ImageCms.createProfile("sRGB"))
        transform = ImageCmsTransform(
            source, srgb, "RGBA" if to == "RGBA" else bands, to, INTENT, flags=FLAGS
        )
        if bands != "CMYK" and _is_identity(transform, bands):
            return image
        if bands == "RGB":
            return transform.apply_in_place(image)
        converted = transform.apply(image if image.mode == bands else image.getchannel("L"))
    except (OSError, ValueError, TypeError, ImageCms.PyCMSError):
        return None
    if image.mode == "LA":
        converted.putalpha(image.getchannel("A"))
    return converted


def simplify(image: Image.Image) -> Image.Image:
    """Convert a picture to one of the modes that a profile can describe: with or without alpha."""
    if image.mode.startswith("I"):
        return _reduce_to_8_bits(image)
    if image.has_transparency_data and image.mode not in {"LA", "RGBA"}:
        return image.convert("LA" if image.mode in {"1", "L"} else "RGBA")
    if image.mode == "1":
        return image.convert("L")
    return image if image.mode in SPACES else image.convert("RGB")


def _reduce_to_8_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey to 8; Pillow's own conversion clips at 255 and loses transparency."""
    wide = image.convert("I")
    picture = wide.point([value >> 8 for value in range(1 << 16)], "L")
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        picture.putalpha(wide.point([255 * (value != clear) for value in range(1 << 16)], "L"))
    return picture


def _flatten(image: Image.Image) -> Image.Image:
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image.getchannel("A"))
    return white


def _is_identity(transform: ImageCmsTransform, bands: str) -> bool:
    """Return whether colours from all over the space, and every grey, stay what they are."""
    steps = range(0, 256, 17)
    colours = b"".join(bytes((r, g, b)) for r in steps for g in steps for b in steps)
    samples = colours + bytes(v for v in range(256) for _ in bands)
    before = Image.frombytes(bands, (len(samples) // len(bands), 1), samples)
    after = transform.apply(before.convert(transform.input_mode)).convert("RGB")
    difference = ImageChops.difference(before.convert("RGB"), after)
    return max(difference.tobytes()) <= ROUNDING


def _hide_float_tables(profile: bytes) -> bytes:
    """Rename the tags of D2B tables, so that they are not found (ICC.1, 7.3)."""
    renamed = bytearray(profile)
    for at in range(132, min(132 + 12 * int.from_bytes(profile[128:132]), len(profile)), 12):
        if renamed[at : at + 3] == FLOAT_TABLES:
            renamed[at] = ord("x")
    return bytes(renamed)
