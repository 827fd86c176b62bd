"""How much device memory weights and pictures take, computed from what is requested.

The constants of pictures are fitted to the peaks that the pretend device shows (`python -m
tools.pretend.flux`): no phase takes more than what is computed here. They are of the published
widths, uncompiled; the slack of the allocator and the workspaces of CUDA's libraries come on top
(driver.CONTEXT_BYTES).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from worker.setting_values import Precision

# Every prompt has this many tokens: the transformer attends to the padding too.
TOKENS: Final = 512
# Pixels of a token of the transformer: 8 x 8 per latent, 2 x 2 latents.
TOKEN_PIXELS: Final = 16 * 16
# Channels of a head in the transformer, and of all heads for queries and for keys in Qwen3 and
# Mistral.
HEAD: Final = 128
QUERY_CHANNELS: Final = 32 * HEAD
KEY_CHANNELS: Final = 8 * HEAD
# Bytes per pixel at full size while decoding and encoding, for each channel there. The tensors
# alone are 11.0 and 8.2; the rest is for the workspaces of convolutions, which the pretend device
# knows only where the channels come first. There, at 1024 x 1024, it shows 2.16 GB for decoding and
# 1.63 for encoding, and an H100 took 2.60 and 1.70: so they are last (arranging.py).
FRAME_CHANNEL: Final = 12.01
ENCODED_CHANNEL: Final = 10.3
BASE_WIDTH: Final = 128
TILE_PIXELS: Final = 512 * 512
# Bytes per pixel of the tiles that are finished.
TILED_FRAME: Final = 8
# Bytes that stay during the loop: positions and latents per token, and what does not depend on the
# size; each prompt is there twice, cached and in its batch.
KEPT_TOKEN: Final = 1_536
KEPT: Final = 600_000
# Bytes per token and channel of the stream in a single block, the widest place of the transformer:
# queries, keys, values and the MLP are one product there. In 8bit its scaling in fp32 is wider.
WIDE: Final = 42.25
WIDE_8BIT: Final = 44.3
# A LoRA's own product there.
ADAPTED: Final = 18.5
# The largest weight in bf16 while it is multiplied, per channel squared.
UNPACKED: Final[Mapping[Precision, float]] = {"bf16": 0.0, "8bit": 8.02, "4bit": 8.26}
# Bytes per token of the picture that another is begun from: latents, noise and a mask.
BEGUN_TOKEN: Final = 128 * (2 + 2 + 1)
# Bytes per token in the text encoder's MLP, for each of its channels and of the stream's, and
# while its largest weight is in bf16.
MLP: Final = 6.0
STREAM: Final = 2.5
MLP_UNPACKED: Final = 5.35
# Bytes per weight as it is stored: in NF4 with its scales, in int8 with one scale per row.
STORED: Final[Mapping[Precision, float]] = {"bf16": 2.0, "8bit": 1.0015, "4bit": 0.5161}
# Two layers of the text encoder are on the device while it passes through.
PASSING_LAYERS: Final = 2
# The sides of the Linears of a block for LoRAs, in channels of the stream.
DOUBLE_SIDES: Final = 38
SINGLE_SIDES: Final = 15
# Bytes of the VAE.
VAE_BYTES: Final = 170_000_000


@dataclass(frozen=True, slots=True)
class Edition:
    """The widths of one published size: heads of 128 channels, blocks, and its text encoder's.

    `layers` are those of the text encoder as published, `words` those of its table.
    """

    heads: int
    double: int
    single: int
    hidden: int
    intermediate: int
    words: int
    layers: int = 36

    @property
    def channels(self) -> int:
        """How many channels the transformer's stream has."""
        return self.heads * HEAD

    @property
    def layer(self) -> int:
        """How many weights one layer of the text encoder has."""
        attention = 2 * self.hidden * QUERY_CHANNELS + 2 * self.hidden * KEY_CHANNELS
        return attention + 3 * self.hidden * self.intermediate

    @property
    def run_layers(self) -> int:
        """How many layers of the text encoder are run."""
        return self.layers * 3 // 4

    def count_weights(self, precision: Precision) -> tuple[int, int]:
        """Return the bytes of the transformer, and of the text encoder."""
        square = self.channels**2
        blocks = (self.double * 26 + self.single * 13) * square
        # embedders, the time's, three modulations, the last layers
        kept = (18.2 + self.hidden * 3 / self.channels) * square
        table = 2 * self.words * self.hidden
        stored = STORED[precision]
        return (
            int(stored * blocks + 2 * kept),
            int(stored * self.run_layers * self.layer + table),
        )


SMALL_EDITION: Final = Edition(24, 5, 20, 2560, 9728, 151_936)
LARGE_EDITION: Final = Edition(32, 8, 24, 4096, 12_288, 151_936)
DEV_EDITION: Final = Edition(48, 8, 48, 5120, 32_768, 131_072, layers=40)


@dataclass(frozen=True, slots=True)
class FluxLoad:
    """What is made together: `batch` pictures of `pixels`, each of `references` of its own size.

    With `begins` they begin from pictures, of which they keep what masks leave; with `guided` CFG
    runs. `ranks` is the sum of the ranks of the LoRAs that jobs brought. `tiled` is how the VAE
    runs; with `passing` the text encoder waits in the host's memory.
    """

    pixels: int
    references: int
    batch: int = 1
    precision: Precision = "bf16"
    edition: Edition = SMALL_EDITION
    ranks: int = 0
    begins: bool = False
    guided: bool = False
    tiled: bool = False
    passing: bool = False


def count_frame_bytes(pixels: int, width: int = BASE_WIDTH) -> int:
    """Return the peak in bytes of encoding or decoding a picture in one piece.

    `width` is the number of channels of the VAE at full size.
    """
    return int(FRAME_CHANNEL * width * pixels)


def estimate_phases(load: FluxLoad) -> dict[str, int]:
    """Return the peak in bytes of each phase, in addition to the weights."""
    edition, precision, channels = load.edition, load.precision, load.edition.channels
    tokens = load.batch * (1 + load.references) * load.pixels // TOKEN_PIXELS
    prompts = load.batch * (2 if load.guided else 1)
    embedded = 2 * prompts * TOKENS * 3 * edition.hidden * 2
    brought = load.ranks * count_rank_bytes(edition)
    begun = BEGUN_TOKEN * load.batch * load.pixels // TOKEN_PIXELS if load.begins else 0
    kept = KEPT + KEPT_TOKEN * tokens + embedded + brought
    seen = tokens + load.batch * TOKENS
    adapted = ADAPTED * channels * seen if load.ranks else 0
    wide = WIDE * channels * seen + UNPACKED[precision] * channels**2
    if precision == "8bit":
        wide = max(wide, WIDE_8BIT * channels * seen)
    frame, encoded = count_frame_bytes(load.pixels), ENCODED_CHANNEL * BASE_WIDTH * load.pixels
    if load.tiled:
        frame = count_frame_bytes(TILE_PIXELS) + TILED_FRAME * load.pixels
        encoded = frame
    phases = {
        "text": brought + embedded + _count_text_bytes(load),
        "denoise": kept + begun + int(wide + adapted),
        "decode": kept + frame,
    }
    encodes = load.references or load.begins
    return phases | ({"reference": kept + begun + int(encoded)} if encodes else {})


def _count_text_bytes(load: FluxLoad) -> int:
    """Return the peak in bytes of embedding one prompt: every layer's hidden states are there."""
    edition = load.edition
    states = (edition.run_layers + 1) * TOKENS * edition.hidden * 2
    wide = TOKENS * (MLP * edition.intermediate + STREAM * edition.hidden)
    if load.precision != "bf16":
        weight = 2 * edition.hidden * edition.intermediate
        wide = max(wide, weight + TOKENS * MLP_UNPACKED * edition.intermediate)
    passing = PASSING_LAYERS * STORED[load.precision] * edition.layer if load.passing else 0
    return int(states + wide + passing)


def count_rank_bytes(edition: Edition) -> int:
    """Return the bytes in bf16 of a LoRA of rank 1 for every Linear of every block."""
    sides = DOUBLE_SIDES * edition.double + SINGLE_SIDES * edition.single
    return 2 * sides * edition.channels


def estimate_working(load: FluxLoad) -> int:
    """Return the highest peak in bytes of all phases, in addition to the weights."""
    return max(estimate_phases(load).values())
