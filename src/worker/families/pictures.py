"""What callers may request of a model that makes pictures, from its row, settings and memory."""

from collections.abc import Callable
from typing import Any

from worker.families.served import describe_served
from worker.seam import Served
from worker.settings import Settings
from worker.tasks.picture import PictureOffer
from worker.tasks.way import IMG2IMG
from worker.weights.spec import ModelSpec


def describe(
    spec: ModelSpec,
    settings: Settings,
    *,
    revision: str,
    precision: str,
    lightning: tuple[int, ...],
    working: Callable[[int], int],
    left: int | None,
) -> Served:
    """Describe what callers may request.

    `working` computes the device memory that a picture of so many pixels takes in addition to the
    weights, which leave `left` bytes of it; None on a CPU.
    """
    defaults = spec.defaults
    largest = settings.max_pixels
    if largest is None:
        largest = choose_largest(list_areas(defaults), working, left)
    offer = PictureOffer(
        steps=defaults.steps,
        true_cfg_scale=defaults.true_cfg_scale,
        negative_prompt=defaults.negative_prompt,
        lightning_steps=lightning,
        area=defaults.area,
        max_pixels=largest,
        max_references=min(defaults.max_references, settings.max_input_images),
        sizes=defaults.sizes,
        no_loras=None if defaults.takes_loras else f"{spec.name} takes none",
        strength=defaults.strength if IMG2IMG in spec.tasks else None,
        takes_cfg=defaults.takes_cfg,
        guidance=defaults.guidance,
        weighs_references=defaults.weighs_references,
        rank_bytes=defaults.rank_bytes,
    )
    offers = dict.fromkeys(spec.tasks, offer)
    return describe_served(spec, revision, precision, offers, working(largest))


def list_areas(defaults: Any) -> list[int]:
    """Return the areas in pixels up to which a model may serve, the smallest first.

    Its own, the largest of its sizes, and those of one and a half and twice the side of its own.
    """
    own: int = defaults.area
    largest = max(own, *(width * height for width, height in defaults.sizes.values()))
    return sorted({own, min(largest, 4 * own), 9 * own // 4, 4 * own})


def choose_largest(areas: list[int], working: Callable[[int], int], left: int | None) -> int:
    """Return the largest of the areas that fits, or the smallest of all where none does."""
    fitting = [area for area in areas if left is None or working(area) <= left]
    return fitting[-1] if fitting else areas[0]
