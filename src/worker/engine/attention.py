"""Which of torch's kernels computes attention on a device: torch's own choice, asked beforehand."""

from typing import Final

import torch
from torch.nn.attention import SDPBackend

# [batch, heads, tokens, dim] of the published transformer at 1024 x 1024 with a short prompt.
PROBED: Final = (1, 24, 4121, 128)


def find_backend(device: torch.device | str, shape: tuple[int, ...] = PROBED) -> str:
    """Name the kernel for unmasked attention in bf16, of that shape, in inference.

    `cudnn`, `flash`, `efficient`, `math`, or `overrideable`. Nothing is computed: this is what
    scaled_dot_product_attention itself asks. Raises what the device raises.
    """
    probe = torch.empty(shape, dtype=torch.bfloat16, device=device)
    with torch.inference_mode():
        chosen = SDPBackend(torch._fused_sdp_choice(probe, probe, probe))  # noqa: SLF001 - torch's only name for it
    return chosen.name.lower().partition("_")[0]
