"""The transformer's forward: diffusers' weights and modules, our own order of running them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from worker.engine.compiled import Compiled
from worker.families.qwen_image.block import run_block
from worker.families.qwen_image.denoising import Conditioning, LatentShape
from worker.families.qwen_image.rope import Positions


class Forward:
    """A QwenImageTransformer2DModel as the denoising loop calls it.

    It gives what the module's own forward gives, to the last bit on a CPU, and never waits for the
    device: positions are cached by shape, and with zero_cond_t the sequence is split where the
    references begin instead of indexed from a list of every token. The modules are looked up at
    every call, so adapters may be attached and switched at any time. With `is_compiled` the blocks
    share compiled graphs, whose results differ by rounding. With `is_eager` they run as they are:
    each caller's LoRA would be a graph of its own, compiled while its job waits.
    """

    def __init__(self, transformer: Any, *, is_compiled: bool = False) -> None:
        self._transformer = transformer
        self._positions = Positions(transformer)
        self._run_block = Compiled(run_block) if is_compiled else run_block
        self.is_eager = False

    @property
    def is_compiled(self) -> bool:
        """Return whether compiled blocks are in use."""
        return isinstance(self._run_block, Compiled) and self._run_block.is_active

    def __call__(
        self,
        latents: Tensor,
        timestep: Tensor,
        condition: Conditioning,
        shapes: Sequence[LatentShape],
    ) -> Tensor:
        """Return the prediction for packed latents [batch, tokens, channels], in that shape.

        `latents` are the output's tokens and then every reference's, of the (frames, height, width)
        in `shapes`; `timestep` [batch] is 0 to 1.
        """
        model = self._transformer
        image = model.img_in(latents)
        text = model.txt_in(model.txt_norm(condition.embeds))
        timestep = timestep.to(image.dtype)
        if model.zero_cond_t:
            timestep = torch.cat([timestep, timestep * 0])
        temb = model.time_text_embed(timestep, image)
        tables = self._positions.find(shapes, text.shape[1], image.device)
        mask = _join_mask(condition.mask, image)
        frames, height, width = shapes[0]
        run = run_block if self.is_eager else self._run_block
        for block in model.transformer_blocks:
            image, text = run(block, image, text, temb, tables, mask, frames * height * width)
        predicted: Tensor = model.proj_out(model.norm_out(image, temb[: len(image)]))
        return predicted


def _join_mask(mask: Tensor | None, image: Tensor) -> Tensor | None:
    """Return a text's mask, bool [batch, tokens], for both: every image token counts."""
    if mask is None:
        return None
    whole = torch.cat([mask, mask.new_ones(image.shape[:2])], dim=1)
    return whole[:, None, None]
