"""The denoising loop: noise to latents, with a model's predictions and diffusers' scheduler."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

# Latents [batch, tokens, channels], the timestep [batch] that the model sees (0 to 1, in the
# latents' dtype) and the step's index -> the velocity, in the latents' shape.
Predict = Callable[[Tensor, Tensor, int], Tensor]
# A step that is done and how many there are -> the rows to go on with, None for all of them.
OnStep = Callable[[int, int], Sequence[int] | None]
# The latents after a step and the sigma that they have there -> the latents to go on with.
Correct = Callable[[Tensor, float], Tensor]

# A step that is done, how many there are, and what computes how the final latents look from there.
Watch = Callable[[int, int, Callable[[], Tensor]], None]


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


def make_noise(
    seeds: Sequence[int], channels: int, height: int, width: int, dtype: torch.dtype
) -> Tensor:
    """Return the packed starting noise of each seed, [len(seeds), tokens, 4 * channels].

    `height` and `width` are latent sizes.
    """
    return pack(sample_noise(seeds, (channels, height, width), dtype))


def sample_noise(seeds: Sequence[int], shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return the starting noise of each seed, [len(seeds), *shape].

    Generated on the CPU in the model's dtype, so that a seed means the same noise on every GPU type
    and in every batch.
    """
    return torch.stack(
        [
            torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed), dtype=dtype)
            for seed in seeds
        ]
    )


def keep_all(step: int, steps: int) -> None:
    """Go on with every row."""
    del step, steps


def watch_nothing(step: int, steps: int, estimate: Callable[[], Tensor]) -> None:
    """Look at no step."""
    del step, steps, estimate


def correct_nothing(latents: Tensor, sigma: float) -> Tensor:
    """Go on with the latents as they are."""
    del sigma
    return latents


class _Pace:
    """Keep the CPU at most one step ahead of the GPU, so that a stop takes effect within a step."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._last: Any = None  # torch leaves an event's methods untyped

    def step(self) -> None:
        if not self._cuda:
            return
        if self._last is not None:
            self._last.synchronize()
        self._last = torch.cuda.Event()
        self._last.record()


@torch.inference_mode()
def sample(
    predict: Predict,
    scheduler: Any,
    latents: Tensor,
    *,
    on_step: OnStep = keep_all,
    correct: Correct = correct_nothing,
    watch: Watch = watch_nothing,
) -> Tensor:
    """Denoise packed latents [batch, tokens, channels] and return them, same shape and dtype.

    `scheduler` has its timesteps set (float32 [steps], 1000 to 0). `correct` changes the latents
    after each step. `on_step(step, steps)` is called
    after each step; it may raise to stop there, or name the rows that are still of use: the others
    are left out of the latents from then on. `watch(step, steps, estimate)` is called before it;
    `estimate()` returns the latents that all of the last prediction would lead to: x - sigma v,
    since v is the noise less the picture (arXiv 2210.02747). It changes nothing of what follows.
    """
    timesteps, sigmas = scheduler.timesteps, scheduler.sigmas.tolist()
    pace = _Pace(latents.device)
    # divided on the CPU: CUDA multiplies by 1/1000, which rounds some bf16 values to their
    # neighbour, and what was precomputed for a timestep is found by its exact value
    seen = (timesteps.to(latents.dtype) / 1000).to(latents.device)
    for step, t in enumerate(timesteps):
        prediction = predict(latents, seen[step].expand(len(latents)), step)
        latents = scheduler.step(prediction, t, latents, return_dict=False)[0]
        estimate = _make_estimate(latents, prediction, sigmas[step + 1], correct)
        latents = correct(latents, sigmas[step + 1])
        pace.step()
        watch(step + 1, len(timesteps), estimate)
        rows = on_step(step + 1, len(timesteps))
        if rows is not None:
            latents = latents[list(rows)]
    return latents


def _make_estimate(
    latents: Tensor, velocity: Tensor, sigma: float, correct: Correct
) -> Callable[[], Tensor]:
    def estimate() -> Tensor:
        ends = latents.float() - sigma * velocity.float()
        return correct(ends.to(latents.dtype), 0.0)

    return estimate
