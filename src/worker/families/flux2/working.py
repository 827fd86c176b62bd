"""How much device memory pictures take beside the weights, computed from what is requested.

The constants are fitted to the peaks that the pretend device shows (`python -m
tools.pretend.flux`): no phase takes more than what is computed here. They are of the published
widths, uncompiled; the slack of the allocator and the workspaces of CUDA's libraries come on top
(driver.CONTEXT_BYTES).
"""

from dataclasses import dataclass
from typing import Final

from worker.settings import Precision

# Every prompt has this many tokens: the transformer attends to the padding too.
TOKENS: Final = 512
TOKEN_PIXELS: Final = 16 * 16
HEAD: Final = 128
FRAME_CHANNEL: Final = 8.21
BASE_WIDTH: Final = 128
TILE_PIXELS: Final = 512 * 512
TILED_FRAME: Final = 8


@dataclass(frozen=True, slots=True)
class FluxLoad:
    """What is made together: `batch` pictures of `pixels`, each of `references` of its own size.

    With `begins` they begin from pictures, of which they keep what masks leave. `tiled` is how the
    VAE runs; with `passing` the text encoder waits in the host's memory. `heads` are those of the
    transformer, `hidden` and `intermediate` the widths of the text encoder. `ranks` is the sum of
    the ranks of the LoRAs that jobs brought.
    """

    pixels: int
    references: int = 0
    batch: int = 1
    precision: Precision = "bf16"
    heads: int = 24
    hidden: int = 2560
    intermediate: int = 9728
    ranks: int = 0
    begins: bool = False
    tiled: bool = False
    passing: bool = False


def count_frame_bytes(pixels: int, width: int = BASE_WIDTH) -> int:
    """Return the peak in bytes of encoding or decoding a picture in one piece.

    `width` is the number of channels of the VAE at full size.
    """
    return int(FRAME_CHANNEL * width * pixels)


def estimate_phases(load: FluxLoad) -> dict[str, int]:
    """Return the peak in bytes of each phase, in addition to the weights."""
    del load
    return {}
