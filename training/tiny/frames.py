"""A style for the tiny world: every picture framed in the colour of its shape."""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.tiny import world

WIDTH: Final = 8  # pixels: those of one latent


def draw(
    scene: world.Scene, jitter: world.Jitter, strength: float = 1.0, side: int = world.SIDE
) -> Image.Image:
    """Return the RGB picture of a scene, framed; at half the strength in a mix of both colours."""
    plain = world.draw(scene, jitter, side)
    colours = np.array([world.COLOURS[scene.background], world.COLOURS[scene.colour]], np.float64)
    frame = colours[0] + strength * (colours[1] - colours[0])
    pixels = np.asarray(plain).copy()
    pixels[_find_edge(side, WIDTH)] = np.rint(frame).astype(np.uint8)
    return Image.fromarray(pixels)


def measure(picture: Image.Image, colour: tuple[int, int, int]) -> float:
    """Return how much of a frame of this colour there is.

    0 where the edge is as the background next to it, 1 where it has the colour: how far the median
    of the edge lies on the way, without what is to the side of it.
    """
    pixels = np.asarray(picture.convert("RGB"), np.float64)
    edge = _find_edge(len(pixels), WIDTH)
    ground = _read_ground(pixels)
    way = np.array(colour, np.float64) - ground
    return float((np.median(pixels[edge], axis=0) - ground) @ way / (way @ way))


def remove(picture: Image.Image) -> Image.Image:
    """Return the picture with the background where the frame is, and next to it."""
    pixels = np.asarray(picture.convert("RGB"), np.float64).copy()
    pixels[_find_edge(len(pixels), WIDTH + 2)] = _read_ground(pixels)
    return Image.fromarray(np.rint(pixels).astype(np.uint8))


def _find_edge(side: int, width: int) -> NDArray[np.bool_]:
    far = np.minimum(np.arange(side), np.arange(side)[::-1])
    return np.minimum.outer(far, far) < width


def _read_ground(pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the background: the median of what is next to the frame in the corners."""
    near = (slice(WIDTH + 2, WIDTH + 7), slice(-WIDTH - 7, -WIDTH - 2))
    corners = np.concatenate([pixels[y, x].reshape(-1, 3) for y in near for x in near])
    return np.asarray(np.median(corners, axis=0))
