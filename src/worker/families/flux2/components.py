"""What a model is made of once it is open: modules on the device and what steers them."""

from dataclasses import dataclass, field
from typing import Any

import torch

from worker.engine.compiled import Compiled
from worker.engine.lora import Adapters
from worker.families.flux2.arranging import compile_activated
from worker.families.flux2.forward import Flux2Forward


@dataclass(slots=True)
class Flux2Parts:
    """The open parts of one FLUX.2 model.

    `transformer`, `text_encoder` and `vae` are diffusers' and transformers' own modules on
    `device`, in eval mode; floating tensors have `dtype` unless the precision keeps them otherwise.
    `scheduler` is the schedule's configuration (scheduler_config.json). `compiled_batch` is the
    most rows that the transformer's blocks are compiled for, 0 where they run as they are.
    `forward` runs the transformer; `normalise` is what the VAE's norms run, compiled, None where
    they are not.
    """

    transformer: Any
    text_encoder: Any
    vae: Any
    tokenizer: Any
    scheduler: dict[str, Any]
    adapters: Adapters
    device: torch.device
    dtype: torch.dtype
    compiled_batch: int = 0
    forward: Flux2Forward = field(init=False)
    normalise: Compiled | None = field(init=False)

    def __post_init__(self) -> None:
        self.forward = Flux2Forward(self.transformer, is_compiled=self.compiled_batch > 0)
        self.normalise = compile_activated(self.vae) if self.compiled_batch > 0 else None

    @property
    def is_compiled(self) -> bool:
        """Return whether all that is to be compiled is in use so."""
        norms = self.normalise
        return self.forward.is_compiled and (norms is None or norms.is_active)
