"""Choose the next token of a sequence: repetition penalty, temperature, the likeliest of it."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Choosing:
    """How tokens are chosen; numbers on a device may change between replays of one graph.

    At a `temperature` that is the number 0 it is always the likeliest.
    """

    temperature: float | Tensor
    top_p: float | Tensor = 1.0
    penalty: float | Tensor = 1.0


def choose_token(logits: Tensor, seen: Tensor, uniforms: Tensor, how: Choosing) -> Tensor:
    """Return the index of one token per row, int64 [rows].

    `logits` [rows, tokens] may be of any floating type and are computed with in float32, in the
    order of transformers' processors. `seen` (bool, as logits) are those that the penalty is for:
    a positive logit is divided by it, a negative one multiplied (arXiv 1909.05858). `uniforms`
    [rows], float32 in [0, 1), decide: the first token, in falling order of probability, at which
    the sum exceeds that part of what the likeliest `top_p` sum up to. So the same numbers choose
    the same token on every device that has the same logits.
    """
    scores = logits.float()
    scores = torch.where(
        seen, torch.where(scores < 0, scores * how.penalty, scores / how.penalty), scores
    )
    if not isinstance(how.temperature, Tensor) and how.temperature == 0:
        return scores.argmax(dim=1)
    shares, order = (scores / how.temperature).softmax(dim=1).sort(descending=True, stable=True)
    sums = shares.cumsum(dim=1)
    kept = (sums - shares < how.top_p).sum(dim=1, keepdim=True) - 1
    goal = uniforms[:, None] * sums.gather(1, kept)
    place = torch.minimum((sums <= goal).sum(dim=1, keepdim=True), kept)
    return order.gather(1, place)[:, 0]
