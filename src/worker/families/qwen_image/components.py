"""What a model is made of once it is open: modules on the device and what steers them."""

from dataclasses import dataclass, field
from typing import Any

import torch

from worker.engine.lora import Adapters
from worker.families.qwen_image.forward import Forward
from worker.families.qwen_image.modulation import Modulation
from worker.families.qwen_image.vae import Frames


@dataclass(slots=True)
class Components:
    """The open parts of one Qwen-Image model.

    `transformer` and `text_encoder` are diffusers' and transformers' own modules on `device`, in
    eval mode; floating tensors have `dtype` unless the precision keeps them otherwise.
    `scheduler` is the base schedule's configuration (scheduler_config.json); `processor` is None
    for a model without references. `compiled_batch` is the most rows that the transformer's
    blocks are compiled for, 0 where they run as they are. `forward` runs the transformer.
    """

    transformer: Any
    text_encoder: Any
    vae: Frames
    tokenizer: Any
    processor: Any | None
    scheduler: dict[str, Any]
    adapters: Adapters
    modulation: Modulation
    device: torch.device
    dtype: torch.dtype
    compiled_batch: int = 0
    forward: Forward = field(init=False)

    def __post_init__(self) -> None:
        self.forward = Forward(self.transformer, is_compiled=self.compiled_batch > 0)
