"""What a shard of the transformer becomes: its weights, and its modulation turned into rows."""

from collections.abc import Sequence

import torch
from torch import Tensor

from worker.bundle import tensors
from worker.bundle.convert import Weights, cast_to_bf16
from worker.bundle.headers import Shard
from worker.bundle.layout import MAPPED
from worker.bundle.recipe import Work
from worker.bundle.stream import ReadTensor
from worker.errors import WeightsUnavailable
from worker.families.qwen_image import rows
from worker.families.qwen_image.modulation import MODULATION
from worker.weights.snapshot import Snapshot


class Transformer:
    """Make the two files of every shard: a LoRA is added in bf16 before anything is computed.

    The rows need the time embedding, and sometimes a bias, of other shards: those few MB are read
    by range, and compared with their shard when it comes, verified. `keys` are the
    timesteps with a row.
    """

    def __init__(self, work: Work, keys: Tensor) -> None:
        config = work.published.configs["transformer"]
        self._weights = Weights(work)
        self._device = work.device
        self._blocks = int(config["num_layers"])
        self._early = _read_early(work.snapshot, work.published.shards["transformer"])
        embedding = {
            name: self._weights.fuse(name, tensor)
            for name, tensor in self._early.items()
            if name.startswith(rows.PREFIX)
        }
        self._embedding = rows.TimeEmbedding(embedding, config, keys, work.device)

    def __call__(self, shard: Shard, read: ReadTensor) -> dict[str, dict[str, Tensor]]:
        """Return the tensors of the bundle's two files for this shard, weights and rows."""
        for name in shard.header.keys() & self._early.keys():
            if not torch.equal(read(name), self._early[name]):
                raise WeightsUnavailable(f"{shard.file.path}: {name} changed while it was read")
        layers = [
            match
            for name in shard.header
            if (match := MODULATION.fullmatch(name)) and match[3] == "weight"
        ]
        collector = rows.Collector(self._embedding, self._blocks, len(layers))
        for match in layers:
            name = match[0]
            bias_name = f"{name.removesuffix('weight')}bias"
            bias = read(bias_name) if bias_name in shard.header else self._early[bias_name]
            weight = self._weights.fuse(name, read(name))
            collector.add(
                int(match[1]),
                match[2],
                cast_to_bf16(weight).to(self._device),
                cast_to_bf16(bias).to(self._device),
            )
        return {**self._weights(shard, read), MAPPED: collector.collect_tensors()}


def _read_early(snapshot: Snapshot, shards: Sequence[Shard]) -> dict[str, Tensor]:
    """Read by range what rows need of other shards: the time embedding, biases on their own."""
    needed = []
    for shard in shards:
        for name in shard.header:
            match = MODULATION.fullmatch(name)
            parted = (
                match is not None
                and match[3] == "bias"
                and f"{name.removesuffix('bias')}weight" not in shard.header
            )
            if parted or name.startswith(rows.PREFIX):
                needed.append((shard, name))
    early = {}
    for shard, name in needed:
        entry = shard.header[name]
        early[name] = tensors.decode(entry, snapshot.read_range(shard.file, entry.start, entry.end))
    return early
