"""The transformer's forward: diffusers' weights and modules, our own order of running them."""

from collections.abc import Hashable, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from worker.engine.cache import TensorCache
from worker.engine.compiled import Compiled
from worker.families.flux2.block import run_double, run_single

# A picture's place among the others (0 for the output, 10, 20 ... for references), and its height
# and width in tokens.
PicturePlace = tuple[int, int, int]
# 1 KB per token at 128 channels per head: the largest picture with four references of its size.
CACHED_BYTES: Final = 64 << 20


class Flux2Forward:
    """A Flux2Transformer2DModel as the denoising loop calls it.

    It gives what the module's own forward gives, to the last bit on a CPU, and never waits for the
    device: positions are cached by places. The modules are looked up at every call, so adapters may
    be attached and switched at any time. With `is_compiled` the blocks of each kind share compiled
    graphs, whose results differ by rounding. With `is_eager` they run as they are: each caller's
    LoRA would be a graph of its own, compiled while its job waits.
    """

    def __init__(self, transformer: Any, *, is_compiled: bool = False) -> None:
        self._transformer = transformer
        self._tables = TensorCache(CACHED_BYTES)
        self._run_double = Compiled(run_double) if is_compiled else run_double
        self._run_single = Compiled(run_single) if is_compiled else run_single
        self.is_eager = False

    @property
    def is_compiled(self) -> bool:
        """Return whether compiled blocks are in use."""
        kinds = (self._run_double, self._run_single)
        return all(isinstance(kind, Compiled) and kind.is_active for kind in kinds)

    def __call__(
        self,
        latents: Tensor,
        timestep: Tensor,
        prompt: Tensor,
        places: Sequence[PicturePlace],
        *,
        guidance: Tensor | None = None,
        shares: Tensor | None = None,
    ) -> Tensor:
        """Return the prediction for packed latents [batch, tokens, channels], in that shape.

        `latents` are the output's tokens and then every reference's, at `places`; `timestep`
        [batch] is 0 to 1, `prompt` [batch, tokens, dim]; `guidance` float32 [batch] is for a model
        that has it embedded; `shares` is that of `attend` for the joint sequence.
        """
        model = self._transformer
        temb = model.time_guidance_embed(
            timestep.to(latents.dtype) * 1000,
            None if guidance is None else guidance.to(latents.dtype) * 1000,
        )
        image_rows = model.double_stream_modulation_img(temb)
        text_rows = model.double_stream_modulation_txt(temb)
        rows = model.single_stream_modulation(temb)
        image, text = model.x_embedder(latents), model.context_embedder(prompt)
        table = self._find_table(places, text.shape[1], image.device)
        run = run_double if self.is_eager else self._run_double
        for block in model.transformer_blocks:
            image, text = run(block, image, text, image_rows, text_rows, table, shares)
        count = text.shape[1]
        tokens = torch.cat([text, image], dim=1)
        run_joint = run_single if self.is_eager else self._run_single
        for block in model.single_transformer_blocks:
            (tokens,) = run_joint(block, tokens, rows, table, shares)
        predicted: Tensor = model.proj_out(model.norm_out(tokens[:, count:], temb))
        return predicted

    def _find_table(
        self, places: Sequence[PicturePlace], text: int, device: torch.device
    ) -> Tensor:
        """Return the positions of the text's and the pictures' tokens as `rotate` takes them."""
        key: Hashable = (tuple(places), text, device)

        def compute() -> Tensor:
            ids = [torch.cartesian_prod(*map(torch.arange, (1, 1, 1, text)))]
            for place, height, width in places:
                axes = (torch.tensor([place]), torch.arange(height), torch.arange(width))
                ids.append(torch.cartesian_prod(*axes, torch.zeros(1, dtype=torch.long)))
            cos, sin = self._transformer.pos_embed(torch.cat(ids))
            signs = torch.tensor([-1.0, 1.0]).repeat(sin.shape[-1] // 2)
            return torch.stack([cos, sin * signs])[:, :, None].to(device)

        return self._tables.get(key, compute)
