"""The graphs of blocks and of the VAE's norms that jobs need, compiled before the first job."""

from typing import Any, Final

import torch

from worker.engine.compiled import Compiled
from worker.families.flux2.arranging import list_activated
from worker.families.flux2.components import Flux2Parts
from worker.families.flux2.forward import PicturePlace
from worker.families.flux2.shares import make_shares

# Graphs are for all sizes, so small ones do; unequal, so that nothing is equal by chance.
PLACES: Final[list[PicturePlace]] = [(0, 8, 12), (10, 6, 10)]
TEXT_TOKENS: Final = 23
# One row has its own graph, since torch compiles 1 as a constant; all other numbers share one.
BATCHES: Final = (1, 3)
# Height and width of a frame: large enough for the blocks of a kernel to be those of a picture.
FRAME: Final = (96, 128)


@torch.inference_mode()
def compile_norms(vae: Any) -> None:
    """Run a VAE's norms on a small frame of each number of channels: each has its own graph.

    Before any picture: a graph's first result is compared, for which a large frame takes more
    memory than a job does. Nothing is run where nothing is compiled.
    """
    generator = torch.Generator().manual_seed(0)
    compiled = [module for module in list_activated(vae) if isinstance(module.run, Compiled)]
    for channels, module in {module.num_channels: module for module in compiled}.items():
        frame = torch.randn(1, channels, *FRAME, generator=generator)
        module(frame.to(vae.device, vae.dtype))


@torch.inference_mode()
def compile_rest(parts: Flux2Parts) -> None:
    """Run a forward without weights of references and with them, for one row and for several.

    Nothing is run where nothing is compiled.
    """
    config = parts.transformer.config
    generator = torch.Generator().manual_seed(0)

    def make(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(parts.device, parts.dtype)

    counts = [height * width for _, height, width in PLACES]
    for rows in BATCHES[: parts.compiled_batch]:
        guided = torch.ones(rows, device=parts.device) if config.guidance_embeds else None
        for weight in (1.0, 2.0):
            shares = make_shares(
                (1.0, weight),
                (TEXT_TOKENS + counts[0], counts[1]),
                config.attention_head_dim,
                parts.dtype,
            )
            parts.forward(
                make(rows, sum(counts), config.in_channels),
                torch.full((rows,), 0.5, dtype=parts.dtype, device=parts.device),
                make(rows, TEXT_TOKENS, config.joint_attention_dim),
                PLACES,
                guidance=guided,
                shares=None if shares is None else shares.to(parts.device),
            )
