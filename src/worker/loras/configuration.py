"""The adapter_config.json that peft saves beside a LoRA: without it, its scale would be a guess."""

from collections.abc import Iterable
from pathlib import PurePath
from typing import Final

CONFIGURATION_NAME: Final = "adapter_config.json"
# How peft's save_pretrained names the weights that its configuration is about.
PEFT_NAME: Final = "adapter_model.safetensors"
LARGEST_CONFIGURATION: Final = 100_000  # bytes; peft's own have one thousand


def is_about(name: str, beside: Iterable[str]) -> bool:
    """Return whether a folder's configuration is about the LoRA of that name.

    It is where the name is peft's own, or nothing else among the names of the files `beside` it is
    a LoRA: next to several it cannot be about each of them.
    """
    loras = {each for each in beside if PurePath(each).suffix == ".safetensors"}
    return name == PEFT_NAME or loras <= {name}
