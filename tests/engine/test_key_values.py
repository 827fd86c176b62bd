"""What is kept of sequences is read where it was put: by layer, by row and by position."""

import pytest
import torch
from torch import Tensor

from worker.engine import key_values
from worker.engine.key_values import KeyValues

LAYERS, ROWS, HEADS, LENGTH, SIZE = 2, 3, 2, 9, 5
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read in short steps."""
    monkeypatch.setattr(key_values, "READ_STEP", 4)
    monkeypatch.setattr(key_values, "CUDA_READ_STEP", 6)


def make(dtype: torch.dtype = torch.bfloat16, device: torch.device = CPU) -> KeyValues:
    return KeyValues(LAYERS, ROWS, HEADS, LENGTH, SIZE, dtype=dtype, device=device)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_there_is_room_for_whole_steps_of_the_models_own_numbers(dtype: torch.dtype) -> None:
    kept = make(dtype, torch.device("meta"))
    assert kept.length == 12
    assert list(kept.list_lengths()) == [4, 8, 12]
    assert [kept.round_length(count) for count in (1, 4, 5, 8, 9)] == [4, 4, 8, 8, 12]
    for found in kept.read(1, 8):
        assert found.shape == (ROWS, HEADS, 8, SIZE)
        assert (found.dtype, found.device.type) == (dtype, "meta")


def test_a_gpu_reads_in_steps_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda shape, **_named: zeros(shape))
    kept = make(device=torch.device("cuda"))
    assert list(kept.list_lengths()) == [6, 12]


def test_what_was_filled_and_appended_is_read_and_everything_else_is_zero() -> None:
    """A value that is masked still meets a weight of zero, so that none may be NaN."""
    kept, expected = make(torch.float32), torch.zeros(2, LAYERS, ROWS, HEADS, 12, SIZE)

    def draw(*shape: int) -> tuple[Tensor, Tensor]:
        return torch.randn(shape), torch.randn(shape)

    for layer, row, count in ((0, 1, 3), (1, 2, 5), (1, 0, 1)):
        keys, values = draw(1, HEADS, count, SIZE)
        kept.fill(layer, row, keys, values)
        expected[0, layer, row, :, :count], expected[1, layer, row, :, :count] = keys[0], values[0]
    for layer, places in ((1, [1, 0, 5]), (0, [11, 3, 2])):
        keys, values = draw(ROWS, HEADS, 1, SIZE)
        kept.append(layer, torch.tensor(places), keys, values)
        for row, place in enumerate(places):
            expected[0, layer, row, :, place] = keys[row, :, 0]
            expected[1, layer, row, :, place] = values[row, :, 0]
    for layer in range(LAYERS):
        for most in (4, 12):
            keys, values = kept.read(layer, most)
            assert torch.equal(keys, expected[0, layer, :, :, :most])
            assert torch.equal(values, expected[1, layer, :, :, :most])
