"""The denoising loop: noise to latents, over diffusers' transformer and scheduler."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from worker.engine.modulation import Modulation

LatentShape = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Conditioning:
    """Prompt embeddings [batch, tokens, dim]; `mask` bool [batch, tokens], None when all count."""

    embeds: Tensor
    mask: Tensor | None = None


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


def pack(latents: Tensor) -> Tensor:
    """Turn latents [batch, channels, h, w] into tokens [batch, h/2 * w/2, 4 * channels]."""
    batch, channels, height, width = latents.shape
    patches = latents.view(batch, channels, height // 2, 2, width // 2, 2)
    tokens = patches.permute(0, 2, 4, 1, 3, 5)
    return tokens.reshape(batch, (height // 2) * (width // 2), channels * 4)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """Turn tokens into latents [batch, channels, 1, height, width]: latent sizes, one frame."""
    batch, _, channels = tokens.shape
    patches = tokens.view(batch, height // 2, width // 2, channels // 4, 2, 2)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(batch, channels // 4, 1, height, width)


def noise(
    seeds: Sequence[int], channels: int, height: int, width: int, dtype: torch.dtype
) -> Tensor:
    """Return the packed starting noise of each seed, [len(seeds), tokens, 4 * channels].

    Drawn on the CPU in the model's dtype, so that a seed means the same noise on every GPU type and
    in every batch; `height` and `width` are latent sizes.
    """
    pictures = [
        torch.randn(
            (1, 1, channels, height, width),
            generator=torch.Generator("cpu").manual_seed(seed),
            dtype=dtype,
        )
        for seed in seeds
    ]
    return pack(torch.cat(pictures)[:, 0])


def _guided(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Return true CFG with the norm of the conditional prediction (diffusers' Qwen pipelines)."""
    combined = unconditional + scale * (conditional - unconditional)
    wanted = torch.norm(conditional, dim=-1, keepdim=True)
    guided: Tensor = combined * (wanted / torch.norm(combined, dim=-1, keepdim=True))
    return guided


class _Pace:
    """Keep the CPU at most one step ahead of the GPU, so that a stop takes effect within a step."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._last: torch.cuda.Event | None = None

    def step(self) -> None:
        if not self._cuda:
            return
        if self._last is not None:
            self._last.synchronize()
        self._last = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._last.record()


@torch.inference_mode()
def denoise(  # noqa: PLR0913 - a loop has that many inputs, and each is named
    transformer: Any,
    modulation: Modulation,
    scheduler: Any,
    latents: Tensor,
    prompt: Conditioning,
    shapes: Sequence[LatentShape],
    *,
    negative: Conditioning | None = None,
    true_cfg_scale: float = 1.0,
    references: Tensor | None = None,
    on_step: Callable[[int, int], None] = lambda _step, _steps: None,
) -> Tensor:
    """Denoise packed latents [batch, tokens, channels] and return them, same shape and dtype.

    `shapes` are the (frames, height, width) in tokens of the output and then of every reference;
    `references` are their packed latents [batch, reference tokens, channels]. With `negative`,
    every step runs two forwards (true CFG), as the stock pipelines do. `on_step(step, steps)` is
    called after each step and may raise to stop there.
    """
    batch, tokens = latents.shape[:2]
    timesteps = scheduler.timesteps
    modulation.load(timesteps)
    pace = _Pace(latents.device)
    img_shapes = [list(shapes)] * batch

    def predict(given: Tensor, timestep: Tensor, condition: Conditioning) -> Tensor:
        prediction: Tensor = transformer(
            hidden_states=given,
            timestep=timestep,
            encoder_hidden_states=condition.embeds,
            encoder_hidden_states_mask=condition.mask,
            img_shapes=img_shapes,
            return_dict=False,
        )[0]
        return prediction[:, :tokens]

    # divided on the CPU as the rows' keys are: CUDA multiplies by 1/1000, which rounds some bf16
    # values to their neighbour
    seen = (timesteps.to(latents.dtype) / 1000).to(latents.device)
    for step, t in enumerate(timesteps):
        given = latents if references is None else torch.cat([latents, references], dim=1)
        timestep = seen[step].expand(batch)
        modulation.select(step)
        prediction = predict(given, timestep, prompt)
        if negative is not None:
            prediction = _guided(prediction, predict(given, timestep, negative), true_cfg_scale)
        latents = scheduler.step(prediction, t, latents, return_dict=False)[0]
        pace.step()
        on_step(step + 1, len(timesteps))
    return latents
