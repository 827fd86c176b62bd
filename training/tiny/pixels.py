"""Pictures as frames of a VAE, and frames as pictures."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def stack(drawn: Sequence[Image.Image]) -> Tensor:
    """Return RGB pictures of one size as uint8 (count, 3, height, width)."""
    arrays = np.stack([np.asarray(one) for one in drawn])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2).contiguous()


def unit(frames: Tensor) -> Tensor:
    """Return uint8 frames as floats in -1..1, channels last."""
    return (frames.float() / 127.5 - 1.0).contiguous(memory_format=torch.channels_last)


def psnr(ours: Tensor, truth: Tensor) -> float:
    """Return the mean PSNR in dB of frames in -1..1 (peak 2)."""
    error = (ours.float().clamp(-1, 1) - truth).square().mean(dim=(1, 2, 3))
    return float((10 * torch.log10(4.0 / error.clamp_min(1e-8))).mean())


def picture(frame: Tensor) -> Image.Image:
    """Return the RGB picture of a frame (3, H, W) in -1..1."""
    levels = ((frame.float().clamp(-1, 1) + 1) * 127.5).round().byte()
    return Image.fromarray(levels.permute(1, 2, 0).cpu().numpy())
