"""Frames in tiles: in one piece where they are no larger, and blended as diffusers blends them."""

import itertools

import pytest
import torch
from torch import Tensor

from worker.families.tiles import Tiling, run_in_tiles

SIDE, STEP = 10, 4
TILING = Tiling((SIDE, STEP), (SIDE, STEP))


class Numbering:
    """Adds to each tile its number, so that no two agree where they overlap."""

    def __init__(self) -> None:
        self.tiles: list[Tensor] = []

    def __call__(self, tile: Tensor) -> Tensor:
        """Keep the tile as it is before it is blended."""
        self.tiles.append(tile + len(self.tiles))
        return self.tiles[-1].clone()


@pytest.mark.parametrize(
    ("height", "width", "count"),
    [(SIDE, SIDE, 1), (SIDE + 1, SIDE, 9), (SIDE, SIDE + 1, 9), (1, SIDE, 1), (1, SIDE + 1, 3)],
)
def test_frames_of_the_size_of_a_tile_run_in_one_piece(height: int, width: int, count: int) -> None:
    numbering = Numbering()
    made = run_in_tiles(numbering, torch.zeros(1, 1, height, width), TILING)
    assert made.shape == (1, 1, height, width)
    assert len(numbering.tiles) == count


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dim", [2, 3], ids=["down", "across"])
def test_a_tile_fades_in_to_the_last_bit_as_with_numbers_of_python(
    dim: int, dtype: torch.dtype
) -> None:
    """Over what it shares with the tile before, or all of it where it is narrower."""
    generator = torch.Generator().manual_seed(7)
    line = torch.randn(1, 3, 1, 2 * STEP + 5, generator=generator).to(dtype)
    frames = line if dim == 3 else line.transpose(2, 3)
    numbering = Numbering()
    found = run_in_tiles(numbering, frames, TILING)
    tiles = [tile if dim == 3 else tile.transpose(2, 3) for tile in numbering.tiles]
    assert [tile.shape[3] for tile in tiles] == [SIDE, 9, 5, 1]
    for before, after in itertools.pairwise(tiles):
        extent = min(SIDE - STEP, after.shape[3])
        for place in range(extent):
            share = place / extent
            end = before[..., place - extent] * (1 - share)
            after[..., place] = end + after[..., place] * share
    expected = torch.cat([tile[..., :STEP] for tile in tiles], dim=3)
    assert torch.equal(found, expected if dim == 3 else expected.transpose(2, 3))
