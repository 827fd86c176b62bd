"""What callers may request of a model that makes pictures, from its row, settings and memory."""

from typing import Final

from worker.seam import Served
from worker.settings import Settings
from worker.tasks.picture import PictureOffer
from worker.weights.spec import ModelSpec

# The largest picture in pixels by device memory in bytes: what a picture takes in addition
# to the weights grows with its tokens, about 3 GB for a 1024x1024 edit (est.).
LARGEST_AREAS: Final = ((40 << 30, 2048 * 2048), (22 << 30, 1536 * 1536), (0, 1328 * 1328))


def describe(
    spec: ModelSpec,
    settings: Settings,
    *,
    revision: str,
    precision: str,
    lightning: tuple[int, ...],
    memory: int | None,
) -> Served:
    """Describe what callers may request; `memory` is the device's in bytes, None on a CPU."""
    defaults = spec.defaults
    largest = settings.max_pixels
    if largest is None:
        room = next(pixels for floor, pixels in LARGEST_AREAS if (memory or 0) >= floor)
        largest = min(room, 4 * defaults.area)
    offer = PictureOffer(
        steps=defaults.steps,
        true_cfg_scale=defaults.true_cfg_scale,
        negative_prompt=defaults.negative_prompt,
        lightning_steps=lightning,
        area=defaults.area,
        max_pixels=largest,
        max_references=min(defaults.max_references, settings.max_input_images),
        sizes=defaults.sizes,
        no_loras=_explain_no_loras(spec, settings, lightning),
    )
    return Served(
        id=spec.name,
        repository=spec.repository,
        revision=revision,
        precision=precision,
        licence=spec.licence,
        offers=dict.fromkeys(spec.tasks, offer),
    )


def _explain_no_loras(
    spec: ModelSpec, settings: Settings, lightning: tuple[int, ...]
) -> str | None:
    """Return why a job may bring no LoRAs of its own; None where it may."""
    if not spec.defaults.takes_loras:
        return f"{spec.name} takes none"
    if settings.lightning_fused and lightning:
        return f"{spec.name} takes none here: it has Lightning baked in (LIGHTNING_FUSED)"
    return None
