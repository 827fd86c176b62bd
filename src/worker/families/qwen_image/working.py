"""How much device memory a picture takes in addition to the weights, computed from its size."""

from typing import Final

from worker.engine.quantise import Precision

# Pixels of a token of the transformer: 8 x 8 per latent, 2 x 2 latents per token.
TOKEN_PIXELS: Final = 256
# Bytes per pixel at the peak of the VAE, and what it takes in tiles whatever the size.
DECODE: Final = 1260
ENCODE: Final = 1170
TILED: Final = 260_000_000
# Bytes per token at the transformer's peak.
DENOISE: Final[dict[Precision, int]] = {"bf16": 134_000, "4bit": 134_000, "8bit": 183_000}
# Bytes of the text encoder's activations, and what each reference adds to them.
TEXT: Final = 150_000_000
TEXT_REFERENCE: Final = 30_000_000


def estimate_working(
    pixels: int,
    references: int = 0,
    batch: int = 1,
    adapters: int = 0,
    *,
    precision: Precision = "bf16",
    tiled: bool = False,
) -> int:
    """Return the peak in bytes beside the weights while `batch` pictures of `pixels` are made.

    Every reference has the picture's own size.
    """
    del adapters
    tokens = batch * pixels * (1 + references) // TOKEN_PIXELS
    decode = TILED if tiled else DECODE * pixels * batch
    encode = (TILED if tiled else ENCODE * pixels) if references else 0
    text = TEXT + TEXT_REFERENCE * references
    return max(decode, encode, text, DENOISE[precision] * tokens)
