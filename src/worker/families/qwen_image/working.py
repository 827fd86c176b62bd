"""How much device memory pictures take beside the weights, computed from what is requested.

The constants are fitted to the peaks of the pretend device (`make pretend-gpu`), where every phase
takes at most what is computed here, and the largest of them no less than 85 % of it: activations of
the published architecture, without the slack of the allocator and the workspaces of CUDA's
libraries.
"""

from typing import Final

from worker.engine.quantise import Precision
from worker.families.qwen_image.prompts import MAX_TOKENS
from worker.seam import Phase

# Pixels of a token of the transformer: 8 x 8 per latent, 2 x 2 latents per token.
TOKEN_PIXELS: Final = 256
# The steps of the base schedule by default, and the tokens of the system's text around a prompt.
BASE_STEPS: Final = 50
SYSTEM_TOKENS: Final = 70

# Bytes per pixel of the norms at full size in the VAE: 96 channels, bf16 in and out, fp32 between.
FRAME: Final = 788
# In tiles: that of one tile of 256 x 256, and per pixel the finished tiles and their join.
TILE_PIXELS: Final = 256 * 256
TILED_FRAME: Final = 20
# Bytes per pixel of a decoded picture that waits for the others of its batch.
PICTURE: Final = 6
# Bytes per picture token in the MLP of a block, the widest place of the transformer: in 8bit the
# scaling in fp32 is wider than the products of a LoRA.
IMAGE_TOKEN: Final[dict[Precision, int]] = {"bf16": 74_500, "4bit": 74_500, "8bit": 148_500}
ADAPTED_TOKEN: Final = 99_500
# Bytes per token of the prompt meanwhile.
TEXT_TOKEN: Final = 31_000
# Bytes that stay during the loop: modulation rows per step (60 blocks, 2 streams, 6 x 3072 values
# in bf16), positions and latents per picture token, and what does not depend on the size.
STEP_ROWS: Final = 2 * 60 * 6 * 3072 * 2
KEPT_TOKEN: Final = 2_400
KEPT: Final = 10_000_000
# The text encoder: its largest weight in bf16 while it is multiplied, activations per token, and
# those of the vision tower per reference of 384 x 384, which becomes 196 tokens.
STORED: Final[dict[Precision, int]] = {"bf16": 0, "4bit": 142_000_000, "8bit": 137_000_000}
ENCODED_TOKEN: Final = 106_000
REFERENCE: Final = 21_000_000
REFERENCE_TOKENS: Final = 196


def estimate_phases(
    pixels: int,
    references: int = 0,
    batch: int = 1,
    adapters: int = 0,
    *,
    precision: Precision = "bf16",
    tiled: bool = False,
    steps: int = BASE_STEPS,
    text_tokens: int = MAX_TOKENS,
) -> dict[Phase, int]:
    """Return the peak in bytes of each phase, in addition to the weights.

    `batch` pictures of `pixels` are made together, each from `references` of its own size;
    `adapters` is 1 where a LoRA beside the weights is in use. `tiled` is how the VAE runs,
    `text_tokens` the length of the prompt.
    """
    tokens = batch * (1 + references) * pixels // TOKEN_PIXELS
    prompt = text_tokens + SYSTEM_TOKENS + references * REFERENCE_TOKENS
    kept = KEPT + steps * STEP_ROWS + KEPT_TOKEN * tokens
    per_token = max(IMAGE_TOKEN[precision], ADAPTED_TOKEN if adapters else 0)
    text = STORED[precision] + ENCODED_TOKEN * prompt + REFERENCE * references
    frame = FRAME * TILE_PIXELS + TILED_FRAME * pixels if tiled else FRAME * pixels
    found = {
        "text": text,
        "denoise": kept + per_token * tokens + TEXT_TOKEN * batch * prompt,
        "decode": kept + frame + PICTURE * pixels * batch,
    }
    return found | ({"reference": KEPT + KEPT_TOKEN * tokens + frame} if references else {})


def estimate_working(
    pixels: int,
    references: int = 0,
    batch: int = 1,
    adapters: int = 0,
    *,
    precision: Precision = "bf16",
    tiled: bool = False,
    steps: int = BASE_STEPS,
    text_tokens: int = MAX_TOKENS,
) -> int:
    """Return the highest peak in bytes of all phases, as `estimate_phases`."""
    phases = estimate_phases(
        pixels,
        references,
        batch,
        adapters,
        precision=precision,
        tiled=tiled,
        steps=steps,
        text_tokens=text_tokens,
    )
    return max(phases.values())
