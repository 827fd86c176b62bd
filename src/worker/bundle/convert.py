"""What one published shard becomes: its tensors renamed, a LoRA added, quantised or cast."""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from worker.bundle import headers
from worker.bundle.headers import Shard
from worker.bundle.layout import WEIGHTS
from worker.bundle.recipe import Work
from worker.bundle.stream import ReadTensor, Transform
from worker.engine import lora
from worker.engine.quantise import is_quantised, quantise
from worker.errors import LoraNotApplied


def make_transform(work: Work) -> Transform:
    """Return what turns a part's shards into its files."""
    return work.part.replaced.transform(work) if work.part.replaced else Weights(work)


class Weights:
    """Quantise or cast every tensor that a part keeps; the work is done on its device."""

    def __init__(self, work: Work) -> None:
        self._part = work.part
        self._precision = work.part.choose_precision(work.precision)
        self._device = work.device
        self._lora = work.lora or {}

    def __call__(self, shard: Shard, read: ReadTensor) -> dict[str, dict[str, Tensor]]:
        """Return the tensors of the bundle's file for this shard."""
        tensors: dict[str, Tensor] = {}
        for name, entry in shard.header.items():
            kept = self._part.keep(name)
            if kept is None or self._part.is_replaced(kept):
                continue
            tensor = self.fuse(kept, read(name))
            if is_quantised(self._part.quantised, kept, entry.shape, self._precision):
                stem = kept.removesuffix("weight")
                parts = quantise(tensor, self._precision, self._device)
                tensors |= {stem + suffix: part for suffix, part in parts.items()}
            else:
                tensors[kept] = tensor if self._part.is_exact else cast_to_bf16(tensor)
        return {WEIGHTS: tensors}

    def fuse(self, name: str, tensor: Tensor) -> Tensor:
        """Return a tensor with what the LoRA adds to it, in bf16, or unchanged without a LoRA."""
        module = name.removesuffix(".weight")
        down = self._lora.get(f"{module}.lora_A.weight")
        if down is None or not name.endswith(".weight"):
            return tensor
        up = self._lora[f"{module}.lora_B.weight"]
        base = cast_to_bf16(tensor).to(self._device)
        return lora.fuse(base, down.to(self._device), up.to(self._device)).cpu()


def cast_to_bf16(tensor: Tensor) -> Tensor:
    """Return a floating tensor in bf16 and any other unchanged."""
    return tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor


def check_lora(
    state: Mapping[str, Tensor], shards: Sequence[Shard], expected: Collection[str]
) -> None:
    """Check before any work that a Lightning LoRA reaches every module that it must.

    Raises LoraNotApplied for a missing or unknown module, or one of another shape.
    """
    required = set(expected)
    found = {key.rsplit(".lora_", 1)[0] for key in state}
    if found != required:
        raise LoraNotApplied(
            f"the LoRA reaches {len(found & required)} of the model's {len(required)} modules, and"
            f" {len(found - required)} that are not the model's"
        )
    weights = headers.merge(shards)
    for module in sorted(found):
        entry = weights.get(f"{module}.weight")
        fits = (
            state[f"{module}.lora_B.weight"].shape[0],
            state[f"{module}.lora_A.weight"].shape[1],
        )
        if entry is None or entry.shape != fits:
            raise LoraNotApplied(f"the LoRA's {module} does not fit the model's")
