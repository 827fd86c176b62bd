"""The size of a picture: from what was asked, the model's own area and the last reference."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol

from worker.errors import Detail, InvalidInput

SMALLEST: Final = 64
# Rotary positions are 4096 per side, each 16 pixels; the limit in pixels is far lower, this one
# keeps the arithmetic in its range.
LARGEST: Final = 4096 * 16
# A latent's 8 pixels times a transformer's patches of 2: no other side can be generated.
MULTIPLE: Final = 16
# The most pixels of a picture resampled to its input's size. Encoding costs 0.1 s per million
# pixels: a file of 6 KB can claim 49 million, four of which took 37 s and 2.5 GB.
MOST_DELIVERED: Final = 4096 * 4096
# The multiple of calculate_dimensions in diffusers' edit pipelines, at which references are
# encoded: an output of the same size does not shift against them.
ALIGNED: Final = 32

RATIOS: Final[Mapping[str, tuple[int, int]]] = {
    "1:1": (1, 1),
    "16:9": (16, 9),
    "9:16": (9, 16),
    "4:3": (4, 3),
    "3:4": (3, 4),
    "3:2": (3, 2),
    "2:3": (2, 3),
    "4:5": (4, 5),
    "5:4": (5, 4),
    "2:1": (2, 1),
    "1:2": (1, 2),
    "21:9": (21, 9),
    "9:21": (9, 21),
    "3:1": (3, 1),
    "1:3": (1, 3),
}
# fal's names for sizes, in pixels.
NAMED: Final[Mapping[str, tuple[int, int]]] = {
    "square_hd": (1024, 1024),
    "square": (512, 512),
    "portrait_4_3": (768, 1024),
    "portrait_16_9": (576, 1024),
    "landscape_4_3": (1024, 768),
    "landscape_16_9": (1024, 576),
}


@dataclass(frozen=True, slots=True)
class Size:
    """What a caller requested as the size, in pixels; nothing set is the model's default.

    `aspect_ratio` is a key of RATIOS, or None for the last reference's (edit) or the square
    (text-to-image). `as_input` means exactly the last reference's size. `field` is the caller's
    name for it, for messages.
    """

    width: int | None = None
    height: int | None = None
    aspect_ratio: str | None = None
    as_input: bool = False
    field: str = "size"


@dataclass(frozen=True, slots=True)
class Dimensions:
    """The size to generate, multiples of 16 pixels, and what the caller should know about it.

    `final` is the size to resample the picture to, None when it is delivered as generated.
    `adjusted` maps "width" or "height" to (requested, generated).
    """

    width: int
    height: int
    final: tuple[int, int] | None = None
    adjusted: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def describe_words() -> dict[str, Any]:
    """Return the JSON Schema of a size in one value."""
    sides = {"width": {"type": "integer"}, "height": {"type": "integer"}}
    written = {"type": "string", "pattern": "^[0-9]{1,6}[xX*][0-9]{1,6}$"}
    named = {"enum": ["auto", "input", *NAMED]}
    pair = {"type": "object", "properties": sides, "required": list(sides)}
    return {"anyOf": [named, written, {**pair, "additionalProperties": False}]}


class Canvas(Protocol):
    """What a model can generate; worker.tasks.picture.PictureOffer is one.

    `area` and `max_pixels` are in pixels, `sizes` maps an aspect ratio to (width, height).
    """

    @property
    def area(self) -> int:
        """The number of pixels at which the model is best."""

    @property
    def max_pixels(self) -> int:
        """The largest number of pixels."""

    @property
    def sizes(self) -> Mapping[str, tuple[int, int]]:
        """The model's own size for an aspect ratio such as "16:9"."""


def choose(
    size: Size, canvas: Canvas, last: tuple[int, int] | None, *, shrink: bool = False
) -> Dimensions:
    """Choose what to generate; `last` is the last reference's (width, height), None without one.

    Raises InvalidInput when the requested size has more pixels than the model's limit, but with
    `shrink`, where it is reduced in proportion; and when it is a reference's and there is none.
    """
    if size.as_input:
        if last is None:
            raise _make_refusal(size, "there is no input picture to take the size from")
        most = max(MOST_DELIVERED, canvas.max_pixels)
        if last[0] * last[1] > most and shrink:
            return _reduce_like(last, canvas, most)
        if last[0] * last[1] > most:
            message = f"the input has {last[0]}x{last[1]} pixels, at most {most} can be delivered"
            raise _make_refusal(size, message)
        return _choose_like(last, canvas)
    width, height = size.width, size.height
    if height is None:
        if width is None:
            return _choose_limited(*_choose_default(size, canvas, last), canvas)
        height = _round_side(width / _compute_ratio(size, last))
    elif width is None:
        width = _round_side(height * _compute_ratio(size, last))
    return _choose_exact(size, width, height, canvas, shrink=shrink)


def _choose_default(size: Size, canvas: Canvas, last: tuple[int, int] | None) -> tuple[int, int]:
    """Return the model's own size for an aspect ratio, for the last reference's, or for neither."""
    if size.aspect_ratio is not None and size.aspect_ratio in canvas.sizes:
        width, height = canvas.sizes[size.aspect_ratio]
        return width // MULTIPLE * MULTIPLE, height // MULTIPLE * MULTIPLE
    if size.aspect_ratio is None and last is None:
        side = _round_side(math.sqrt(canvas.area))
        return side, side
    return fit_to_area(canvas.area, _compute_ratio(size, last))


def fit_to_area(area: int, ratio: float) -> tuple[int, int]:
    """Return (width, height) of about `area` pixels at width/height `ratio`, multiples of 32.

    The formula is diffusers' calculate_dimensions; where that would give a side under 64 pixels
    (an aspect of more than area / 4096), that side is 64 and the other keeps the area.
    """
    width = math.sqrt(area * ratio)
    height = width / ratio
    wide, high = round(width / ALIGNED) * ALIGNED, round(height / ALIGNED) * ALIGNED
    longest = max(SMALLEST, area // SMALLEST // ALIGNED * ALIGNED)
    if high < SMALLEST:
        return longest, SMALLEST
    if wide < SMALLEST:
        return SMALLEST, longest
    return wide, high


def _compute_ratio(size: Size, last: tuple[int, int] | None) -> float:
    width, height = RATIOS[size.aspect_ratio] if size.aspect_ratio is not None else last or (1, 1)
    return width / height


def _round_side(side: float) -> int:
    return max(SMALLEST, round(side / MULTIPLE) * MULTIPLE)


def _make_refusal(size: Size, message: str) -> InvalidInput:
    return InvalidInput(f"{size.field}: {message}", details=[Detail(size.field, message)])


def _choose_exact(
    size: Size, width: int, height: int, canvas: Canvas, *, shrink: bool
) -> Dimensions:
    """Return the requested size, floored to multiples of 16."""
    wide, high = width // MULTIPLE * MULTIPLE, height // MULTIPLE * MULTIPLE
    if wide * high > canvas.max_pixels and shrink:
        near = _choose_limited(wide, high, canvas)
        adjusted = {"width": (width, near.width), "height": (height, near.height)}
        return replace(near, adjusted=adjusted)
    if wide * high > canvas.max_pixels:
        got = f"(got {width}x{height} = {width * height})"
        raise _make_refusal(size, f"must have at most {canvas.max_pixels} pixels {got}")
    adjusted = {
        name: (asked, side)
        for name, asked, side in (("width", width, wide), ("height", height, high))
        if asked != side
    }
    return Dimensions(wide, high, adjusted=adjusted)


def _choose_limited(width: int, height: int, canvas: Canvas) -> Dimensions:
    """Return a size that the caller left open, smaller and with a warning over the limit."""
    wide, high = width, height
    if wide * high > canvas.max_pixels:
        scale = math.sqrt(canvas.max_pixels / (wide * high))
        wide = max(SMALLEST, int(wide * scale) // ALIGNED * ALIGNED)
        high = max(SMALLEST, int(high * scale) // ALIGNED * ALIGNED)
        # a side that stays at 64 leaves too many pixels in the other
        wide = min(wide, max(SMALLEST, canvas.max_pixels // high // MULTIPLE * MULTIPLE))
        high = min(high, canvas.max_pixels // wide // MULTIPLE * MULTIPLE)
        limit = f"size: {width}x{height} is over this worker's {canvas.max_pixels} pixels; "
        return Dimensions(wide, high, warnings=(f"{limit}generated at {wide}x{high}",))
    return Dimensions(wide, high)


def _reduce_like(last: tuple[int, int], canvas: Canvas, most: int) -> Dimensions:
    """Deliver the last reference's size in proportion, in at most so many pixels."""
    scale = math.sqrt(most / (last[0] * last[1]))
    final = int(last[0] * scale), int(last[1] * scale)
    warning = (
        f"size: the input's {last[0]}x{last[1]} is over {most} pixels; delivered at"
        f" {final[0]}x{final[1]}"
    )
    like = _choose_like(final, canvas)
    return replace(like, final=final, warnings=(*like.warnings, warning))


def _choose_like(last: tuple[int, int], canvas: Canvas) -> Dimensions:
    """Deliver exactly the last reference's size, generated at it or at the model's own area.

    From a quarter of the model's area up to the limit the picture is generated at the input's size
    (to the nearest 16 pixels); smaller or larger ones would turn out badly or not at all, so they
    are generated at the model's area. Any other size is resampled at the end, with a warning.
    """
    width, height = last
    wide, high = _round_side(width), _round_side(height)
    if not canvas.area // 4 <= wide * high <= canvas.max_pixels:
        near = _choose_limited(*fit_to_area(canvas.area, width / height), canvas)
        wide, high = near.width, near.height
    if (wide, high) == last:
        return Dimensions(wide, high)
    warning = f"size: generated at {wide}x{high} and resampled to the input's {width}x{height}"
    return Dimensions(wide, high, final=last, warnings=(warning,))
