"""What one published shard becomes: renamed, fused, quantised or cast, its modulation as rows."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from worker.bundle import plan, rows, tensors
from worker.bundle.format import ROWS, WEIGHTS
from worker.bundle.plan import MODULATION, Shard
from worker.bundle.stream import Read
from worker.engine import lora
from worker.engine.quantise import Precision, is_quantised, quantise
from worker.errors import LoraNotApplied, WeightsUnavailable
from worker.weights.snapshot import Snapshot


class Weights:
    """Quantise or cast every kept tensor of a component; `device` does the work."""

    def __init__(self, role: str, precision: Precision, device: torch.device) -> None:
        self._role = role
        self._precision = precision
        self._device = device

    def __call__(self, shard: Shard, read: Read) -> dict[str, dict[str, Tensor]]:
        """Return the tensors of the bundle's file for this shard."""
        held: dict[str, Tensor] = {}
        for name, entry in shard.header.items():
            kept = plan.target(self._role, name)
            if kept is None or self._is_elsewhere(kept):
                continue
            tensor = self._published(kept, read(name))
            if is_quantised(self._role, kept, entry.shape, self._precision):
                stem = kept.removesuffix("weight")
                parts = quantise(tensor, self._precision, self._device)
                held |= {stem + suffix: part for suffix, part in parts.items()}
            else:
                held[kept] = bf16(tensor)
        return {WEIGHTS: held}

    def _is_elsewhere(self, _name: str) -> bool:
        return False

    def _published(self, _name: str, tensor: Tensor) -> Tensor:
        return tensor


class Transformer(Weights):
    """The same for the transformer: a LoRA fused in bf16 first, modulation turned into rows.

    The rows need the time embedding, and sometimes a bias, of other shards: those few MB are read
    by range, and compared when their shard comes, proven. `fused` is a canonical LoRA, or None.
    """

    def __init__(
        self,
        precision: Precision,
        device: torch.device,
        *,
        snapshot: Snapshot,
        shards: Sequence[Shard],
        config: Mapping[str, Any],
        keys: Tensor,
        fused: Mapping[str, Tensor] | None,
    ) -> None:
        super().__init__("transformer", precision, device)
        self._blocks = int(config["num_layers"])
        self._lora = fused or {}
        self._early = _early(snapshot, shards)
        weights = {
            name: self._fused(name, tensor)
            for name, tensor in self._early.items()
            if name.startswith(rows.PREFIX)
        }
        self._embedding = rows.TimeEmbedding(weights, config, keys, device)

    def __call__(self, shard: Shard, read: Read) -> dict[str, dict[str, Tensor]]:
        """Return the tensors of the bundle's two files for this shard, weights and rows."""
        for name in shard.header.keys() & self._early.keys():
            if not torch.equal(read(name), self._early[name]):
                raise WeightsUnavailable(f"{shard.file.path}: {name} changed while it was read")
        layers = [
            match
            for name in shard.header
            if (match := MODULATION.fullmatch(name)) and match[3] == "weight"
        ]
        found = rows.Collector(self._embedding, self._blocks, len(layers))
        for match in layers:
            name = match[0]
            bias_name = f"{name.removesuffix('weight')}bias"
            bias = read(bias_name) if bias_name in shard.header else self._early[bias_name]
            weight = self._fused(name, read(name))
            found.add(
                int(match[1]), match[2], bf16(weight).to(self._device), bf16(bias).to(self._device)
            )
        return {**super().__call__(shard, read), ROWS: found.tensors()}

    def _is_elsewhere(self, name: str) -> bool:
        return MODULATION.fullmatch(name) is not None

    def _published(self, name: str, tensor: Tensor) -> Tensor:
        return self._fused(name, tensor)

    def _fused(self, name: str, tensor: Tensor) -> Tensor:
        module = name.removesuffix(".weight")
        down = self._lora.get(f"{module}.lora_A.weight")
        if down is None or not name.endswith(".weight"):
            return tensor
        up = self._lora[f"{module}.lora_B.weight"]
        base = bf16(tensor).to(self._device)
        return lora.fused(base, down.to(self._device), up.to(self._device)).cpu()


def bf16(tensor: Tensor) -> Tensor:
    """Return a floating tensor in bf16 and any other as it is."""
    return tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor


def check_lora(state: Mapping[str, Tensor], shards: Sequence[Shard], blocks: int) -> None:
    """Check before any work that a Lightning LoRA reaches every module that it must.

    Raises LoraNotApplied for a module too many or too few, or of another shape.
    """
    expected = set(lora.lightning_modules(blocks))
    found = {key.rsplit(".lora_", 1)[0] for key in state}
    if found != expected:
        raise LoraNotApplied(
            f"the LoRA reaches {len(found & expected)} of the model's {len(expected)} modules, and"
            f" {len(found - expected)} that are not the model's"
        )
    held = plan.merged(shards)
    for module in sorted(found):
        entry = held.get(f"{module}.weight")
        fits = (
            state[f"{module}.lora_B.weight"].shape[0],
            state[f"{module}.lora_A.weight"].shape[1],
        )
        if entry is None or entry.shape != fits:
            raise LoraNotApplied(f"the LoRA's {module} does not fit the model's")


def _early(snapshot: Snapshot, shards: Sequence[Shard]) -> dict[str, Tensor]:
    """Read by range what the rows of several shards need: the time embedding, parted biases."""
    wanted = []
    for shard in shards:
        for name in shard.header:
            match = MODULATION.fullmatch(name)
            parted = (
                match is not None
                and match[3] == "bias"
                and f"{name.removesuffix('bias')}weight" not in shard.header
            )
            if parted or name.startswith(rows.PREFIX):
                wanted.append((shard, name))
    found = {}
    for shard, name in wanted:
        entry = shard.header[name]
        found[name] = tensors.decode(entry, snapshot.read_range(shard.file, entry.start, entry.end))
    return found
