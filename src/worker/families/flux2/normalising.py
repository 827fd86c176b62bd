"""Group norm and SiLU of frames that have their channels last in memory, without a copy of them.

torch's group norm on CUDA copies such a frame to have its channels first, and cuDNN copies it back.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def normalise(norm: nn.GroupNorm, frame: Tensor) -> tuple[Tensor]:
    """Return silu(norm(frame)) of a dense frame [height, width, channels], in its dtype.

    The statistics are float32, of each row first: the variance of a group is the mean of those in
    its rows and the variance of their means, so that no large numbers cancel. On CUDA nothing as
    large as the frame is made but the result: the sums and the last product convert as they read.
    """
    height, width, _ = frame.shape
    means = frame.mean(dim=1, dtype=torch.float32).view(height, norm.num_groups, -1)
    lengths = torch.linalg.vector_norm(frame, dim=1, dtype=torch.float32).view_as(means)
    mean = means.mean(dim=(0, 2), keepdim=True)
    within = (lengths.square() / width - means.square()).clamp(min=0.0)
    variance = (within + (means - mean).square()).mean(dim=(0, 2), keepdim=True)
    factor = norm.weight.float().view_as(means[:1]) * torch.rsqrt(variance + norm.eps)
    shift = norm.bias.float().view_as(means[:1]) - mean * factor
    made = torch.empty_like(frame)
    torch.addcmul(shift.flatten(), frame, factor.flatten(), out=made)
    return (functional.silu(made, inplace=True),)


class Activated(nn.GroupNorm):
    """A group norm and the SiLU after it, of frames that have their channels last in memory.

    Its parameters are those of the norm that it replaces, and have their names. `run` is
    `normalise`, or that compiled.
    """

    run: Callable[..., tuple[Tensor, ...]]

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__(norm.num_groups, norm.num_channels, norm.eps, device="meta")
        self.weight, self.bias = norm.weight, norm.bias
        self.run = normalise

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - as nn.GroupNorm has it
        """Map [batch, channels, height, width] to the same, with the channels last too."""
        frames = input.permute(0, 2, 3, 1).contiguous()
        # each alone: one graph for any number of them
        made = [self.run(self, frame)[0].unsqueeze(0) for frame in frames.unbind()]
        return (made[0] if len(made) == 1 else torch.cat(made)).permute(0, 3, 1, 2)


class FrameResidual(nn.Module):
    """Two convolutions, each of what is normed and activated, next to a shortcut.

    In place of diffusers' ResnetBlock2D without an embedded time, whose sum it adds up in place.
    """

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.norm1, self.norm2 = Activated(source.norm1), Activated(source.norm2)
        self.conv1, self.conv2 = source.conv1, source.conv2
        self.conv_shortcut = source.conv_shortcut

    def forward(self, x: Tensor, temb: None = None) -> Tensor:
        """Map [batch, channels, height, width] to as many channels as the convolutions have."""
        del temb
        inner: Tensor = self.norm2(self.conv1(self.norm1(x)))
        inner = self.conv2(inner)
        return inner.add_(x if self.conv_shortcut is None else self.conv_shortcut(x))
