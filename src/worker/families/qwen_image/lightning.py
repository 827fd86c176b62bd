"""Lightning: the modules that its LoRAs reach, and the schedule that they were distilled on."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from diffusers import FlowMatchEulerDiscreteScheduler

from worker.engine.schedule import make_schedule
from worker.errors import LoraNotApplied

# The twelve Linears of a block that the LoRAs reach (720 modules in 60 blocks); they contain
# no img_mod or txt_mod, so modulation rows serve every adapter.
LIGHTNING_MODULES: Final = (
    "attn.to_q",
    "attn.to_k",
    "attn.to_v",
    "attn.to_out.0",
    "attn.add_q_proj",
    "attn.add_k_proj",
    "attn.add_v_proj",
    "attn.to_add_out",
    "img_mlp.net.0.proj",
    "img_mlp.net.2",
    "txt_mlp.net.0.proj",
    "txt_mlp.net.2",
)
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


def list_lightning_modules(blocks: int) -> list[str]:
    """Name every module that a Lightning LoRA must reach in a transformer of `blocks` blocks."""
    return [
        f"transformer_blocks.{block}.{module}"
        for block in range(blocks)
        for module in LIGHTNING_MODULES
    ]


def make_lightning_schedule(
    steps: int, tokens: int, strength: float = 1.0
) -> FlowMatchEulerDiscreteScheduler:
    """Return Lightning's scheduler for 4 or 8 steps, begun at `strength`.

    Raises LoraNotApplied when its timesteps are not those that the LoRA was distilled on: a wrong
    schedule shows as a washed-out picture, not as an error.
    """
    complete = make_schedule(LIGHTNING, steps, tokens)
    expected = LIGHTNING_TIMESTEPS.get(steps)
    if expected is None or not np.allclose(complete.timesteps.numpy(), expected):
        raise LoraNotApplied(f"the Lightning schedule for {steps} steps is not the distilled one")
    return make_schedule(LIGHTNING, steps, tokens, strength=strength)
