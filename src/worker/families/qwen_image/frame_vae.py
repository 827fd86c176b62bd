"""The published VAE on single frames: of each causal kernel, the slice that meets the frame.

AutoencoderKLQwenImage is made for video. Where there is one frame, its causal convolutions pad with
zeros in time: of every 3x3x3 kernel only the last temporal slice meets data, the convolutions in
time never run, and the cache of earlier frames is filled and never read. Results are diffusers' but
for the order of sums, which some processors choose otherwise in two dimensions than in three
(docs/numbers.md); decoding at 1024x1024 takes less than a quarter of the memory and two fifths of
the operations.
"""

from collections.abc import Iterator
from typing import Any, Final

import torch
from diffusers.models.autoencoders import autoencoder_kl_qwenimage as published
from torch import Tensor, nn
from torch.nn import functional

from worker.families.tiles import Tiling, run_in_tiles

# Pixels of a tile's side and between the starts of two (diffusers' enable_tiling).
TILE: Final = 256
STRIDE: Final = 192
# The smallest norm that is divided by (torch.nn.functional.normalize).
EPSILON: Final = 1e-12
# The smallest plane of pixels that is worth one call of its own.
PLANE_PIXELS: Final = 1024


class FrameVae(nn.Module):
    """Encode and decode frames with the weights of a filled AutoencoderKLQwenImage.

    What it keeps of the published module, whose configuration is `config`, is a third of the
    weights; on CUDA they are channels_last. Activations are overwritten: for inference alone.
    """

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.config = vae.config
        self._scale: int = vae.spatial_compression_ratio
        self.encoder = nn.Sequential(*map(_flatten, [*_list_modules(vae.encoder), vae.quant_conv]))
        self.decoder = nn.Sequential(
            *map(_flatten, [vae.post_quant_conv, *_list_modules(vae.decoder)])
        )
        self.eval().requires_grad_(requires_grad=False)

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of the weights and of what is given and returned."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Return where the weights are."""
        return next(self.parameters()).device

    def encode(self, pixels: Tensor, *, tiled: bool = False) -> Tensor:
        """Return the means [batch, z, height / 8, width / 8] of pixels [batch, 3, height, width].

        `tiled` takes less memory and gives slightly different latents.
        """
        tiling = Tiling((TILE, STRIDE), (TILE // self._scale, STRIDE // self._scale))
        moments = _run_each(self.encoder, pixels, tiling if tiled else None)
        return moments.chunk(2, dim=1)[0]

    def decode(self, latents: Tensor, *, tiled: bool = False) -> Tensor:
        """Return the pixels [batch, 3, height, width] of latents [batch, z, height / 8, width / 8].

        They are in [-1, 1]. `tiled` takes less memory and leaves faint seams.
        """
        tiling = Tiling((TILE // self._scale, STRIDE // self._scale), (TILE, STRIDE))
        return _run_each(self.decoder, latents, tiling if tiled else None).clamp_(-1.0, 1.0)


def _run_each(modules: nn.Module, frames: Tensor, tiling: Tiling | None) -> Tensor:
    """Run frames one after the other: a batch takes no more memory and changes no result."""
    layout = _choose_layout(frames.device)

    def run_one(frame: Tensor) -> Tensor:
        made: Tensor = modules(frame.contiguous(memory_format=layout))
        return made

    return torch.cat(
        [
            run_one(frame) if tiling is None else run_in_tiles(run_one, frame, tiling)
            for frame in torch.split(frames, 1)
        ]
    )


def _choose_layout(device: torch.device) -> torch.memory_format:
    """Return how activations and weights lie: as cuDNN's kernels want them, else as diffusers'."""
    return torch.channels_last if device.type == "cuda" else torch.contiguous_format


def _list_modules(source: Any) -> Iterator[Any]:
    """Yield the modules of the published VAE that a frame passes, in order, blocks undivided."""
    match source:
        case published.QwenImageEncoder3d():
            parts = [source.conv_in, *source.down_blocks, source.mid_block]
        case published.QwenImageDecoder3d():
            parts = [source.conv_in, source.mid_block, *source.up_blocks]
        case published.QwenImageMidBlock():
            pairs = zip(source.attentions, source.resnets[1:], strict=True)
            parts = [source.resnets[0], *(part for pair in pairs for part in pair)]
        case published.QwenImageUpBlock():
            parts = [*source.resnets, *(source.upsamplers or ())]
        case published.QwenImageResample():
            parts = [*source.resample]
        case _:
            yield source
            return
    if hasattr(source, "conv_out"):
        parts += [source.norm_out, source.conv_out]
    for part in parts:
        yield from _list_modules(part)


def _flatten(source: Any) -> nn.Module:
    """Return what an undivided module of the published VAE does to a single frame."""
    made: nn.Module
    match source:
        case published.QwenImageResidualBlock():
            made = _Residual(source)
        case published.QwenImageAttentionBlock():
            made = _Attention(source)
        case published.QwenImageRMS_norm():
            made = _Activated(source)
        case published.QwenImageUpsample():
            # the published one goes through fp32, which copies the same pixels
            made = nn.Upsample(scale_factor=source.scale_factor, mode=source.mode)
        case published.QwenImageCausalConv3d():
            made = _make_conv(source, source.weight[:, :, -1], source._padding[0])  # noqa: SLF001 - its `padding` is 0
        case nn.Conv2d():
            made = _make_conv(source, source.weight, int(source.padding[0]))
        case nn.ZeroPad2d() | nn.Identity():
            made = source
        case _:
            raise TypeError(f"the VAE has a {type(source).__name__}, which is not known here")
    return made


def _make_conv(source: Any, weight: Tensor, padding: int) -> nn.Conv2d:
    """Return a Conv2d with a weight [out, in, height, width] and the bias of a convolution."""
    layout = _choose_layout(weight.device)
    out, into, height, width = weight.shape
    made = nn.Conv2d(into, out, (height, width), source.stride[-1], padding, device="meta")
    made.weight = nn.Parameter(weight.contiguous(memory_format=layout))
    made.bias = nn.Parameter(source.bias)
    return made


def _compute_norm(wide: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the norm over the channels of values that are exact in `dtype`, in fp32.

    On a CPU torch's kernel adds one square after another, pixel by pixel: 1.6 ms for 32 channels of
    96 x 96. The squares of bf16 are exact, so that the same sums, plane by plane, have the same
    bits, in 0.16 ms; their roots are taken in fp64, since those of torch.sqrt in fp32 may be
    rounded wrongly.
    """
    height, width = wide.shape[2:]
    is_plain = wide.device.type == "cpu" and wide.is_contiguous()
    if not is_plain or dtype != torch.bfloat16 or height * width < PLANE_PIXELS:
        norm: Tensor = torch.linalg.vector_norm(wide, dim=1, keepdim=True)
        return norm
    planes: list[Tensor] = list(wide.square().split(1, dim=1))
    total = planes[0]
    for plane in planes[1:]:
        total.add_(plane)
    root: Tensor = total.double().sqrt_()
    return root.float()


class _Norm(nn.Module):
    """RMS norm over the channels, in fp32."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.scale: float = source.scale
        self.gamma = nn.Parameter(source.gamma.reshape(-1, 1, 1))

    def forward(self, x: Tensor, out: Tensor) -> Tensor:
        """Write the normed [batch, channels, height, width] to `out`, which may be `x`."""
        wide = x.to(torch.float32, copy=True)
        norm = _compute_norm(wide, x.dtype)
        out.copy_(wide.div_(norm.clamp_min_(EPSILON)))
        return out.mul_(self.scale).mul_(self.gamma)


class _Activated(nn.Module):
    """RMS norm and SiLU; overwrites what it is given."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.norm = _Norm(source)

    def forward(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Return [batch, channels, height, width], in `out` or in `x`."""
        return functional.silu(self.norm(x, x if out is None else out), inplace=True)


class _Residual(nn.Module):
    """Two convolutions, each of what is normed and activated, beside a shortcut."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.norm1, self.norm2 = _Activated(source.norm1), _Activated(source.norm2)
        self.conv1, self.conv2 = _flatten(source.conv1), _flatten(source.conv2)
        self.shortcut = _flatten(source.conv_shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, channels, height, width] to as many channels as the convolutions have."""
        inner = self.conv1(self.norm1(x, torch.empty_like(x)))
        mixed: Tensor = self.conv2(self.norm2(inner))
        return mixed.add_(self.shortcut(x))


class _Attention(nn.Module):
    """One head over all positions of a frame."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.norm = _Norm(source.norm)
        self.qkv, self.out = _flatten(source.to_qkv), _flatten(source.proj)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, channels, height, width] to the same shape."""
        batch, channels, height, width = x.shape
        projected = self.qkv(self.norm(x, torch.empty_like(x)))
        rows = projected.reshape(batch, 1, channels * 3, -1).permute(0, 1, 3, 2).contiguous()
        mixed = functional.scaled_dot_product_attention(*rows.chunk(3, dim=-1))
        frame = mixed.squeeze(1).permute(0, 2, 1).reshape(batch, channels, height, width)
        added: Tensor = self.out(frame)
        return added.add_(x)
