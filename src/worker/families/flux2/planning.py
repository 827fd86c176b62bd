"""How much device memory the largest job that callers may request takes beside the weights."""

from collections.abc import Mapping
from typing import Final

from worker.families.family import DeviceNeed
from worker.families.flux2.working import (
    DEV_EDITION,
    LARGE_EDITION,
    SMALL_EDITION,
    VAE_BYTES,
    Edition,
    FluxLoad,
    estimate_working,
)
from worker.setting_values import PRECISIONS, Precision
from worker.settings import Settings
from worker.weights.spec import ModelSpec

# The rank that each LoRA of a job is counted with: the largest common one.
COUNTED_RANK: Final = 64
EDITIONS: Final[Mapping[str, Edition]] = {
    "black-forest-labs/flux.2-klein-4b": SMALL_EDITION,
    "black-forest-labs/flux.2-klein-base-4b": SMALL_EDITION,
    # the embedded one, whose transformer is as wide as one head
    "tiny/flux": Edition(1, 2, 6, 128, 256, 576, layers=4),
}
# diffusers' class whose only published model is dev.
GUIDED_CLASS: Final = "Flux2Pipeline"


def find_edition(spec: ModelSpec) -> Edition:
    """Return the published size of a model; of one outside the table the largest of its class."""
    known = EDITIONS.get(spec.repository.lower())
    if known is not None:
        return known
    return DEV_EDITION if spec.pipeline == GUIDED_CLASS else LARGE_EDITION


def estimate_needs(spec: ModelSpec, settings: Settings) -> dict[Precision, DeviceNeed]:
    """Return what a model of the published architecture and its largest job take on the device.

    By precision, the smallest first.
    """
    needs: dict[Precision, DeviceNeed] = {}
    for precision in PRECISIONS:
        transformer, text_encoder = find_edition(spec).count_weights(precision)
        resident = transformer + VAE_BYTES
        working = plan_working(spec, settings, precision)
        passing = max(working, plan_passing(spec, settings, precision))
        needs[precision] = DeviceNeed(resident + text_encoder + working, resident + passing)
    return needs


def plan_working(
    spec: ModelSpec, settings: Settings, precision: Precision, pixels: int | None = None
) -> int:
    """Return the bytes that a picture of `pixels` takes at most, however it is requested.

    By default it is the largest that MAX_PIXELS accepts, without it the model's own area. Each has
    as many references as callers may give, and begins from a picture; where pictures share
    forwards, a batch of BATCH_MAX_PIXELS is among them. MAX_LORAS of rank 64 are counted where the
    operator says which LoRAs jobs may bring.
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
    defaults, count = spec.defaults, settings.most_in_batch
    largest = pixels or settings.max_pixels or defaults.area
    brings = settings.expects_loras and defaults.takes_loras
    sizes = ((largest, 1), (min(largest, settings.batch_max_pixels // count), count))
    return max(
        estimate_working(
            FluxLoad(
                side,
                min(defaults.max_references, settings.max_input_images),
                batch,
                precision,
                find_edition(spec),
                ranks=settings.max_loras * COUNTED_RANK if brings else 0,
                begins=True,
                guided=defaults.takes_cfg,
                passing=passing,
            )
        )
        for side, batch in sizes
    )
