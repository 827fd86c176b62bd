"""A wish for a small picture, by which families are compared with stock pipelines, and drawings."""

import numpy as np
from PIL import Image

from worker.tasks.picture import PictureWish

WISH = PictureWish(
    task="text-to-image",
    prompt="a small red circle on a blue background, on the left",
    negative_prompt=None,
    references=(),
    width=96,
    height=96,
    steps=4,
    true_cfg_scale=1.0,
    lightning=False,
    seed=7,
)


def drawing(width: int, height: int, seed: int) -> Image.Image:
    """Make a picture that no other seed gives."""
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
