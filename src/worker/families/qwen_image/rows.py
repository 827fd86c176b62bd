"""Modulation rows: computed once from the bf16 weights for every timestep a schedule can pass."""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional

from worker.bundle import headers
from worker.bundle.recipe import Published
from worker.bundle.tensors import TensorEntry, read_file_header
from worker.errors import Internal
from worker.families.qwen_image.modulation import (
    MODULATION,
    STREAMS,
    RowPart,
    RowTable,
    round_timesteps,
)

HIGHEST: Final = 1000.0
# The base schedule ends at shift_terminal (0.02 -> 20); without one, 100 steps of any of the
# family's shifts end above 1000 / (1 + 99 / e^0.5) = 16.
LOWEST_WITHOUT_TERMINAL: Final = 10.0
PREFIX: Final = "time_text_embed."
ROWS: Final = "rows"


def compute_keys(scheduler: Mapping[str, Any]) -> Tensor:
    """Return every value that the transformer can see (bf16 [T], ascending) under a schedule.

    They are all bf16 timesteps from the schedule's last to 1000, as `round_timesteps` gives them:
    Lightning's steps end at 300 and are among them. `scheduler` is scheduler_config.json.
    """
    terminal = scheduler.get("shift_terminal")
    lowest = HIGHEST * terminal if terminal else LOWEST_WITHOUT_TERMINAL
    # The bits of positive bf16 numbers count up with them.
    bits = torch.tensor([lowest, HIGHEST]).to(torch.bfloat16).view(torch.int16).tolist()
    every = torch.arange(bits[0], bits[1] + 1, dtype=torch.int16).view(torch.bfloat16)
    found: Tensor = torch.unique(round_timesteps(every.float()).float())
    return found.to(torch.bfloat16)


def describe_rows(published: Published) -> dict[str, Any]:
    """Return what the rows add to the identity of a transformer: how many keys, and their ends."""
    found = compute_keys(published.configs["scheduler"])
    return {"rows": [len(found), float(found[0]), float(found[-1])]}


def count_row_bytes(published: Published) -> int:
    """Return the bytes of a transformer's rows."""
    widths = [
        entry.shape[0]
        for name, entry in headers.merge(published.shards["transformer"]).items()
        if (match := MODULATION.fullmatch(name)) and match[3] == "bias"
    ]
    return 2 * len(compute_keys(published.configs["scheduler"])) * sum(widths)


class TimeEmbedding:
    """temb of every key, in the shape that a forward at batch 1 computes it.

    GEMMs of other row counts round differently (seen at M = 1 and M = 2), so each key is computed
    alone, or as the pair [t, 0] where the transformer has zero_cond_t. `activated` is
    silu(temb), what every block's layer multiplies: [T, 1 or 2, dim] on `device`.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        config: Mapping[str, Any],
        keys: Tensor,
        device: torch.device,
    ) -> None:
        from diffusers.models.transformers import (  # noqa: PLC0415 - takes seconds to import
            transformer_qwenimage,
        )

        dim = config["num_attention_heads"] * config["attention_head_dim"]
        module = transformer_qwenimage.QwenTimestepProjEmbeddings(dim)
        module.load_state_dict({name.removeprefix(PREFIX): t for name, t in weights.items()})
        module = module.to(device, torch.bfloat16).eval()
        self.keys = keys
        self.is_pair = bool(config.get("zero_cond_t", False))
        like = torch.empty(0, dtype=torch.bfloat16)
        rows = []
        with torch.inference_mode():
            for key in keys.to(device):
                timestep = torch.stack([key, key * 0]) if self.is_pair else key[None]
                rows.append(functional.silu(module(timestep, like)))
        self.activated = torch.stack(rows)

    def compute_rows(
        self, stream: str, weight: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Return one layer's rows bf16 [T, 6 * dim] on the CPU, and its row of t = 0 [6 * dim].

        The latter is None unless it is the image stream of a zero_cond_t transformer; the text
        stream sees t alone. `weight` [6 * dim, dim] and `bias` are bf16 on the device. Raises
        Internal when the row of t = 0 depends on its partner.
        """
        pair = self.is_pair and stream == STREAMS[0]
        shown = self.activated if pair else self.activated[:, :1]
        with torch.inference_mode():
            rows = torch.stack([functional.linear(temb, weight, bias) for temb in shown])
        if not pair:
            return rows[:, 0].cpu(), None
        zero = rows[0, 1]
        if not torch.equal(rows[:, 1], zero.expand_as(rows[:, 1])):
            raise Internal("the modulation of t = 0 differs between timesteps on this device")
        return rows[:, 0].cpu(), zero.cpu()


class Collector:
    """The rows of one shard's layers, on their way into a file."""

    def __init__(self, embedding: TimeEmbedding, blocks: int, layers: int) -> None:
        self._embedding = embedding
        self._blocks = blocks
        self._layers = layers
        self._slots: list[int] = []
        self._rows = torch.empty(0)
        self._zero: dict[int, Tensor] = {}

    def add(self, block: int, stream: str, weight: Tensor, bias: Tensor) -> None:
        """Compute one layer's rows; `weight` and `bias` are bf16 on the device."""
        rows, zero = self._embedding.compute_rows(stream, weight, bias)
        if not self._slots:
            self._rows = torch.empty(len(rows), self._layers, rows.shape[1], dtype=rows.dtype)
        self._rows[:, len(self._slots)] = rows
        self._slots.append(STREAMS.index(stream) * self._blocks + block)
        if zero is not None:
            self._zero[block] = zero

    def collect_tensors(self) -> dict[str, Tensor]:
        """Return what the file holds, timestep-major; nothing when the shard has no such layer."""
        if not self._slots:
            return {}
        empty = torch.empty(0, self._rows.shape[2], dtype=self._rows.dtype)
        return {
            "keys": self._embedding.keys,
            ROWS: self._rows,
            "slots": torch.tensor(self._slots),
            "zero": torch.stack(list(self._zero.values())) if self._zero else empty,
            "zero_blocks": torch.tensor(list(self._zero), dtype=torch.int64),
        }


def map_table(paths: Sequence[Path]) -> RowTable:
    """Map the files of all shards; raises Internal when there are none or their timesteps differ.

    A loop's rows are read when it requests them, all at once: faulting them in page by page would
    wait for the disk each time.
    """
    parts, keys = [], None
    for path in paths:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        if keys is not None and not torch.equal(tensors["keys"], keys):
            raise Internal("the files of modulation rows differ in their timesteps")
        keys = tensors["keys"]
        ahead = partial(_read_ahead, path, read_file_header(path)[ROWS])
        parts.append(
            RowPart(tensors[ROWS], tensors["slots"], tensors["zero"], tensors["zero_blocks"], ahead)
        )
    if keys is None:
        raise Internal("the bundle has no modulation rows")
    return RowTable(keys, tuple(parts))


def _read_ahead(path: Path, rows: TensorEntry, index: Tensor) -> None:
    """Ask the kernel for the rows at `index`, without waiting."""
    size = (rows.end - rows.start) // rows.shape[0]
    with suppress(OSError):
        number = os.open(path, os.O_RDONLY)
        try:
            for row in index.tolist():
                start = rows.start + row * size
                os.posix_fadvise(number, start, size, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(number)
