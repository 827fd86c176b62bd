"""Whether the schedule that a model is published with can be run: its options and timesteps."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import torch

from worker.engine.schedule import make_schedule
from worker.errors import WeightsUnavailable
from worker.families.qwen_image import rows
from worker.families.qwen_image.modulation import round_timesteps

FILE: Final = "scheduler/scheduler_config.json"
# Options of diffusers' scheduler on which no picture may depend.
REFUSED: Final = {
    "invert_sigmas": "the schedule would run backwards",
    "stochastic_sampling": "it adds noise that no seed repeats",
}
# The counts that a job may ask for, and latent tokens from 64x64 to 2048x2048 pixels: timesteps
# change monotonically with each, so that the ends cover everything between.
STEPS: Final = (2, 100)
TOKENS: Final = (16, 16384)


def check(config: Mapping[str, Any]) -> None:
    """Check that every timestep of a scheduler_config.json falls and has a modulation row.

    Raises WeightsUnavailable.
    """
    for option, reason in REFUSED.items():
        if config.get(option):
            raise WeightsUnavailable(f"{FILE}: {option} cannot be honoured: {reason}")
    try:
        available = rows.compute_keys(config).float()
        with np.errstate(all="ignore"):  # what is divided by zero shows below
            found = [make_schedule(config, n, tokens).timesteps for n in STEPS for tokens in TOKENS]
    except Exception as error:
        # whatever diffusers raises for such a configuration, it raises every time
        message = " ".join(str(error).split())[:200]
        raise WeightsUnavailable(
            f"{FILE} gives no schedule: {type(error).__name__}: {message}"
        ) from error
    for timesteps in found:
        if not bool(timesteps.isfinite().all()) or not bool((timesteps.diff() < 0).all()):
            raise WeightsUnavailable(f"{FILE} gives timesteps that do not fall")
        if not bool(torch.isin(round_timesteps(timesteps).float(), available).all()):
            raise WeightsUnavailable(
                f"{FILE} gives timesteps from {float(timesteps[0]):g} to {float(timesteps[-1]):g};"
                f" this worker computes its modulation from {float(available[-1]) * 1000:g} to"
                f" {float(available[0]) * 1000:g}"
            )
