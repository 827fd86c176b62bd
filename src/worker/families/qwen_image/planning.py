"""How much device memory the largest job that callers may request takes beside the weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from worker.families.family import DeviceNeed
from worker.families.qwen_image.working import (
    KEPT_STEPS,
    SHOWN_PIXELS,
    Load,
    estimate_working,
)
from worker.setting_values import PRECISIONS, Precision
from worker.settings import Settings
from worker.weights.spec import ModelSpec, list_lightning_steps

# The most steps that a job may request, with the base schedule and without a LoRA.
MOST_STEPS: Final = 100
# The rank that each LoRA of a job is counted with, for every module of a block: the largest common
# one. Those of other jobs that are kept take less (families/adapting.py).
COUNTED_RANK: Final = 64
# The class whose text encoder sees its one reference at the model's own area.
SEES_ALL: Final = "QwenImageEditPipeline"


@dataclass(frozen=True, slots=True)
class PartSizes:
    """Bytes of the published architecture's parts, and of one LoRA of rank 64."""

    transformer: int
    text_encoder: int
    vae: int
    lora: int


# Computed from the architecture (`python bench/sizes.py`), to 10 MB.
PART_SIZES: Final[Mapping[Precision, PartSizes]] = {
    "4bit": PartSizes(7_100_000_000, 5_810_000_000, 250_000_000, 850_000_000),
    "8bit": PartSizes(13_690_000_000, 8_970_000_000, 250_000_000, 850_000_000),
    "bf16": PartSizes(27_270_000_000, 15_490_000_000, 250_000_000, 850_000_000),
}


def estimate_needs(spec: ModelSpec, settings: Settings) -> dict[Precision, DeviceNeed]:
    """Return what a model of the published architecture and its largest job take on the device.

    By precision, the smallest first.
    """
    beside = 0 if settings.lightning_fused else len(list_lightning_steps(spec, settings))
    needs: dict[Precision, DeviceNeed] = {}
    for precision in PRECISIONS:
        parts = PART_SIZES[precision]
        resident = parts.transformer + parts.vae + beside * parts.lora
        passing = max(plan(spec, settings, precision) for plan in (plan_working, plan_passing))
        needs[precision] = DeviceNeed(
            resident + parts.text_encoder + plan_working(spec, settings, precision),
            resident + passing,
        )
    return needs


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
    sizes = [(largest, 1), (min(largest, settings.batch_max_pixels // count), count)]
    # rows of earlier steps are kept, beside those of a schedule that is too long to be kept
    ways = [(False, KEPT_STEPS + MOST_STEPS)]
    if steps:
        ways.append((not settings.lightning_fused, KEPT_STEPS))
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
