"""What the masks of wishes mean for latents, and for the pictures that are delivered."""

from collections.abc import Sequence

import torch
from torch import Tensor

from worker.engine.sampler import pack
from worker.media.masks import pool
from worker.media.picture import Original
from worker.tasks.picture import PictureWish


def make_masks(
    wishes: Sequence[PictureWish], channels: int, height: int, width: int, device: torch.device
) -> Tensor | None:
    """Return where latents of `height` x `width` are repainted: packed bool, one row per wish.

    A latent is repainted where anything of its pixels is, the rim over which a mask fades too: the
    steps of 8 pixels lie outside of what is delivered of it. None where the wishes have no masks.
    """
    found = [torch.from_numpy(pool(w.mask, width, height)) for w in wishes if w.mask is not None]
    if not found:
        return None
    grid = torch.stack(found)[:, None].expand(-1, channels, -1, -1)
    return pack(grid.contiguous()).to(device, non_blocking=True)


def find_original(wish: PictureWish) -> Original | None:
    """Return the picture that shows where a wish leaves it, None where all of it may change."""
    if wish.source is None or wish.mask is None or not wish.preserves:
        return None
    return Original(wish.source, wish.mask)
