"""How much device memory the largest job that callers may request takes beside the weights."""

from typing import Final

from worker.engine.quantise import Precision
from worker.families.qwen_image.modulation import KEPT_STEPS
from worker.families.qwen_image.working import SHOWN_PIXELS, Load, estimate_working
from worker.settings import Settings
from worker.weights.spec import ModelSpec, list_lightning_steps

# The most steps that a job may request, with the base schedule and without a LoRA.
MOST_STEPS: Final = 100
# The class whose text encoder sees its one reference at the model's own area.
SEES_ALL: Final = "QwenImageEditPipeline"


def plan_working(
    spec: ModelSpec, settings: Settings, precision: Precision, pixels: int | None = None
) -> int:
    """Return the bytes that a picture of `pixels` takes at most, however it is requested.

    By default it is the largest that MAX_PIXELS accepts, without it the model's own area. Each has
    as many references as callers may give, a prompt of the greatest length, begins from a picture,
    and has the more expensive of Lightning and the base schedule in most steps; where pictures
    share forwards, a batch of BATCH_MAX_PIXELS is among them.
    """
    defaults = spec.defaults
    largest = pixels or settings.max_pixels or defaults.area
    references = min(defaults.max_references, settings.max_input_images)
    shown = defaults.area if spec.pipeline == SEES_ALL else SHOWN_PIXELS
    steps = list_lightning_steps(spec, settings)
    count = settings.most_in_batch
    sizes = [(largest, 1)]
    if count > 1:
        sizes.append((min(largest, settings.batch_max_pixels // count), count))
    # rows of earlier steps are kept, beside those of a schedule that is too long to be kept
    ways = [(0, KEPT_STEPS + MOST_STEPS)]
    if steps:
        ways.append((0 if settings.lightning_fused else 1, KEPT_STEPS))
    return max(
        estimate_working(
            Load(
                side,
                references,
                batch,
                adapters,
                precision,
                steps=count,
                shown_pixels=shown,
                begins=True,
            )
        )
        for side, batch in sizes
        for adapters, count in ways
    )
