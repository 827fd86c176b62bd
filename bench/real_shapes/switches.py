"""LIGHTNING_MERGE of an open model, switched on as a worker does, and off again as none does."""

from worker.engine.lora import LoraLinear
from worker.families.qwen_image.components import Components
from worker.families.qwen_image.merging import merge_adapters

ROOM = 1 << 60  # bytes: that there is none is an error of its case


def merge(parts: Components) -> None:
    """Add the LoRAs to the weights; what fails half-way leaves all as it was."""
    try:
        merge_adapters(parts, ROOM)
    except BaseException:
        split(parts)
        raise


def split(parts: Components) -> None:
    """Put the LoRAs beside the weights again."""
    for wrapped in parts.transformer.modules():
        if isinstance(wrapped, LoraLinear):
            for name in [name for name in wrapped._buffers if name.endswith("_kept")]:  # noqa: SLF001 - no worker goes back, so nothing public does
                delattr(wrapped, name)
            wrapped._combine_of.clear()  # noqa: SLF001 - the same
            wrapped.active = wrapped.active  # takes what is left
