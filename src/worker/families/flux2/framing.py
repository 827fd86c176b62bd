"""At which size a reference picture is encoded, and how it gets it."""

import math
from dataclasses import dataclass
from typing import Final

from PIL import Image

from worker.families.drawing import has_same_aspect
from worker.families.references import ReferencePictures
from worker.tasks.picture import PictureWish

MULTIPLE: Final = 16


@dataclass(frozen=True, slots=True)
class Framing:
    """The (width, height) that a reference is scaled to, and the middle of it that is encoded."""

    scaled: tuple[int, int]
    cropped: tuple[int, int]


def choose_framing(image: Image.Image, wish: PictureWish, area: int) -> Framing:
    """Choose at which size a reference is encoded.

    The output's own where the aspects agree: there nothing shifts. Else its own, reduced to `area`
    pixels where it has more, and cropped to multiples of 16 pixels, as the stock pipelines do.
    """
    if has_same_aspect(image, wish):
        return Framing((wish.width, wish.height), (wish.width, wish.height))
    width, height = image.size
    if width * height > area:
        scale = math.sqrt(area / (width * height))
        width, height = int(width * scale), int(height * scale)
    width, height = max(MULTIPLE, width), max(MULTIPLE, height)
    return Framing((width, height), (_round_down(width), _round_down(height)))


def fit_reference(image: Image.Image, framing: Framing, pictures: ReferencePictures) -> Image.Image:
    """Return a reference at the size at which it is encoded."""
    (width, height), cropped = framing.scaled, framing.cropped
    scaled = image if image.size == framing.scaled else pictures.resize(image, framing.scaled)
    if cropped == framing.scaled:
        return scaled
    left, top = (width - cropped[0]) // 2, (height - cropped[1]) // 2
    return scaled.crop((left, top, left + cropped[0], top + cropped[1]))


def _round_down(side: int) -> int:
    return side // MULTIPLE * MULTIPLE
