"""What the transformer predicts at each step: its prompts, its references, true CFG."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from worker.engine.begin import Beginning
from worker.engine.condition import denoise_from
from worker.engine.sampler import OnStep, Watch, keep_all, watch_nothing
from worker.families.qwen_image.modulation import Modulation

LatentShape = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Conditioning:
    """Prompt embeddings [batch, tokens, dim]; `mask` bool [batch, tokens], None when all count."""

    embeds: Tensor
    mask: Tensor | None = None

    def keep(self, rows: Sequence[int]) -> "Conditioning":
        """Return these rows of the batch."""
        kept = list(rows)
        return Conditioning(self.embeds[kept], None if self.mask is None else self.mask[kept])


class Predictor(Protocol):
    """The transformer, as the loop calls it."""

    def __call__(
        self,
        latents: Tensor,
        timestep: Tensor,
        condition: Conditioning,
        shapes: Sequence[LatentShape],
    ) -> Tensor:
        """Return the prediction for `latents` [batch, tokens, channels], in their shape."""


def stack(prompts: Sequence[Conditioning]) -> Conditioning:
    """Join prompts along the batch, padded to the longest; no mask when all lengths are equal.

    A mask turns flash attention off, so callers group prompts of equal length where they can.
    """
    longest = max(p.embeds.shape[1] for p in prompts)
    if all(p.embeds.shape[1] == longest and p.mask is None for p in prompts):
        return Conditioning(torch.cat([p.embeds for p in prompts]))
    embeds, masks = [], []
    for prompt in prompts:
        missing = longest - prompt.embeds.shape[1]
        mask = prompt.mask
        if mask is None:
            mask = prompt.embeds.new_ones(prompt.embeds.shape[:2], dtype=torch.bool)
        embeds.append(torch.nn.functional.pad(prompt.embeds, (0, 0, 0, missing)))
        masks.append(torch.nn.functional.pad(mask, (0, missing)))
    return Conditioning(torch.cat(embeds), torch.cat(masks))


def _guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Return true CFG with the norm of the conditional prediction (diffusers' Qwen pipelines)."""
    combined = unconditional + scale * (conditional - unconditional)
    norm = torch.norm(conditional, dim=-1, keepdim=True)
    guided: Tensor = combined * (norm / torch.norm(combined, dim=-1, keepdim=True))
    return guided


@dataclass(frozen=True, slots=True)
class _Rows:
    """What one batch is predicted from; the fields are those of `denoise`."""

    forward: Predictor
    modulation: Modulation
    prompt: Conditioning
    shapes: Sequence[LatentShape]
    negative: Conditioning | None
    true_cfg_scale: float
    references: Tensor | None

    def predict(self, latents: Tensor, timestep: Tensor, step: int) -> Tensor:
        """Return the velocity of packed latents [batch, tokens, channels], in their shape."""
        tokens = latents.shape[1]
        self.modulation.select(step)
        shown = latents
        if self.references is not None:
            shown = torch.cat([latents, self.references], dim=1)
        prediction = self.forward(shown, timestep, self.prompt, self.shapes)[:, :tokens]
        if self.negative is None:
            return prediction
        unconditional = self.forward(shown, timestep, self.negative, self.shapes)[:, :tokens]
        return _guide(prediction, unconditional, self.true_cfg_scale)

    def keep(self, rows: Sequence[int]) -> "_Rows":
        """Return these rows of the batch."""
        return replace(
            self,
            prompt=self.prompt.keep(rows),
            negative=None if self.negative is None else self.negative.keep(rows),
            references=None if self.references is None else self.references[list(rows)],
        )


@torch.inference_mode()
def denoise(  # noqa: PLR0913 - a loop has that many inputs, and each is named
    forward: Predictor,
    modulation: Modulation,
    scheduler: Any,
    noise: Tensor,
    prompt: Conditioning,
    shapes: Sequence[LatentShape],
    *,
    beginning: Beginning | None = None,
    negative: Conditioning | None = None,
    true_cfg_scale: float,
    references: Tensor | None = None,
    on_step: OnStep = keep_all,
    watch: Watch = watch_nothing,
) -> Tensor:
    """Denoise packed noise [batch, tokens, channels] and return the latents, same shape and dtype.

    With a `beginning` they begin from that, with as much of its noise as the schedule's first step
    has, and keep of it what its mask says. `shapes` are the (frames, height, width) in tokens of
    the output and then of every reference; `references` are their packed latents [batch, reference
    tokens, channels]. With `negative`, every step runs two forwards (true CFG), as the stock
    pipelines do. `on_step(step, steps)` is called after each step; it may raise to stop there, or
    name the rows to go on with. `watch` is that of `sample`.
    """
    modulation.load(scheduler.timesteps)
    condition = _Rows(forward, modulation, prompt, shapes, negative, true_cfg_scale, references)
    return denoise_from(
        condition, scheduler, noise, beginning=beginning, on_step=on_step, watch=watch
    )
