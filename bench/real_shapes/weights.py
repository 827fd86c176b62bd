"""Random weights, made on the device one tensor at a time, the same for every build of a name."""

import re
import zlib
from collections.abc import Mapping
from math import prod
from typing import Any, Final

import torch
from torch import Tensor, nn

from worker.bundle.fill import fill
from worker.bundle.recipe import Recipe
from worker.engine.quantise import Precision, quantise
from worker.families.qwen_image.lightning import LIGHTNING_MODULES
from worker.families.qwen_image.recipe import RECIPE

RANK: Final = 64  # of the published Lightning LoRAs
# the usual recipe keeps the first block's img_mod, the most sensitive layer, in bf16
MODULATION: Final = re.compile(
    r"transformer_blocks\.(?!0\.img_mod)\d+\.(img_mod|txt_mod)\.1\.weight"
)


def draw_normal(name: str, shape: tuple[int, ...], scale: float, device: torch.device) -> Tensor:
    """Return normal values in bf16 that follow from a name."""
    made = torch.empty(shape, dtype=torch.bfloat16, device=device)
    if made.is_meta:
        return made
    generator = torch.Generator(device).manual_seed(zlib.crc32(name.encode()))
    return made.normal_(0.0, scale, generator=generator)


def value(owner: nn.Module, name: str, like: Tensor, device: torch.device) -> Tensor:
    """Return a parameter's values in bf16: norms 1, biases 0, weights normal by their fan-in.

    A variance is 1 too. So activations keep their size from layer to layer, and sixty blocks stay
    finite.
    """
    shape, last = tuple(like.shape), name.rpartition(".")[2]
    is_norm = "norm" in type(owner).__name__.lower() and last in {"weight", "gamma"}
    if is_norm or last == "running_var":
        return torch.ones(shape, dtype=torch.bfloat16, device=device)
    if last == "bias" or len(shape) == 1:
        return torch.zeros(shape, dtype=torch.bfloat16, device=device)
    return draw_normal(name, shape, prod(shape[1:]) ** -0.5, device)


def made(
    model: nn.Module,
    device: torch.device,
    quantised: Mapping[str, Precision],
    *,
    below: str = "",
) -> dict[str, Tensor]:
    """Return the tensors of every parameter without storage, as `bundle.open.fill` takes them.

    `quantised` maps names of weights to their precision. Only the names under `below` are made
    where it is given.
    """
    held: dict[str, Tensor] = {}
    for path, owner in model.named_modules():
        for leaf, like in owner.named_parameters(recurse=False):
            name = f"{path}.{leaf}"
            if not like.is_meta or not name.startswith(below):
                continue
            tensor = value(owner, name, like, device)
            if name not in quantised:
                held[name] = tensor
                continue
            for key, part in quantise(tensor, quantised[name], device).items():
                held[f"{path}.{key}"] = part
    return held


def build(
    model: nn.Module,
    device: torch.device,
    precision: Precision,
    *,
    every_linear: bool = False,
    role: str = "transformer",
    recipe: Recipe = RECIPE,
) -> Any:
    """Give a model without storage random weights on a device, at a precision, and return it.

    Ours quantises what a bundle quantises; `every_linear` also the modulation: what users of the
    stock pipeline do.
    """
    chosen: dict[str, Precision] = {}
    names = recipe.find_part(role).quantised
    if precision != "bf16" and names is not None:
        for name, _ in model.named_parameters():
            if names.fullmatch(name) or (every_linear and MODULATION.fullmatch(name)):
                chosen[name] = precision
    fill(model, made(model, device, chosen), precision, device)
    return model


def share_leaves(model: nn.Module, other: nn.Module) -> None:
    """Give a model every module without children that another has under the same name.

    Never more at once: transformers' layers keep what they give for one model, by hooks.
    """
    found = dict(other.named_modules())
    for path, module in list(model.named_modules()):
        own = found.get(path)
        if own is not None and next(module.children(), None) is None:
            parent, _, leaf = path.rpartition(".")
            setattr(model.get_submodule(parent), leaf, own)


def fill_plain(model: nn.Module, device: torch.device) -> None:
    """Give every parameter without storage random weights in bf16."""
    fill(model, made(model, device, {}), "bf16", device)


def lora(name: str, shape: tuple[int, ...], steps: int, device: torch.device) -> Tensor:
    """Return one matrix of a random Lightning LoRA in bf16."""
    scale = shape[1] ** -0.5 if ".lora_A." in name else 0.02
    return draw_normal(f"{steps} {name}", shape, scale, device)


def lightning(transformer: Any, steps: int, device: torch.device) -> dict[str, Tensor]:
    """Return a random Lightning LoRA in bf16: all twelve modules of every block, rank 64."""
    state: dict[str, Tensor] = {}
    for block in range(len(transformer.transformer_blocks)):
        for module in LIGHTNING_MODULES:
            name = f"transformer_blocks.{block}.{module}"
            target = transformer.get_submodule(name)
            target = getattr(target, "base", target)  # an adapter may stand before it
            sides = {
                f"{name}.lora_A.weight": (RANK, target.in_features),
                f"{name}.lora_B.weight": (target.out_features, RANK),
            }
            state |= {key: lora(key, shape, steps, device) for key, shape in sides.items()}
    return state
