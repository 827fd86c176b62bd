"""A small transformer, LoRAs for it in the published formats, and its predictions with them."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers import QwenImageTransformer2DModel
from torch import Tensor

from worker.families.qwen_image.lightning import list_lightning_modules

BLOCKS, DIM, RANK = 2, 64, 4
MODULATION = [
    f"transformer_blocks.{block}.{stream}.1"
    for block in range(BLOCKS)
    for stream in ("img_mod", "txt_mod")
]
TIME = [f"time_text_embed.timestep_embedder.linear_{n}" for n in (1, 2)]
# every Linear of the model that any public LoRA reaches
REACHED = [
    *list_lightning_modules(BLOCKS),
    *MODULATION,
    *TIME,
    "img_in",
    "txt_in",
    "proj_out",
    "norm_out.linear",
]


def small_transformer(**config: Any) -> Any:
    """Make a transformer of two blocks with weights from a fixed seed."""
    torch.manual_seed(0)
    return QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=BLOCKS,
        attention_head_dim=32,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(8, 12, 12),
        **config,
    ).eval()


def published_lora(
    transformer: Any, seed: int, alpha: float = 2.0, *, modules: list[str] | None = None
) -> dict[str, Tensor]:
    """Make a LoRA with the published keys for the given modules, by default all of Lightning."""
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}
    for name in modules or list_lightning_modules(BLOCKS):
        linear = transformer.get_submodule(name)
        state[f"{name}.lora_down.weight"] = torch.randn(
            RANK, linear.in_features, generator=generator
        )
        state[f"{name}.lora_up.weight"] = torch.randn(
            linear.out_features, RANK, generator=generator
        )
        state[f"{name}.alpha"] = torch.tensor(alpha)
    return state


def renamed(state: Mapping[str, Tensor], name: Callable[[str, str], str]) -> dict[str, Tensor]:
    """Rename a published LoRA's keys: `name` maps a module and "down", "up" or "alpha" to a key."""
    tensors = {}
    for key, tensor in state.items():
        module, _, side = key.removesuffix(".weight").replace("lora_", "").rpartition(".")
        tensors[name(module, side)] = tensor
    return tensors


def predict(transformer: Any, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the output of one forward pass on fixed inputs."""
    generator = torch.Generator().manual_seed(1)
    with torch.inference_mode():
        output: Tensor = transformer(
            hidden_states=torch.randn(1, 16, 16, generator=generator).to(dtype),
            encoder_hidden_states=torch.randn(1, 5, 32, generator=generator).to(dtype),
            timestep=torch.tensor([0.5]).to(dtype),
            img_shapes=[[(1, 4, 4)]],
            return_dict=False,
        )[0]
    return output
