"""Which part of a picture is repainted: where a mask is white, or margins that are added to it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from PIL import Image, ImageChops

from worker.edge.fields import read_integer, show
from worker.edge.guess import guess
from worker.errors import Detail, InvalidInput, WorkerError
from worker.media import images, masks
from worker.media.limits import MAX_ASPECT
from worker.settings import Settings
from worker.tasks.size import MOST_DELIVERED
from worker.tasks.task import Warn

SIDES: Final = ("left", "top", "right", "bottom")
LARGEST_MARGIN: Final = 4096
MOST_BLUR: Final = 64
# A mask whose aspect is this close to the picture's (natural logarithm of the ratio) is of another
# resolution; any other is of another picture.
SAME_ASPECT: Final = 0.03


class Margins(NamedTuple):
    """What is added to a picture on each side, in pixels."""

    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0

    def widen(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the size of a picture with its margins."""
        return size[0] + self.left + self.right, size[1] + self.top + self.bottom


def describe_margins() -> dict[str, Any]:
    """Return the JSON Schema of margins."""
    side = {"type": "integer", "minimum": 0, "maximum": LARGEST_MARGIN}
    properties = dict.fromkeys(SIDES, side)
    return {"type": "object", "properties": properties, "additionalProperties": False}


def read_margins(value: Any) -> Margins:
    """Read margins as the caller wrote them; raises ValueError, with a message for the caller."""
    if not isinstance(value, dict):
        raise ValueError(  # noqa: TRY004 - pydantic reports ValueErrors
            f"must be an object with left, top, right or bottom (got {show(value)})"
        )
    for key in value:
        if key not in SIDES:
            near = guess(key, SIDES)
            hint = f"; did you mean {near}?" if near else ""
            raise ValueError(f"has no {show(key)}: its keys are {', '.join(SIDES)}{hint}")
    margins = Margins(**{side: _read_margin(value, side) for side in SIDES})
    if not any(margins):
        raise ValueError("must add a pixel on one side at least")
    return margins


def _read_margin(value: Mapping[str, Any], side: str) -> int:
    given = value.get(side)
    if given is None:
        return 0
    pixels = read_integer(given)
    is_whole = isinstance(pixels, int) and not isinstance(pixels, bool)
    if not is_whole or not 0 <= pixels <= LARGEST_MARGIN:
        raise ValueError(
            f"must have whole numbers from 0 to {LARGEST_MARGIN} (got {side} {show(given)})"
        )
    return int(pixels)


@dataclass(frozen=True, slots=True)
class Repainted:
    """A picture, and the mask of its size and mode L that says where it is repainted.

    White is repainted, black is not, and between them both are seen.
    """

    image: Image.Image
    mask: Image.Image


@dataclass(frozen=True, slots=True)
class Repaint:
    """How a job says which part of its first picture is repainted.

    The mask fades over `blur` pixels. `margins` are added to the picture and are what is repainted;
    None where a mask is fetched, which `invert` inverts. `field` is the caller's word for either.
    """

    blur: int
    invert: bool
    field: str
    margins: Margins | None

    def measure(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the size of a picture with its margins; raises InvalidInput for one too large."""
        if self.margins is None:
            return size
        wide, high = self.margins.widen(size)
        if wide * high > MOST_DELIVERED or max(wide, high) > MAX_ASPECT * min(wide, high):
            raise self._refuse(
                f"makes a picture of {wide}x{high}: it may have at most {MOST_DELIVERED} pixels,"
                f" and no side {MAX_ASPECT} times the other"
            )
        return wide, high

    def apply(
        self, image: Image.Image, fetched: bytes | None, settings: Settings, warn: Warn
    ) -> Repainted:
        """Return the picture with its margins, and its mask; to be called off the event loop.

        `fetched` is the file of the mask, None for margins. Raises InvalidInput for a mask that
        does not fit the picture or leaves nothing to repaint, and as media.images.decode.
        """
        if self.margins is not None:
            return self._widen(image, self.margins)
        if fetched is None:
            raise AssertionError("a mask is fetched wherever there are no margins")
        mask = self._decode(fetched, settings, warn)
        if self.invert:
            mask = ImageChops.invert(mask)
        if masks.is_black(mask):
            raise self._refuse(
                "leaves nothing to repaint: white is repainted, and it is black everywhere"
                f"{' once inverted' if self.invert else '; invert_mask exchanges the two'}"
            )
        if mask.size != image.size:
            mask = self._resize(mask, image.size, warn)
        return Repainted(image, masks.feather(mask, self.blur))

    def _widen(self, image: Image.Image, margins: Margins) -> Repainted:
        """Continue the picture's edges into the margins; they fade towards it, and it stays."""
        sides = ((margins.top, margins.bottom), (margins.left, margins.right))
        canvas = np.pad(np.asarray(image), (*sides, (0, 0)), mode="edge")
        inside = Image.new("L", image.size, "white")
        kept = Image.fromarray(np.pad(np.asarray(inside), sides))
        mask = ImageChops.invert(masks.feather(kept, self.blur))
        return Repainted(Image.fromarray(canvas), mask)

    def _decode(self, fetched: bytes, settings: Settings, warn: Warn) -> Image.Image:
        try:
            return images.decode_mask(
                fetched, settings.max_image_pixels, lambda text: warn(f"{self.field}: {text}")
            )
        except WorkerError as error:
            details = [Detail(self.field, error.message)]
            raise type(error)(f"{self.field}: {error.message}", details=details) from error

    def _resize(self, mask: Image.Image, size: tuple[int, int], warn: Warn) -> Image.Image:
        """Bring a mask of another resolution to the picture's."""
        (wide, high), (across, down) = mask.size, size
        sizes = f"has {wide}x{high} pixels, the picture {across}x{down}"
        ratio = wide / high / (across / down)
        if abs(math.log(ratio)) >= SAME_ASPECT:
            raise self._refuse(f"is of another shape than the picture: it {sizes}")
        warn(f"{self.field}: {sizes}; resized to it")
        return masks.split_at_half(mask.resize(size, Image.Resampling.BILINEAR))

    def _refuse(self, message: str) -> InvalidInput:
        return InvalidInput(f"{self.field}: {message}", details=[Detail(self.field, message)])
