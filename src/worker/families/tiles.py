"""Frames in overlapping tiles, blended where they overlap: less memory, as diffusers does it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Tiling:
    """The side of a tile and the distance to the next, before (`given`) and after (`made`)."""

    given: tuple[int, int]
    made: tuple[int, int]


def run_in_tiles(run: Callable[[Tensor], Tensor], frames: Tensor, tiling: Tiling) -> Tensor:
    """Run something over frames [batch, channels, height, width], tile by tile.

    `run` scales both sides as `tiling` says. Frames of one tile run in one piece. The tiles and how
    they are blended are those of diffusers' `tiled_encode` and `tiled_decode`.
    """
    side, step = tiling.given
    height, width = frames.shape[2:]
    if height <= side and width <= side:
        return run(frames)
    rows = [
        [run(frames[:, :, y : y + side, x : x + side]) for x in range(0, width, step)]
        for y in range(0, height, step)
    ]
    made, kept = tiling.made
    lines = []
    for y, row in enumerate(rows):
        for x, tile in enumerate(row):
            if y > 0:
                _join(rows[y - 1][x], tile, 2, made - kept)
            if x > 0:
                _join(row[x - 1], tile, 3, made - kept)
        lines.append(torch.cat([tile[:, :, :kept, :kept] for tile in row], dim=3))
    whole = torch.cat(lines, dim=2)
    return whole[:, :, : height * made // side, : width * made // side]


def _join(before: Tensor, after: Tensor, dim: int, extent: int) -> None:
    """Fade `after` in over the end of `before` along a dimension, in place.

    Each product is rounded to the frames' dtype, as where the weights are numbers of Python.
    """
    extent = min(before.shape[dim], after.shape[dim], extent)
    shares = torch.tensor([step / extent for step in range(extent)], dtype=torch.float64)
    shape = (-1, 1) if dim == 2 else (-1,)  # noqa: PLR2004 - of [batch, channels, height, width]
    fade_in, fade_out = (
        share.float().view(shape).to(after.device) for share in (shares, 1 - shares)
    )
    end = before.narrow(dim, before.shape[dim] - extent, extent)
    start = after.narrow(dim, 0, extent)
    start.copy_((end * fade_out).to(end.dtype) + (start * fade_in).to(end.dtype))
