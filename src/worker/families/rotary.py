"""Rotary positions as real numbers: the pairs of channels of every token, turned by its place."""

from torch import Tensor


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotate the pairs of channels of `x` [batch, tokens, heads, channels] by their positions.

    `table` float32 [2, tokens, 1, channels] has their cos, and their sin, negative for the first of
    each pair. The products and their sum are in float32 and rounded once, as diffusers' products
    are, real or complex, so both agree to the last bit on a CPU; inductor compiles real numbers
    only.
    """
    pairs = x.view(*x.shape[:-1], -1, 2)
    rotated: Tensor = x * table[0] + pairs.flip(-1).view_as(x) * table[1]
    return rotated.to(x.dtype)
