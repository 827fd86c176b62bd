"""Frames of the VAE as pictures."""

from PIL import Image
from torch import Tensor


def picture(frame: Tensor) -> Image.Image:
    """Return the RGB picture of a frame (3, H, W) in -1..1."""
    levels = ((frame.float().clamp(-1, 1) + 1) * 127.5).round().byte()
    return Image.fromarray(levels.permute(1, 2, 0).cpu().numpy())
