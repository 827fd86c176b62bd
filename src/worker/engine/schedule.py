"""The denoising schedules: the model's own, and Lightning's, which its LoRA was distilled on."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from diffusers import FlowMatchEulerDiscreteScheduler

from worker.errors import LoraNotApplied

# Qwen-Image-Lightning's own generation script sets these; with base_shift = max_shift = ln 3 the
# timesteps are the same at every resolution.
LIGHTNING: Final[Mapping[str, Any]] = {
    "base_image_seq_len": 256,
    "base_shift": float(np.log(3)),
    "invert_sigmas": False,
    "max_image_seq_len": 8192,
    "max_shift": float(np.log(3)),
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "shift_terminal": None,
    "stochastic_sampling": False,
    "time_shift_type": "exponential",
    "use_beta_sigmas": False,
    "use_dynamic_shifting": True,
    "use_exponential_sigmas": False,
    "use_karras_sigmas": False,
}
# 3s / (1 + 2s) for s = 1, 1 - 1/n, ..., 1/n, in thousandths
LIGHTNING_TIMESTEPS: Final[Mapping[int, tuple[float, ...]]] = {
    4: (1000.0, 900.0, 750.0, 500.0),
    8: (1000.0, 954.5455, 900.0, 833.3333, 750.0, 642.8571, 500.0, 300.0),
}


def _shift(config: Mapping[str, Any], tokens: int) -> float:
    """Return mu for a picture of `tokens` latent tokens (diffusers' calculate_shift).

    `config` is a scheduler's own, in which nothing is left out.
    """
    base, top = config["base_image_seq_len"], config["max_image_seq_len"]
    low, high = config["base_shift"], config["max_shift"]
    slope = (high - low) / (top - base)
    return float(tokens * slope + (low - slope * base))


def schedule(config: Mapping[str, Any], steps: int, tokens: int) -> FlowMatchEulerDiscreteScheduler:
    """Return a fresh scheduler with its `steps` timesteps set (float32 [steps], 1000 to 0).

    `config` is a scheduler_config.json; `tokens` counts the latent tokens of the output picture.
    A scheduler keeps its place in the loop, so every picture gets its own. Its numbers stay on the
    CPU: scalars travel to a GPU with the kernels that use them, without a sync.
    """
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(dict(config))
    sigmas = np.linspace(1.0, 1 / steps, steps)
    scheduler.set_timesteps(sigmas=sigmas, mu=_shift(scheduler.config, tokens))
    scheduler.set_begin_index(0)
    return scheduler


def lightning(steps: int, tokens: int) -> FlowMatchEulerDiscreteScheduler:
    """Return Lightning's scheduler for 4 or 8 steps.

    Raises LoraNotApplied when its timesteps are not those that the LoRA was distilled on: a wrong
    schedule shows as a washed-out picture, not as an error.
    """
    scheduler = schedule(LIGHTNING, steps, tokens)
    expected = LIGHTNING_TIMESTEPS.get(steps)
    if expected is None or not np.allclose(scheduler.timesteps.numpy(), expected):
        raise LoraNotApplied(f"the Lightning schedule for {steps} steps is not the distilled one")
    return scheduler
