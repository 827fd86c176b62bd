"""Codebooks from latents, each from what the ones before it leave: PCA, then k-means on a sphere.

Nothing is learned by gradient here, so nothing collapses: every entry has members when it is made.
"""

from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d, normalize

from training.speech.codec import Snac

ROUNDS: Final = 30


def spread(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return `count` of points on a sphere [N, D], picked as by k-means++: far ones likelier."""
    picked = [int(torch.randint(len(points), (), generator=generator))]
    far = 1 - points @ points[picked[0]]
    while len(picked) < count:
        picked.append(int(torch.multinomial(far.clamp(min=1e-9), 1, generator=generator)))
        far = torch.minimum(far, 1 - points @ points[picked[-1]])
    return points[picked]


def cluster(points: Tensor, count: int, seed: int) -> Tensor:
    """Return the means [count, D] of the points [N, D] nearest to each of `count` directions.

    An entry without members stays where it was.
    """
    generator = torch.Generator().manual_seed(seed)
    around = normalize(points, dim=1)
    directions = spread(around, count, generator)
    means = directions
    for _ in range(ROUNDS):
        nearest = (around @ directions.T).argmax(dim=1)
        sums = torch.zeros_like(means).index_add_(0, nearest, points)
        members = torch.bincount(nearest, minlength=count)[:, None]
        means = torch.where(members > 0, sums / members.clamp(min=1), means)
        directions = normalize(means, dim=1)
    return means


@torch.no_grad()
def fit(codec: Snac, latents: Tensor, seed: int) -> list[float]:
    """Set every codebook and its projections from latents [B, C, T].

    Returns the part of their variance that is left after each codebook.
    """
    left, entire, shares = latents, float(latents.var(dim=(0, 2)).sum()), []
    for index, module in enumerate(codec.quantizer.quantizers):
        one: Any = module
        points = avg_pool1d(left, one.stride, one.stride).transpose(1, 2).flatten(0, 1)
        mean = points.mean(dim=0)
        width = one.codebook.embedding_dim
        _, _, basis = torch.linalg.svd(points - mean, full_matrices=False)
        axes = basis[:width]
        one.in_proj.weight = axes[:, :, None].clone()
        one.in_proj.bias.copy_(-(axes @ mean))
        one.out_proj.weight = axes.T[:, :, None].clone()
        one.out_proj.bias.copy_(mean)
        projected = (points - mean) @ axes.T
        entries = cluster(projected.cpu(), one.codebook.num_embeddings, seed + index)
        one.codebook.weight.copy_(entries)
        left = left - one.look_up(one.choose(one.project(left)))
        shares.append(float(left.square().sum(dim=1).mean()) / entire)
    return shares
