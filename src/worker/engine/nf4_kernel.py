"""A Triton kernel: NF4 weights with double quantisation, unpacked with B @ A of a LoRA added."""

from typing import Final

import torch
import triton  # type: ignore[import-untyped,unused-ignore]
import triton.language as tl  # type: ignore[import-untyped,unused-ignore]
from torch import Tensor

from worker.engine.quantise import NESTED_BLOCK, NF4_BLOCK

TILE_ROWS: Final = 64
SMALLEST_RANK: Final = 16  # of a product on tensor cores


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _unpack_tile(  # type: ignore[no-untyped-def] # noqa: ANN202, PLR0913, PLR0917 - Triton reads annotations
    packed,  # noqa: ANN001
    nested,  # noqa: ANN001
    nested_levels,  # noqa: ANN001
    nested_maxima,  # noqa: ANN001
    offset,  # noqa: ANN001
    levels,  # noqa: ANN001
    down,  # noqa: ANN001
    up,  # noqa: ANN001
    out,  # noqa: ANN001
    rows,  # noqa: ANN001
    columns,  # noqa: ANN001
    rank,  # noqa: ANN001
    tile_rows: tl.constexpr,
    tile_rank: tl.constexpr,
    block: tl.constexpr,
    nested_block: tl.constexpr,
    widen: tl.constexpr,
):
    row = tl.program_id(0) * tile_rows + tl.arange(0, tile_rows)
    tile = tl.program_id(1)
    column = tile * block + tl.arange(0, block)
    is_row = row < rows
    # two weights per byte, the first in the upper half
    half = tile * (block // 2) + tl.arange(0, block // 2)
    both = tl.load(packed + row[:, None] * (columns // 2) + half[None, :], is_row[:, None], other=0)
    upper = tl.load(levels + (both >> 4).to(tl.int32))
    lower = tl.load(levels + (both & 15).to(tl.int32))
    values = tl.reshape(tl.join(upper, lower), (tile_rows, block))
    # a tile is one block wide, so that a row of it has one maximum
    place = row * (columns // block) + tile
    level = tl.load(nested + place, is_row, other=0).to(tl.int32)
    outer = tl.load(nested_maxima + place // nested_block, is_row, other=0.0)
    maximum = tl.load(nested_levels + level) * outer + tl.load(offset)
    weights = values * maximum[:, None]
    depth = tl.arange(0, tile_rank)
    is_depth = depth < rank
    b = tl.load(
        up + row[:, None] * rank + depth[None, :], is_row[:, None] & is_depth[None, :], other=0.0
    )
    a = tl.load(down + depth[:, None] * columns + column[None, :], is_depth[:, None], other=0.0)
    if widen:
        b = b.to(tl.float32)
        a = a.to(tl.float32)
        weights = tl.dot(b, a, acc=weights, input_precision="ieee")
    else:
        weights = tl.dot(b, a, acc=weights)
    place_out = out + row[:, None] * columns + column[None, :]
    tl.store(place_out, weights.to(out.dtype.element_ty), is_row[:, None])


def unpack_sum(  # noqa: PLR0913 - the parts of bitsandbytes' QuantState
    packed: Tensor,
    nested: Tensor,
    nested_levels: Tensor,
    nested_maxima: Tensor,
    offset: Tensor,
    levels: Tensor,
    down: Tensor,
    up: Tensor,
    *,
    widen: bool = False,
) -> Tensor:
    """Return NF4 weights [out, in] plus up @ down, in the dtype of `up`.

    `packed` uint8 has two weights per byte, in blocks of 64 that divide a row; `nested` uint8 has a
    block's maximum as an index of `nested_levels` float32 [256], times that of `nested_maxima`
    float32 per 256 blocks, plus `offset` float32 []; `levels` float32 [16] are NF4's. `down` is
    [rank, in], `up` [out, rank]. The sum is in float32 and rounded once. `widen` multiplies in
    float32, as Triton's interpreter must: its product of bf16 is wrong.
    """
    rows, (rank, columns) = up.shape[0], down.shape
    out = torch.empty(rows, columns, dtype=up.dtype, device=packed.device)
    _unpack_tile[triton.cdiv(rows, TILE_ROWS), columns // NF4_BLOCK](
        packed,
        nested,
        nested_levels,
        nested_maxima,
        offset,
        levels,
        down,
        up,
        out,
        rows,
        columns,
        rank,
        tile_rows=TILE_ROWS,
        tile_rank=max(SMALLEST_RANK, triton.next_power_of_2(rank)),
        block=NF4_BLOCK,
        nested_block=NESTED_BLOCK,
        widen=widen,
    )
    return out
