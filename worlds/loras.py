"""A small transformer, LoRAs for it in the published formats, and its predictions with them."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import QwenImageTransformer2DModel
from safetensors.torch import save_file
from torch import Tensor

from worker.families.qwen_image.lightning import list_lightning_modules
from worker.families.qwen_image.modulation import RowPart, RowTable, round_timesteps

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


@dataclass(frozen=True, slots=True)
class KeyForm:
    """How one kind of program writes the keys and the scale of a LoRA.

    `record` is where alpha and rank are stated: a tensor per module, the file's metadata, the
    adapter_config.json next to it, or nowhere. `is_stock` says whether diffusers' loader reads it
    as it was trained.
    """

    prefix: str
    down: str
    up: str
    record: Literal["alpha", "metadata", "configuration", "none"]
    is_flat: bool = False
    is_stock: bool = True


AB = "lora_A.weight", "lora_B.weight"
DOWN_UP = "lora_down.weight", "lora_up.weight"
DEFAULT = "lora_A.default.weight", "lora_B.default.weight"
# The forms of public files, by what writes them.
FORMS = {
    "lightx2v": KeyForm("", *DOWN_UP, "alpha"),
    "lightx2v for ComfyUI": KeyForm("diffusion_model.", *DOWN_UP, "alpha"),
    "fal": KeyForm("transformer.", *AB, "none"),
    "diffusers": KeyForm("transformer.", *AB, "metadata"),
    "ai-toolkit": KeyForm("diffusion_model.", *AB, "none"),
    "ai-toolkit with alpha": KeyForm("diffusion_model.", *AB, "alpha"),
    "peft without a prefix": KeyForm("", *AB, "none", is_stock=False),
    "DiffSynth": KeyForm("", *DEFAULT, "none"),
    "musubi": KeyForm("lora_unet_", *DOWN_UP, "alpha", is_flat=True),
    "LyCORIS": KeyForm("lycoris_", *DOWN_UP, "alpha", is_flat=True, is_stock=False),
    "peft": KeyForm("base_model.model.", *AB, "configuration", is_stock=False),
    "OneTrainer": KeyForm("transformer.", *DOWN_UP, "alpha", is_stock=False),
    "old diffusers": KeyForm(
        "transformer.", "lora.down.weight", "lora.up.weight", "none", is_stock=False
    ),
    "by hand": KeyForm("model.diffusion_model.", *AB, "none", is_stock=False),
    "by hand, unet": KeyForm("unet.", *AB, "none", is_stock=False),
}
# Which form of FORMS the stock loader reads in place of one that it does not.
TWINS: dict[str, str] = {"alpha": "ai-toolkit with alpha", "none": "fal"}
TWINS["configuration"] = TWINS["metadata"] = "diffusers"


def write_form(
    pairs: Mapping[str, tuple[Tensor, Tensor]], alpha: float, form: KeyForm, path: Path
) -> bytes | None:
    """Write A and B of each module in a form; return the adapter_config.json next to the file.

    Without a record the scale is 1, whatever `alpha` is.
    """
    state = {}
    for module, (down, up) in pairs.items():
        name = form.prefix + (module.replace(".", "_") if form.is_flat else module)
        state[f"{name}.{form.down}"], state[f"{name}.{form.up}"] = down, up
        if form.record == "alpha":
            state[f"{name}.alpha"] = torch.tensor(alpha)
    rank = next(iter(pairs.values()))[0].shape[0]
    stated = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "target_modules": [*pairs]}
    metadata = {"format": "pt"}
    if form.record == "metadata":
        record = {f"transformer.{key}": value for key, value in stated.items()}
        metadata["lora_adapter_metadata"] = json.dumps(record)
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, path, metadata)
    return json.dumps(stated).encode() if form.record == "configuration" else None


def random_pairs(
    transformer: Any, modules: Iterable[str], seed: int, size: float
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return random A and B of rank RANK for modules of a transformer with all its weights."""
    generator = torch.Generator().manual_seed(seed)
    pairs = {}
    for module in modules:
        linear = transformer.get_submodule(module)
        down = torch.randn(RANK, linear.in_features, generator=generator)
        up = torch.randn(linear.out_features, RANK, generator=generator)
        pairs[module] = size * down, size * up
    return pairs


def table_of(model: Any, timesteps: torch.Tensor) -> RowTable:
    """Ask the model's own modules for its rows, one timestep at a time, as a forward would."""
    keys = torch.unique(round_timesteps(timesteps).float()).to(torch.bfloat16)
    hidden = torch.empty(0, dtype=torch.bfloat16)
    flag = torch.zeros(1, dtype=torch.long) if model.config.use_additional_t_cond else None
    rows, zero = [], torch.empty(0, 6 * model.inner_dim, dtype=torch.bfloat16)
    with torch.inference_mode():
        for key in keys:
            timestep = torch.stack([key, key * 0]) if model.zero_cond_t else key[None]
            temb = model.time_text_embed(timestep, hidden, flag)
            image = torch.stack([b.img_mod(temb) for b in model.transformer_blocks])
            text = torch.stack([b.txt_mod(temb[:1]) for b in model.transformer_blocks])
            rows.append(torch.cat([image[:, 0], text[:, 0]]))
            zero = image[:, 1] if model.zero_cond_t else zero
    table, half = torch.stack(rows), len(model.transformer_blocks)
    # two files, as if the blocks lay in two shards: one has every image stream, one every text's
    parts = (
        RowPart(table[:, :half], torch.arange(half), zero, torch.arange(len(zero))),
        RowPart(table[:, half:], torch.arange(half, 2 * half), zero[:0], torch.arange(0)),
    )
    return RowTable(keys, parts)
