"""What the transformer predicts at each step: its prompts, its references, guidance."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from worker.families.flux2.forward import Flux2Forward, PicturePlace


@dataclass(frozen=True, slots=True)
class Conditions:
    """What one batch is predicted from.

    `prompt` and, where CFG runs, `negative` are embeddings [batch, tokens, dim]; `references` are
    packed latents [batch, tokens, channels], None without any; `places` are the output's and then
    theirs. `guidance` float32 [batch] is the embedded one; `shares` is that of `attend`.
    """

    forward: Flux2Forward
    prompt: Tensor
    places: Sequence[PicturePlace]
    negative: Tensor | None = None
    true_cfg_scale: float = 1.0
    references: Tensor | None = None
    guidance: Tensor | None = None
    shares: Tensor | None = None

    def predict(self, latents: Tensor, timestep: Tensor, step: int) -> Tensor:
        """Return the velocity of packed latents [batch, tokens, channels], in their shape."""
        del step
        shown = latents
        if self.references is not None:
            shown = torch.cat([latents, self.references], dim=1)
        prediction = self._run(shown, timestep, self.prompt)[:, : latents.shape[1]]
        if self.negative is None:
            return prediction
        other = self._run(shown, timestep, self.negative)[:, : latents.shape[1]]
        return other + self.true_cfg_scale * (prediction - other)

    def keep(self, rows: Sequence[int]) -> "Conditions":
        """Return these rows of the batch."""
        kept = list(rows)
        return replace(
            self,
            prompt=self.prompt[kept],
            negative=None if self.negative is None else self.negative[kept],
            references=None if self.references is None else self.references[kept],
            guidance=None if self.guidance is None else self.guidance[kept],
        )

    def _run(self, shown: Tensor, timestep: Tensor, prompt: Tensor) -> Tensor:
        return self.forward(
            shown, timestep, prompt, self.places, guidance=self.guidance, shares=self.shares
        )
