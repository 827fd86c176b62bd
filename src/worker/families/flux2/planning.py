"""How much device memory the largest job that callers may request takes beside the weights."""

from worker.families.flux2.working import count_frame_bytes
from worker.settings import Precision, Settings
from worker.weights.spec import ModelSpec


def plan_working(
    spec: ModelSpec, settings: Settings, precision: Precision, pixels: int | None = None
) -> int:
    """Return the bytes that a picture of `pixels` takes at most, however it is requested."""
    largest = pixels or settings.max_pixels or spec.defaults.area
    return count_frame_bytes(largest)
