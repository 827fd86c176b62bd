"""LIGHTNING_MERGE of an open model, switched on, and off again as no worker does."""

from worker.engine.lora import Adapters
from worker.families.qwen_image.components import Components


def merge(parts: Components) -> None:
    """Add the LoRAs to the weights, or to what 4-bit weights are unpacked to."""
    raise NotImplementedError("this worker has no LIGHTNING_MERGE")


def split(adapters: Adapters) -> None:
    """Put the LoRAs beside the weights again."""
