"""LIGHTNING_MERGE of an open model, switched on, and off again as no worker does."""

from importlib import import_module
from typing import Any, Final

from torch import Tensor, nn
from torch.nn import functional

from worker.engine.lora import LoraLinear, _name_buffer, fuse
from worker.families.qwen_image.components import Components

# The image stream, thousands of tokens long; the text's few hundred are multiplied packed.
IMAGE_MODULES: Final = (
    *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
    *("img_mlp.net.0.proj", "img_mlp.net.2"),
)


class _Combined(nn.Module):
    """A 4-bit Linear whose LoRA is added while its weight is unpacked."""

    def __init__(self, base: nn.Module, down: Tensor, up: Tensor) -> None:
        super().__init__()
        self.base = base
        self.register_buffer("down", down, persistent=False)
        self.register_buffer("up", up, persistent=False)
        self.combine = import_module("worker.engine.combine").combine_nf4

    def forward(self, x: Tensor) -> Tensor:
        base: Any = self.base
        return functional.linear(x, self.combine(base, self.down, self.up), base.bias)


def merge(parts: Components, name: str) -> dict[str, nn.Module]:
    """Put merged Linears in the place of those with a LoRA; return what was there, by name.

    What fails half-way leaves all as it was.
    """
    before: dict[str, nn.Module] = {}
    try:
        for module, wrapped in list(parts.transformer.named_modules()):
            if isinstance(wrapped, LoraLinear) and (made := _make(module, wrapped, name)):
                before[module] = wrapped
                _put(parts, module, made)
    except BaseException:
        split(parts, before)
        raise
    return before


def _make(module: str, wrapped: LoraLinear, name: str) -> nn.Module | None:
    """Return the merged Linear of a module; None where the LoRA stays beside it."""
    down, up = (getattr(wrapped, _name_buffer(name, side)) for side in ("down", "up"))
    base: Any = wrapped.base
    if type(base) is nn.Linear:
        made = nn.Linear(base.in_features, base.out_features, bias=False, device="meta")
        made.weight = nn.Parameter(fuse(base.weight, down, up), requires_grad=False)
        made.bias = base.bias
        return made
    if module.endswith(IMAGE_MODULES) and type(base).__name__ == "Linear4bit":
        return _Combined(base, down, up)
    return None


def split(parts: Components, before: dict[str, nn.Module]) -> None:
    """Put the LoRAs beside the weights again."""
    for module, wrapped in before.items():
        _put(parts, module, wrapped)


def _put(parts: Components, module: str, value: nn.Module) -> None:
    parent, _, leaf = module.rpartition(".")
    setattr(parts.transformer.get_submodule(parent), leaf, value)
