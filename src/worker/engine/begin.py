"""Begin from a picture instead of noise, and keep the part of it that a mask leaves."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# A strength that is this near a step of the schedule begins at it: 25 * 0.56 is 14.000000000000002.
ROUNDING = 1e-6


def list_sigmas(steps: int, strength: float) -> NDArray[np.float64]:
    """Return the unshifted sigmas of a schedule of `steps` that begins at `strength`, 0 to 1.

    The first is `strength` itself, the others are the complete schedule's below it. So the start
    follows the strength without a jump, and m steps of n are exactly those of diffusers'
    `get_timesteps` where the strength is m / n.
    """
    every = np.linspace(1.0, 1 / steps, steps)
    place = strength * steps
    if abs(place - round(place)) < ROUNDING:
        return every[steps - round(place) :]
    return np.concatenate([[strength], every[steps - math.floor(place) :]])


def mix_noise(source: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """Return latents with as much noise as `sigma`, 0 to 1, in the dtype of `source`.

    The formula of FlowMatchEulerDiscreteScheduler.scale_noise, in float32: rounded to bf16 first,
    a sigma of 0.729 is one of 0.7305.
    """
    mixed = sigma * noise.float() + (1.0 - sigma) * source.float()
    return mixed.to(source.dtype)


@dataclass(frozen=True, slots=True)
class Beginning:
    """The pictures that a batch begins from: packed latents and noise [batch, tokens, channels].

    `repainted` is bool, of the same shape, and False where a picture stays what it is; None: it may
    change everywhere.
    """

    latents: Tensor
    noise: Tensor
    repainted: Tensor | None = None

    def begin(self, sigma: float) -> Tensor:
        """Return the latents that a schedule begins with whose first sigma is `sigma`."""
        return mix_noise(self.latents, self.noise, sigma)

    def restore(self, latents: Tensor, sigma: float) -> Tensor:
        """Return the latents after a step, what stays being the source again, as noisy as they are.

        After the last step `sigma` is 0: there it is the source itself.
        """
        if self.repainted is None:
            return latents
        return torch.where(self.repainted, latents, self.begin(sigma))

    def keep(self, rows: Sequence[int]) -> "Beginning":
        """Return these rows of the batch."""
        kept = list(rows)
        repainted = None if self.repainted is None else self.repainted[kept]
        return replace(
            self, latents=self.latents[kept], noise=self.noise[kept], repainted=repainted
        )
