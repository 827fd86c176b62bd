"""How much device memory the largest job that callers may request takes beside the weights."""

from typing import Final

from worker.engine.quantise import Precision
from worker.families.qwen_image.modulation import KEPT_STEPS
from worker.families.qwen_image.working import SHOWN_PIXELS, Load, estimate_working
from worker.settings import Settings
from worker.weights.spec import ModelSpec, list_lightning_steps

# The most steps that a job may request, with the base schedule and without a LoRA.
MOST_STEPS: Final = 100
# The rank that each LoRA of a job is counted with, for every module of a block: the largest common
# one. Those of other jobs that are kept take less (families/adapting.py).
COUNTED_RANK: Final = 64
# The class whose text encoder sees its one reference at the model's own area.
SEES_ALL: Final = "QwenImageEditPipeline"


def plan_working(
    spec: ModelSpec, settings: Settings, precision: Precision, pixels: int | None = None
) -> int:
    """Return the bytes that a picture of `pixels` takes at most, however it is requested.

    By default it is the largest that MAX_PIXELS accepts, without it the model's own area. Each has
    as many references as callers may give, a prompt of the greatest length, begins from a picture,
    and has the more expensive of Lightning and the base schedule in most steps; where pictures
    share forwards, a batch of BATCH_MAX_PIXELS is among them. MAX_LORAS of rank 64 are
    counted where the operator says which LoRAs jobs may bring.
    """
    return _plan(spec, settings, precision, pixels, passing=False)


def plan_passing(
    spec: ModelSpec, settings: Settings, precision: Precision, pixels: int | None = None
) -> int:
    """Return what `plan_working` does where the text encoder passes through the device."""
    return _plan(spec, settings, precision, pixels, passing=True)


def _plan(
    spec: ModelSpec, settings: Settings, precision: Precision, pixels: int | None, *, passing: bool
) -> int:
    defaults = spec.defaults
    largest = pixels or settings.max_pixels or defaults.area
    references = min(defaults.max_references, settings.max_input_images)
    shown = defaults.area if spec.pipeline == SEES_ALL else SHOWN_PIXELS
    brings = settings.expects_loras and defaults.takes_loras
    ranks = settings.max_loras * COUNTED_RANK if brings else 0
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
                ranks,
                precision,
                # those with LoRAs of earlier jobs are kept too
                steps=count + (KEPT_STEPS if ranks else 0),
                shown_pixels=shown,
                begins=True,
                passing=passing,
            )
        )
        for side, batch in sizes
        for adapters, count in ways
    )
