"""The keys and values that a language model keeps of sequences, in memory that does not move."""

from typing import Final

import torch
from torch import Tensor

# Attention reads what is kept up to the next multiple: few shapes, and little that is not there.
# On CUDA each shape may be a graph of its own.
READ_STEP: Final = 256
CUDA_READ_STEP: Final = 1024


class KeyValues:
    """Keys and values of `rows` sequences of up to `length` tokens, for every layer.

    What a sequence has beyond its own end is never read: every reader masks it.
    """

    def __init__(
        self,
        layers: int,
        rows: int,
        heads: int,
        length: int,
        size: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._step = CUDA_READ_STEP if device.type == "cuda" else READ_STEP
        self.length = self.round_length(length)
        shape = (layers, rows, heads, self.length, size)
        # zeros: a value that is masked still meets a weight of zero, and NaN times zero is NaN
        self._keys = torch.zeros(shape, dtype=dtype, device=device)
        self._values = torch.zeros(shape, dtype=dtype, device=device)

    def fill(self, layer: int, row: int, keys: Tensor, values: Tensor) -> None:
        """Keep the first tokens of one sequence, [1, heads, tokens, size] each."""
        count = keys.shape[2]
        self._keys[layer, row : row + 1, :, :count] = keys
        self._values[layer, row : row + 1, :, :count] = values

    def append(self, layer: int, positions: Tensor, keys: Tensor, values: Tensor) -> None:
        """Keep one token of every sequence, [rows, heads, 1, size], each at its own position."""
        place = positions[:, None, None, None].expand_as(keys)
        self._keys[layer].scatter_(2, place, keys)
        self._values[layer].scatter_(2, place, values)

    def read(self, layer: int, most: int) -> tuple[Tensor, Tensor]:
        """Return the keys and values of the first `most` tokens, [rows, heads, most, size] each."""
        return self._keys[layer, :, :, :most], self._values[layer, :, :, :most]

    def list_lengths(self) -> range:
        """Return how many tokens may be read, from the fewest."""
        return range(self._step, self.length + self._step, self._step)

    def round_length(self, count: int) -> int:
        """Return how many tokens are read where sequences have so many."""
        return -(-count // self._step) * self._step
