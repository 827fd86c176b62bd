"""Latents as the transformers take them: 2x2 neighbours in one token."""

from torch import Tensor

from training.tiny import world

OBJECT_APART = 24  # of 255: a block with a pixel this far from the corner's shows the object


def pack(latents: Tensor) -> Tensor:
    """Return (B, H/2 * W/2, 4 C) of latents (B, C, H, W), in the pipelines' order."""
    b, c, h, w = latents.shape
    parts = latents.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return parts.reshape(b, (h // 2) * (w // 2), 4 * c)


def unpack(tokens: Tensor, side: int = world.SIDE // 8) -> Tensor:
    """Return latents (B, C, side, side) of packed tokens."""
    b, _, c = tokens.shape
    parts = tokens.reshape(b, side // 2, side // 2, c // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return parts.reshape(b, c // 4, side, side)
