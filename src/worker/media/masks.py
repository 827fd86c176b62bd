"""Masks, of which white is repainted: read from a picture, inverted, feathered, and pooled."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageFilter

from worker.media import colour

# Half of 255: what is lighter is white, as in diffusers' mask_processor. A JPEG's black is not 0.
HALF = 128


def read_mask(
    image: Image.Image, profile: bytes | None, warn: Callable[[str], None]
) -> Image.Image:
    """Return a picture as a mask of mode L that is black or white.

    Where its alpha varies, what is more transparent than not is white, as in OpenAI's masks; else
    what is light is. A mask has levels, no colours: a profile changes nothing.
    """
    del profile, warn
    plain = colour.simplify(image)
    if plain.mode in {"LA", "RGBA"}:
        alpha = plain.getchannel("A")
        least, most = alpha.getextrema()
        if least != most:
            return ImageChops.invert(split_at_half(alpha))
    return split_at_half(plain.convert("L"))


def split_at_half(levels: Image.Image) -> Image.Image:
    """Return a picture of mode L in black and white."""
    return levels.point([255 * (level >= HALF) for level in range(256)])


def is_black(mask: Image.Image) -> bool:
    """Return whether a mask is black everywhere."""
    return mask.getbbox() is None


def feather(mask: Image.Image, pixels: int) -> Image.Image:
    """Return a mask that falls from white to black over so many `pixels` around its white.

    The white stays white, and what is further away than `pixels` stays black. A square of half of
    them is added all round, over which a box blur of the other half then runs.
    """
    if not pixels:
        return mask
    blur = pixels // 2
    grown = _grow(mask, pixels - blur)
    return grown.filter(ImageFilter.BoxBlur(blur))


def _grow(mask: Image.Image, pixels: int) -> Image.Image:
    """Add so many pixels all round, at most 127: of a row of 255, one alone still counts."""
    for radius in ((pixels, 0), (0, pixels)):
        mask = mask.filter(ImageFilter.BoxBlur(radius)).point([0] + [255] * 255)
    return mask


def pool(mask: Image.Image, columns: int, rows: int) -> NDArray[np.bool_]:
    """Return which cells [rows, columns] of a grid over a mask have anything in them but black."""
    found = np.asarray(mask) > 0
    for axis, cells in ((0, rows), (1, columns)):
        found = _pool_axis(found, axis, cells)
    return found


def _pool_axis(found: NDArray[np.bool_], axis: int, cells: int) -> NDArray[np.bool_]:
    """Pool one axis: a cell that covers a part of a pixel covers the pixel."""
    length = found.shape[axis]
    places = np.arange(cells + 1) * length
    ends = np.stack([places[:-1] // cells, -(-places[1:] // cells)], axis=1)
    padded = np.insert(found, length, False, axis=axis)  # an end may be the length
    return np.logical_or.reduceat(padded, ends.ravel(), axis=axis).take(
        np.arange(0, 2 * cells, 2), axis=axis
    )
