"""How much device memory pictures take beside the weights, computed from what is requested."""

from typing import Final

# Every prompt has this many tokens: the transformer attends to the padding too.
TOKENS: Final = 512
FRAME_CHANNEL: Final = 8.21
BASE_WIDTH: Final = 128


def count_frame_bytes(pixels: int, width: int = BASE_WIDTH) -> int:
    """Return the peak in bytes of encoding or decoding a picture in one piece.

    `width` is the number of channels of the VAE at full size.
    """
    return int(FRAME_CHANNEL * width * pixels)
