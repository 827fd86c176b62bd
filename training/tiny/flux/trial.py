"""Draw the judge's cases in large batches, as the pipeline would: four steps, all 512 tokens."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from training.tiny.cases import Case, rate_seen
from training.tiny.flux.drawn import Hands
from training.tiny.flux.flow import TOKENS, Flow
from training.tiny.flux.learn_steps import STEPS, levels, seen_in, shift_of
from training.tiny.flux.learn_vae import encode, normalise
from training.tiny.flux.shapes import TEXT_LENGTH
from training.tiny.flux.tables import NONE
from training.tiny.flux.words import fill
from training.tiny.latents import pack
from training.tiny.pixels import stack, unit

BATCH: Final = 50


@torch.no_grad()
def draw(
    flow: Flow, vae: Any, tokenizer: Any, cases: Sequence[Case], weights: Sequence[float] = ()
) -> Tensor:
    """Return frames (B, 3, 96, 96) of cases with equally many references."""
    frames = []
    for some in _parts(cases):
        encoded = tokenizer([fill(c.prompt) for c in some], return_tensors="pt", padding="longest")
        ids, real = encoded.input_ids.to(flow.device), encoded.attention_mask.bool()
        count = len(some[0].references)
        references = torch.zeros(len(some), count, TOKENS, flow.transformer.config.in_channels)
        if count:
            pictures = unit(stack([r for case in some for r in case.references]).to(flow.device))
            with flow.autocast():
                mean = encode(vae, pictures)[0]
            references = normalise(vae, pack(mean)).unflatten(0, (len(some), count))
        logits = torch.tensor(weights or [1.0] * count).log().clamp_min(NONE)
        given = flow.condition(
            ids,
            real.to(flow.device),
            references.to(flow.device),
            logits.expand(len(some), -1).to(flow.device),
            TEXT_LENGTH - ids.shape[1],
        )
        noise = torch.cat([seeded(case.seed, references.shape[-1]) for case in some])
        x = noise.to(flow.device)
        for level, following in itertools.pairwise(levels(STEPS, shift_of(STEPS))):
            t = x.new_full((len(x),), level)
            x = x + (following - level) * flow(x, t, given)
        frames.append(seen_in(vae, x, bf16=flow.bf16))
    return torch.cat(frames)


def _parts(cases: Sequence[Case]) -> Iterator[Sequence[Case]]:
    for start in range(0, len(cases), BATCH):
        yield cases[start : start + BATCH]


def seeded(seed: int, channels: int) -> Tensor:
    """Return the packed noise (1, 36, C) that the pipeline draws from a seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, channels, TOKENS, generator=generator).transpose(1, 2)


def judge(
    flow: Flow, vae: Any, tokenizer: Any, cases: Sequence[Case], hands: Hands
) -> dict[str, float]:
    """Return the share that is right in each part, of all five, and by what was asked."""
    seen = hands.read(draw(flow, vae, tokenizer, cases))
    return rate_seen(cases, seen)
