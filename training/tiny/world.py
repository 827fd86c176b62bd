"""The little world that the tiny checkpoint knows: one coloured shape on a coloured background."""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image, ImageDraw

SIDE = 96
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 165, 70),
    "blue": (45, 80, 215),
    "yellow": (245, 220, 60),
    "orange": (245, 135, 25),
    "purple": (145, 60, 180),
    "black": (20, 20, 20),
    "white": (245, 245, 245),
}
SHAPES = ("circle", "square", "triangle", "star")
SIZES = {"small": (0.18, 0.20), "large": (0.28, 0.30)}  # radius over the side
POSITIONS = {"left": 0.34, "center": 0.50, "right": 0.66}  # centre over the side
_SHIFT = 0.015
_SHIFT_DOWN = 0.025
_FINER = 4  # drawn this many times larger, then averaged: soft edges


@dataclass(frozen=True, slots=True)
class Scene:
    """What a picture shows, in the words of the prompts."""

    colour: str
    shape: str
    background: str
    size: str
    position: str

    @property
    def held_out(self) -> bool:
        """Return whether training must never see it: a fixed fifth of colour, shape, background."""
        colours = list(COLOURS)
        code = colours.index(self.colour) + 2 * SHAPES.index(self.shape)
        return (code + 3 * colours.index(self.background)) % 5 == 0


def scenes() -> Iterator[Scene]:
    """Yield every scene: 8 x 4 x 7 combinations in 2 sizes and 3 positions."""
    for colour in COLOURS:
        for shape in SHAPES:
            for background in COLOURS:
                if background == colour:
                    continue
                for size in SIZES:
                    for position in POSITIONS:
                        yield Scene(colour, shape, background, size, position)


def random_scene(rng: random.Random, *, held_out: bool = False) -> Scene:
    """Return a scene that is held out, or one that is not."""
    while True:
        colour, background = rng.sample(list(COLOURS), 2)
        scene = Scene(
            colour,
            rng.choice(SHAPES),
            background,
            rng.choice(list(SIZES)),
            rng.choice(list(POSITIONS)),
        )
        if scene.held_out == held_out:
            return scene


@dataclass(frozen=True, slots=True)
class Jitter:
    """What the words leave open, each in -1..1: the shift right and down, and the exact size.

    An edit keeps the jitter of its reference, so that only the requested part changes.
    """

    x: float
    y: float
    size: float


def random_jitter(rng: random.Random) -> Jitter:
    """Return a uniformly random jitter."""
    return Jitter(*(rng.uniform(-1, 1) for _ in range(3)))


def _outline(shape: str, x: float, y: float, r: float) -> list[tuple[float, float]]:
    if shape == "square":
        h = 0.86 * r
        return [(x - h, y - h), (x + h, y - h), (x + h, y + h), (x - h, y + h)]
    if shape == "triangle":
        radii, turns, y = [1.22 * r], 3, y + 0.2 * r
    else:
        radii, turns = [1.15 * r, 0.48 * r], 10
    points = []
    for i in range(turns):
        angle = 2 * math.pi * i / turns - math.pi / 2
        radius = radii[i % len(radii)]
        points.append((x + radius * math.cos(angle), y + radius * math.sin(angle)))
    return points


def draw(scene: Scene, jitter: Jitter, side: int = SIDE) -> Image.Image:
    """Return the RGB picture of a scene, `side` pixels square."""
    fine = side * _FINER
    mask = Image.new("L", (fine, fine), 0)
    pen = ImageDraw.Draw(mask)
    smallest, largest = SIZES[scene.size]
    x = (POSITIONS[scene.position] + _SHIFT * jitter.x) * fine
    y = (0.5 + _SHIFT_DOWN * jitter.y) * fine
    r = (smallest + (largest - smallest) * (1 + jitter.size) / 2) * fine
    if scene.shape == "circle":
        pen.ellipse((x - r, y - r, x + r, y + r), fill=255)
    else:
        pen.polygon(_outline(scene.shape, x, y, r), fill=255)
    picture = Image.new("RGB", (side, side), COLOURS[scene.background])
    picture.paste(COLOURS[scene.colour], mask=mask.reduce(_FINER))
    return picture
