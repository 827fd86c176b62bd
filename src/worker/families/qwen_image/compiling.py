"""The graphs of the transformer's blocks that jobs will need, all compiled before the first job."""

from typing import Final

import torch

from worker.bundle.open import FusedAdapter
from worker.families.qwen_image.components import Components
from worker.families.qwen_image.denoising import Conditioning, LatentShape

# Graphs are for all sizes, so small ones do; unequal, so that nothing is equal by chance.
SHAPES: Final[list[LatentShape]] = [(1, 8, 12), (1, 6, 10)]
TEXT_TOKENS: Final = 23
# One row has its own graph, since torch compiles 1 as a constant; all other numbers share one.
BATCHES: Final = (1, 3)


@torch.inference_mode()
def compile_rest(parts: Components) -> None:
    """Run a forward with every adapter and none, for one row and for several.

    Nothing is run where nothing is compiled. The modulation must be that of a step.
    """
    config, adapters = parts.transformer.config, parts.adapters
    names = () if isinstance(adapters, FusedAdapter) else (None, *adapters.attached)
    generator = torch.Generator().manual_seed(0)

    def make(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(parts.device, parts.dtype)

    tokens = sum(frames * height * width for frames, height, width in SHAPES)
    for rows in BATCHES[: parts.compiled_batch]:
        latents = make(rows, tokens, config.in_channels)
        prompt = Conditioning(make(rows, TEXT_TOKENS, config.joint_attention_dim))
        timestep = torch.full((rows,), 0.5, device=parts.device)
        for name in names or (adapters.active,):
            adapters.use(name)
            parts.forward(latents, timestep, prompt, SHAPES)
