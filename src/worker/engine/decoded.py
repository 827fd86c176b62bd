"""Turn a decoder's output into a picture, or refuse it when it cannot be one."""

import torch
from PIL import Image
from torch import Tensor

from worker.errors import BadPicture


def make_picture(pixels: Tensor) -> Image.Image:
    """Turn pixels [3, height, width] in [-1, 1] into an RGB picture.

    Raises BadPicture when a value is not finite or every pixel is equal.
    """
    if not bool(torch.isfinite(pixels).all()):
        raise BadPicture("the model's picture has values that are not numbers")
    levels = ((pixels * 0.5 + 0.5).clamp(0, 1).float() * 255).round().to(torch.uint8)
    shown = levels.permute(1, 2, 0).contiguous().cpu()
    if bool((shown == shown[:1, :1]).all()):
        raise BadPicture("every pixel of the model's picture is equal")
    return Image.fromarray(shown.numpy())
