"""Joint attention in which each reference may count more or less than once."""

import math
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

# Channels that are added to every head: two are used, and kernels of flash attention take
# multiples of eight.
ADDED: Final = 8


def attend(query: Tensor, key: Tensor, value: Tensor, shares: Tensor | None) -> Tensor:
    """Return attention [batch, tokens, heads * channels] of [batch, tokens, heads, channels].

    `shares` [tokens, 8] is what `make_shares` returns, None where every key counts once. They are
    added to the logits as one more product, instead of as a mask, with which there is no flash
    attention.
    """
    channels = query.shape[-1]
    if shares is None:
        found = functional.scaled_dot_product_attention(
            query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        )
        return found.transpose(1, 2).flatten(2)
    added = (*query.shape[:-1], ADDED)
    ones = query.new_zeros(ADDED)
    ones[:2] = 1
    wide = functional.scaled_dot_product_attention(
        torch.cat([query, ones.expand(added)], dim=-1).transpose(1, 2),
        torch.cat([key, shares[:, None].expand(added)], dim=-1).transpose(1, 2),
        functional.pad(value, (0, ADDED)).transpose(1, 2),
        scale=1 / math.sqrt(channels),
    )
    return wide[..., :channels].transpose(1, 2).flatten(2)


def make_shares(
    weights: Sequence[float], tokens: Sequence[int], channels: int, dtype: torch.dtype
) -> Tensor | None:
    """Return what keys with weights add to the logits, [tokens, 8], None where all weights are 1.

    `tokens` are how many keys have each of the positive `weights`, `channels` is the size of a
    head. A key of weight w counts w times in every softmax: ln w is added to its logits. It is a
    sum of two numbers of `dtype`, of which bf16's one would round ln 2 by 0.003.
    """
    if all(weight == 1 for weight in weights):
        return None
    logarithms = torch.tensor([math.log(weight) for weight in weights], dtype=torch.float64)
    added = logarithms.repeat_interleave(torch.tensor(list(tokens))) * math.sqrt(channels)
    shares = torch.zeros(len(added), ADDED, dtype=dtype)
    shares[:, 0] = added.to(dtype)
    shares[:, 1] = (added - shares[:, 0].double()).to(dtype)
    return shares
