"""Read a picture of the little world from its pixels alone, ignorant of how it was drawn.

Background: the corners. Colour: the majority inside the mask. Position: the mask's centroid.
Shape: overlap with templates of equal area. Size: the area, given the shape.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Mask = NDArray[np.bool_]
Pixels = NDArray[np.float64]

NAMED = {
    "red": (0.86, 0.16, 0.16),
    "green": (0.16, 0.65, 0.27),
    "blue": (0.18, 0.31, 0.84),
    "yellow": (0.96, 0.86, 0.24),
    "orange": (0.96, 0.53, 0.10),
    "purple": (0.57, 0.24, 0.71),
    "black": (0.08, 0.08, 0.08),
    "white": (0.96, 0.96, 0.96),
}
FAR = 0.25  # a colour further than this from every name has none
APART = 0.18  # a pixel further than this from the background belongs to the object
LEAST_AREA = 0.01
LEAST_OVERLAP = 0.72
MIDDLE = (0.42, 0.58)  # centroids between these are in the center
AREA_OF_UNIT = {"circle": 3.14, "square": 2.96, "triangle": 1.93, "star": 1.62}
LARGE_RADIUS = 0.235


@dataclass(frozen=True, slots=True)
class Seen:
    """What a picture shows; "?" where the pixels do not show it."""

    colour: str
    shape: str
    background: str
    size: str
    position: str


def _name(colours: Pixels) -> str:
    """Return the name nearest to most of the colours (N, 3); "?" if they are near none."""
    palette = np.array(list(NAMED.values()))
    distances = np.linalg.norm(colours[:, None] - palette, axis=2)
    votes = np.where(distances.min(axis=1) <= FAR, distances.argmin(axis=1), len(palette))
    return (*NAMED, "?")[int(np.bincount(votes).argmax())]


def _grid(count: int) -> tuple[Pixels, Pixels]:
    line = (np.arange(count) + 0.5) / count * 3.0 - 1.5
    return np.meshgrid(line, line)


def _template(shape: str) -> Mask:
    """Return the outline on a 200 x 200 grid of -1.5..1.5, in half planes and angles."""
    x, y = _grid(200)
    if shape == "circle":
        return np.asarray(x**2 + y**2 <= 1)
    if shape == "square":
        return np.asarray(np.maximum(abs(x), abs(y)) <= 1)
    if shape == "triangle":  # apex up, equilateral
        return np.asarray((y <= 0.5) & (abs(x) <= (y + 1) / np.sqrt(3)))
    # a five-pointed star: within one of ten equal wedges the edge is a straight line
    angle = np.arctan2(x, -y) % (2 * np.pi / 5)
    angle = np.minimum(angle, 2 * np.pi / 5 - angle)
    tip, notch = 1.0, 0.42
    edge = (
        tip * notch * np.sin(np.pi / 5) / (tip * np.sin(angle) + notch * np.sin(np.pi / 5 - angle))
    )
    return np.asarray(np.hypot(x, y) <= edge)


def _canonical(mask: Mask, count: int = 64) -> Mask:
    """Return the mask shifted to its centroid and scaled to unit area, on a grid of -1.5..1.5."""
    rows, columns = np.nonzero(mask)
    unit = np.sqrt(len(rows))
    x, y = _grid(count)
    across = np.rint(columns.mean() + x * unit).astype(int)
    down = np.rint(rows.mean() + y * unit).astype(int)
    height, width = mask.shape
    inside = (across >= 0) & (across < width) & (down >= 0) & (down < height)
    return np.asarray(
        inside & mask[down.clip(0, height - 1), across.clip(0, width - 1)],
    )


_TEMPLATES = {name: _canonical(_template(name)) for name in AREA_OF_UNIT}


def read(picture: Image.Image) -> Seen:
    """Return what the pixels show."""
    pixels: Pixels = np.asarray(picture.convert("RGB"), dtype=np.float64) / 255
    height, width, _ = pixels.shape
    k = max(2, height // 16)
    corners = [pixels[:k, :k], pixels[:k, -k:], pixels[-k:, :k], pixels[-k:, -k:]]
    ground: Pixels = np.median(np.concatenate([c.reshape(-1, 3) for c in corners]), axis=0)
    mask: Mask = np.linalg.norm(pixels - ground, axis=2) > APART
    if mask.mean() < LEAST_AREA:
        return Seen("?", "?", _name(ground[None]), "?", "?")
    overlaps = {}
    canonical = _canonical(mask)
    for name, template in _TEMPLATES.items():
        overlaps[name] = float((canonical & template).sum() / (canonical | template).sum())
    shape = max(overlaps, key=lambda name: overlaps[name])
    radius = np.sqrt(mask.mean() / AREA_OF_UNIT[shape])
    across = float(np.nonzero(mask)[1].mean() + 0.5) / width
    return Seen(
        colour=_name(pixels[mask]),
        shape=shape if overlaps[shape] >= LEAST_OVERLAP else "?",
        background=_name(ground[None]),
        size="large" if radius > LARGE_RADIUS else "small",
        position="left" if across < MIDDLE[0] else "right" if across > MIDDLE[1] else "center",
    )
