"""The denoising schedule of a scheduler_config.json: the timesteps for a number of steps."""

from collections.abc import Mapping
from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler

from worker.engine.begin import list_sigmas


def _compute_shift(config: Mapping[str, Any], tokens: int) -> float:
    """Return mu for a picture of `tokens` latent tokens (diffusers' calculate_shift).

    `config` is a scheduler's own, which is complete.
    """
    base, top = config["base_image_seq_len"], config["max_image_seq_len"]
    low, high = config["base_shift"], config["max_shift"]
    slope = (high - low) / (top - base)
    return float(tokens * slope + (low - slope * base))


def make_schedule(
    config: Mapping[str, Any],
    steps: int,
    tokens: int,
    *,
    mu: float | None = None,
    strength: float = 1.0,
) -> FlowMatchEulerDiscreteScheduler:
    """Return a fresh scheduler with its `steps` timesteps set (float32 [steps], 1000 to 0).

    `config` is a scheduler_config.json; `tokens` counts the latent tokens of the output picture,
    from which `mu`, the shift of the sigmas, is computed unless a family has another formula. A
    scheduler keeps its position in the loop, so every picture gets its own. Its numbers stay on the
    CPU: scalars reach a GPU with the kernels that use them, without a sync.

    With a `strength` below 1 it begins there, between two of its steps, and has only those that
    follow. A schedule that ends at a `shift_terminal` is stretched by its last step: no strength
    begins below that one.
    """
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(dict(config))
    if scheduler.config["shift_terminal"]:
        strength = max(strength, 1 / steps)
    sigmas = list_sigmas(steps, strength)
    shift = _compute_shift(scheduler.config, tokens) if mu is None else mu
    scheduler.set_timesteps(sigmas=sigmas, mu=shift)
    scheduler.set_begin_index(0)
    return scheduler
