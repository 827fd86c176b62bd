"""How much device memory pictures take beside the weights, computed from what is requested.

The constants are fitted to the peaks that the pretend device shows (`make pretend-gpu`): no phase
takes more than what is computed here, and the largest no less than 85 % of it. They are of the
published architecture, uncompiled; the slack of the allocator and the workspaces of CUDA's
libraries come on top (driver.CONTEXT_BYTES).
"""

from dataclasses import dataclass, field
from typing import Final

from worker.setting_values import Precision

# The tokens that are used of a prompt.
MAX_TOKENS: Final = 1024
# The steps whose modulation rows are kept: Lightning's, 8 and 4, 53 MB for 60 blocks.
KEPT_STEPS: Final = 12
# Pixels of a token of the transformer (8 x 8 per latent, 2 x 2 latents), and of one of the text
# encoder (14 x 14 per patch, 2 x 2 patches).
TOKEN_PIXELS: Final = 16 * 16
SHOWN_TOKEN_PIXELS: Final = 28 * 28
# The tokens of the system's text around a prompt.
SYSTEM_TOKENS: Final = 70
# Pixels of a reference as the text encoder sees it.
SHOWN_PIXELS: Final = 384 * 384

# Bytes per pixel of the norms at full size in the VAE: bf16 in and out, fp32 between, and a little,
# for each of its channels there.
FRAME_CHANNEL: Final = 8.21
BASE_DIM: Final = 96
# In tiles: that of one tile, and per pixel the finished tiles.
TILE_PIXELS: Final = 256 * 256
TILED_FRAME: Final = 8
# Bytes per pixel of a decoded picture.
PICTURE: Final = 6
# Bytes per picture token in the MLP of a block, the widest place of the transformer: in 8bit the
# scaling in fp32 is wider than the products of a LoRA.
IMAGE_TOKEN: Final[dict[Precision, int]] = {"bf16": 74_500, "4bit": 74_500, "8bit": 124_000}
ADAPTED_TOKEN: Final = 99_500
# The largest weight in bf16 while it is multiplied, and the bytes per token meanwhile.
UNPACKED: Final[dict[Precision, int]] = {"bf16": 0, "4bit": 80_500_000, "8bit": 75_500_000}
UNPACKED_TOKEN: Final = 52_000
# Bytes per token of the prompt meanwhile.
TEXT_TOKEN: Final = 31_000
# Bytes that stay during the loop: modulation rows per step (60 blocks, 2 streams, 6 x 3072 values
# in bf16), positions and latents per picture token, and what does not depend on the size.
STEP_ROWS: Final = 60 * 2 * 6 * 3072 * 2
# With LoRAs of jobs the rows have a third part where references are modulated by t = 0.
ADAPTED_ROWS: Final = STEP_ROWS * 3 // 2
KEPT_TOKEN: Final = 2_400
KEPT: Final = 10_000_000
# Bytes of a LoRA in bf16 per rank: 60 blocks, 14 modules with 50 x 3072 inputs and outputs.
RANK_BYTES: Final = 2 * 60 * 50 * 3072
# Bytes per token of the picture that another is begun from: its latents, 64 channels in bf16, and
# its mask.
BEGUN_TOKEN: Final = 64 * (2 + 1)
# The text encoder: its largest weight in bf16 while it is multiplied and the bytes per token
# meanwhile, those of its MLP, and those of the vision tower per pixel of a reference.
TEXT_UNPACKED: Final[dict[Precision, int]] = {"bf16": 0, "4bit": 142_000_000, "8bit": 137_000_000}
TEXT_UNPACKED_TOKEN: Final = 106_000
ENCODED_TOKEN: Final = 150_000
# Two layers of it, as they pass through the device where it waits in the host's memory.
PASSING: Final[dict[Precision, int]] = {
    "bf16": 932_300_000,
    "8bit": 466_600_000,
    "4bit": 240_500_000,
}
SHOWN: Final = 150


@dataclass(frozen=True, slots=True)
class Load:
    """What is made together: `batch` pictures of `pixels`, each of `references` of its own size.

    With `begins` they begin from pictures, of which they keep what masks leave.
    With `adapters` a LoRA beside the weights is in use; `ranks` is the sum of the ranks of those
    that jobs brought. `tiled` is how the VAE runs; with `passing` the text encoder waits in the
    host's memory.
    `prompt_tokens` is the length of the user's text; `shown_pixels` is the size of each reference
    as the text encoder sees it.
    """

    pixels: int
    references: int = 0
    batch: int = 1
    adapters: bool = False
    ranks: int = 0
    precision: Precision = "bf16"
    tiled: bool = False
    steps: int = field(kw_only=True)
    prompt_tokens: int = MAX_TOKENS
    shown_pixels: int = SHOWN_PIXELS
    begins: bool = False
    passing: bool = False


def count_frame_bytes(pixels: int, base_dim: int = BASE_DIM) -> int:
    """Return the peak in bytes of encoding or decoding a picture in one piece."""
    return int(FRAME_CHANNEL * base_dim * pixels)


def estimate_phases(load: Load) -> dict[str, int]:
    """Return the peak in bytes of each phase, in addition to the weights."""
    precision, batch = load.precision, load.batch
    shown = load.references * load.shown_pixels
    prompt = load.prompt_tokens + SYSTEM_TOKENS + shown // SHOWN_TOKEN_PIXELS
    tokens = batch * (1 + load.references) * load.pixels // TOKEN_PIXELS
    positions = KEPT + KEPT_TOKEN * tokens
    brought = load.ranks * RANK_BYTES
    positions += brought
    kept = positions + load.steps * (ADAPTED_ROWS if load.ranks else STEP_ROWS)
    frame = count_frame_bytes(load.pixels)
    if load.tiled:
        frame = count_frame_bytes(TILE_PIXELS) + TILED_FRAME * load.pixels
    begun = BEGUN_TOKEN * batch * load.pixels // TOKEN_PIXELS if load.begins else 0
    wide = IMAGE_TOKEN[precision]
    if load.adapters or load.ranks:
        wide = max(wide, ADAPTED_TOKEN)
    unpacked = UNPACKED[precision] + UNPACKED_TOKEN * tokens
    encoded = TEXT_UNPACKED[precision] + TEXT_UNPACKED_TOKEN * prompt
    phases = {
        "text": brought
        + max(encoded, ENCODED_TOKEN * prompt)
        + SHOWN * shown
        + (PASSING[precision] if load.passing else 0),
        "denoise": kept + begun + max(wide * tokens, unpacked) + TEXT_TOKEN * batch * prompt,
        "decode": kept + frame + PICTURE * load.pixels * batch,
    }
    encodes = load.references or load.begins
    return phases | ({"reference": positions + begun + frame} if encodes else {})


def estimate_working(load: Load) -> int:
    """Return the highest peak in bytes of all phases, in addition to the weights."""
    return max(estimate_phases(load).values())
