"""The VAE as CUDA's kernels want it: weights and activations with their channels last in memory."""

from typing import Any, Final

import torch
from torch import nn

from worker.engine.compiled import Compiled
from worker.families.flux2.normalising import Activated, FrameResidual, normalise

# Both are SiLU in a configuration.
SILU: Final = ("silu", "swish")


def is_best_last(device: torch.device) -> bool:
    """Return whether a device's convolutions are faster where the channels are last.

    cuDNN's are: given the channels first they copy what they take and what they give. An H100 so
    decodes 1024 x 1024 in 91 ms and 2.55 GB; with the channels last in 46 ms and 1.48 GB, and in 38
    with the norms compiled.
    """
    return device.type == "cuda"


def arrange(vae: Any) -> Any:
    """Put an AutoencoderKLFlux2's channels last where that is best; else it stays as it is.

    Each group norm with the SiLU after it becomes one module. One with another activation stays as
    it is, and so does one that is arranged: models may share it.
    """
    if not is_best_last(vae.device) or is_arranged(vae) or vae.config.act_fn not in SILU:
        return vae
    for module in vae.modules():
        if isinstance(module, nn.Conv2d):
            weight = module.weight.detach().contiguous(memory_format=torch.channels_last)
            module.weight = nn.Parameter(weight, requires_grad=False)
    for half, others in (
        (vae.encoder, vae.encoder.down_blocks),
        (vae.decoder, vae.decoder.up_blocks),
    ):
        for block in (half.mid_block, *others):
            block.resnets = nn.ModuleList(map(FrameResidual, block.resnets))
        half.conv_norm_out, half.conv_act = Activated(half.conv_norm_out), nn.Identity()
    return vae


def is_arranged(vae: Any) -> bool:
    """Return whether a VAE has its channels last."""
    return isinstance(vae.decoder.conv_norm_out, Activated)


def list_activated(vae: Any) -> list[Activated]:
    """Return every group norm with its SiLU; none of a VAE that is not arranged."""
    return [module for module in vae.modules() if isinstance(module, Activated)]


def compile_activated(vae: Any) -> Compiled | None:
    """Return what all norms of a VAE run, compiled as they are used; None where there are none.

    Several models may have one VAE: a second call changes nothing.
    """
    activated = list_activated(vae)
    if not activated:
        return None
    shared = activated[0].run
    if not isinstance(shared, Compiled):
        shared = Compiled(normalise)
        for module in activated:
            module.run = shared
    return shared
