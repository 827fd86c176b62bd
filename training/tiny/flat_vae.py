"""The Qwen-Image VAE for single frames: 2-D twins of its causal 3-D convolutions, for training.

A single frame meets only the last temporal tap of a causal convolution (the others see padding), so
a Conv2d with that tap computes the same function, two to three times as fast on a CPU.
"""

import copy
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name every torch source uses
from torch import Tensor, nn


class Norm(nn.Module):
    """RMS norm over the channels of (B, C, H, W), as QwenImageRMS_norm."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.gamma = nn.Parameter(source.gamma.detach().clone().reshape(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the normed (B, C, H, W)."""
        scale: Tensor = torch.rsqrt(x.float().square().mean(dim=1, keepdim=True) + 1e-12).to(
            x.dtype
        )
        return x * scale * self.gamma


def _conv(source: Any) -> nn.Conv2d:
    """Return the Conv2d with the last temporal tap of a causal Conv3d."""
    size = source.kernel_size[1]
    twin = nn.Conv2d(source.in_channels, source.out_channels, size, padding=size // 2)
    twin.load_state_dict({"weight": source.weight[:, :, -1], "bias": source.bias})
    return twin


class Residual(nn.Module):
    """Norm, SiLU and convolution, twice, plus a shortcut; as QwenImageResidualBlock."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.norm1, self.norm2 = Norm(source.norm1), Norm(source.norm2)
        self.conv1, self.conv2 = _conv(source.conv1), _conv(source.conv2)
        same = isinstance(source.conv_shortcut, nn.Identity)
        self.conv_shortcut = nn.Identity() if same else _conv(source.conv_shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H, W)."""
        h = self.conv1(F.silu(self.norm1(x)))
        out: Tensor = self.conv_shortcut(x) + self.conv2(F.silu(self.norm2(h)))
        return out


class Attention(nn.Module):
    """Single-head self-attention over the positions of a frame; as QwenImageAttentionBlock."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.norm = Norm(source.norm)
        self.to_qkv = nn.Conv2d(source.dim, 3 * source.dim, 1)
        self.proj = nn.Conv2d(source.dim, source.dim, 1)
        self.to_qkv.load_state_dict(source.to_qkv.state_dict())
        self.proj.load_state_dict(source.proj.state_dict())

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        b, c, h, w = x.shape
        qkv = self.to_qkv(self.norm(x)).reshape(b, 1, 3 * c, h * w).transpose(2, 3)
        q, k, v = qkv.chunk(3, dim=-1)
        mixed = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = x + self.proj(mixed.reshape(b, h * w, c).transpose(1, 2).reshape(b, c, h, w))
        return out


def _half(source: Any, entry: str) -> nn.ModuleDict:
    """Return the twin of an encoder or decoder, with the same names, so that weights map back."""
    mid = nn.ModuleDict(
        {
            "resnets": nn.ModuleList([Residual(block) for block in source.mid_block.resnets]),
            "attentions": nn.ModuleList(
                [Attention(block) for block in source.mid_block.attentions]
            ),
        }
    )
    blocks: list[nn.Module] = []
    for block in getattr(source, entry):
        if hasattr(block, "conv1"):
            blocks.append(Residual(block))
        elif hasattr(block, "resample"):
            blocks.append(nn.ModuleDict({"resample": copy.deepcopy(block.resample)}))
        else:
            up = {"resnets": nn.ModuleList([Residual(inner) for inner in block.resnets])}
            if block.upsamplers is not None:
                steps = [
                    nn.ModuleDict({"resample": copy.deepcopy(one.resample)})
                    for one in block.upsamplers
                ]
                up["upsamplers"] = nn.ModuleList(steps)
            blocks.append(nn.ModuleDict(up))
    return nn.ModuleDict(
        {
            "conv_in": _conv(source.conv_in),
            entry: nn.ModuleList(blocks),
            "mid_block": mid,
            "norm_out": Norm(source.norm_out),
            "conv_out": _conv(source.conv_out),
        }
    )


class FlatVae(nn.Module):
    """Encode and decode single frames with the weights of an AutoencoderKLQwenImage."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.encoder = _half(vae.encoder, "down_blocks")
        self.decoder = _half(vae.decoder, "up_blocks")
        self.quant_conv, self.post_quant_conv = _conv(vae.quant_conv), _conv(vae.post_quant_conv)

    def _middle(self, half: nn.ModuleDict, x: Tensor) -> Tensor:
        mid: Any = half["mid_block"]
        x = mid["resnets"][0](x)
        for attention, residual in zip(mid["attentions"], mid["resnets"][1:], strict=True):
            x = residual(attention(x))
        return x

    def encode(self, frames: Tensor) -> Tensor:
        """Return mean and log-variance (B, 2 z, H/8, W/8) of frames (B, 3, H, W) in -1..1."""
        half: Any = self.encoder
        x = half["conv_in"](frames)
        for block in half["down_blocks"]:
            x = block["resample"](x) if isinstance(block, nn.ModuleDict) else block(x)
        x = half["conv_out"](F.silu(half["norm_out"](self._middle(half, x))))
        moments: Tensor = self.quant_conv(x)
        return moments

    def decode(self, latents: Tensor) -> Tensor:
        """Return frames (B, 3, H, W), not clamped, of latents (B, z, H/8, W/8)."""
        half: Any = self.decoder
        x = self._middle(half, half["conv_in"](self.post_quant_conv(latents)))
        for block in half["up_blocks"]:
            for residual in block["resnets"]:
                x = residual(x)
            if "upsamplers" in block:
                x = block["upsamplers"][0]["resample"](x)
        frames: Tensor = half["conv_out"](F.silu(half["norm_out"](x)))
        return frames

    @torch.no_grad()
    def write_back(self, vae: Any) -> None:
        """Copy the weights into the 3-D `vae`: last temporal tap = ours, the others zero.

        Temporal convolutions (`time_conv`), which no single frame meets, become zero too.
        """
        target = dict(vae.named_parameters())
        for name, ours in self.named_parameters():
            theirs = target.pop(name)
            if theirs.dim() == ours.dim() + 1 and theirs.dim() == 5:
                theirs.zero_()
                theirs[:, :, -1].copy_(ours)
            else:
                theirs.copy_(ours.reshape(theirs.shape))
        for name, left in target.items():
            if ".time_conv." not in name:
                raise KeyError(name)
            left.zero_()


@torch.no_grad()
def initialise(vae: Any, seed: int) -> None:
    """Give a VAE weights that train on single frames.

    The default initialisation counts all 27 taps of a causal convolution, of which a frame uses 9.
    Here the last temporal tap is He-normal over 9, the others are zero, biases are zero, the second
    convolution of each residual block is scaled by 0.3, and the log-variance starts at -4.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, weight in vae.named_parameters():
        if name.endswith("gamma"):
            weight.fill_(1.0)
        elif weight.dim() == 1:
            weight.zero_()
        else:
            last = weight[:, :, -1] if weight.dim() == 5 else weight
            weight.zero_()
            std = (2.0 / last[0].numel()) ** 0.5
            last.normal_(0.0, std * (0.3 if "conv2" in name else 1.0), generator=generator)
    z = vae.config.z_dim
    vae.quant_conv.weight.zero_()
    vae.quant_conv.weight[:z, :z, 0, 0, 0].copy_(torch.eye(z))
    vae.quant_conv.bias[z:] = -4.0
