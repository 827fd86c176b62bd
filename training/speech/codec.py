"""SNAC with its encoder, to train it: the published class's layers, under the names of its weights.

The worker decodes by its own code and the `snac` package is no dependency; a test holds these
weights to that package.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool1d, normalize
from torch.nn.utils.parametrizations import weight_norm

from worlds.snac_shape import PUBLISHED_SNAC

CONFIG: Final[Mapping[str, Any]] = {
    **PUBLISHED_SNAC,
    "encoder_dim": 12,
    "decoder_dim": 128,
    "codebook_size": 128,
}
DILATIONS: Final = (1, 3, 9)
KERNEL: Final = 7


class Snake(nn.Module):
    """x + sin^2(alpha x) / alpha, one alpha per channel (arXiv 2006.08195)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation of `x`, [B, C, T]."""
        return x + torch.sin(self.alpha * x).square() / (self.alpha + 1e-9)


def convolve(before: int, after: int, kernel: int, **options: Any) -> nn.Module:
    """Return a convolution with weight normalisation."""
    module: nn.Module = weight_norm(nn.Conv1d(before, after, kernel, **options))
    return module


class Residual(nn.Module):
    """A dilated and a pointwise convolution beside an identity."""

    def __init__(self, channels: int, dilation: int, groups: int) -> None:
        super().__init__()
        padding = (KERNEL - 1) * dilation // 2
        self.block = nn.Sequential(
            Snake(channels),
            convolve(channels, channels, KERNEL, dilation=dilation, padding=padding, groups=groups),
            Snake(channels),
            convolve(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` with what the branch adds, [B, C, T]."""
        added: Tensor = self.block(x)
        return x + added


class Down(nn.Module):
    """Residual units, then a convolution that shortens by `stride`."""

    def __init__(self, channels: int, stride: int, groups: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            *(Residual(channels, dilation, groups) for dilation in DILATIONS),
            Snake(channels),
            convolve(
                channels, 2 * channels, 2 * stride, stride=stride, padding=math.ceil(stride / 2)
            ),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, 2 C, T / stride] of [B, C, T]."""
        shorter: Tensor = self.block(x)
        return shorter


class Noise(nn.Module):
    """Noise as loud as a linear map of the signal, the same for every channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = convolve(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` with noise, [B, C, T]."""
        noise = torch.randn(x.shape[0], 1, x.shape[2], device=x.device, dtype=x.dtype)
        loudness: Tensor = self.linear(x)
        return x + noise * loudness


class Up(nn.Module):
    """A transposed convolution that lengthens by `stride`, noise, then residual units."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        fewer = channels // 2
        self.block = nn.Sequential(
            Snake(channels),
            weight_norm(
                nn.ConvTranspose1d(
                    channels,
                    fewer,
                    2 * stride,
                    stride=stride,
                    padding=math.ceil(stride / 2),
                    output_padding=stride % 2,
                )
            ),
            Noise(fewer),
            *(Residual(fewer, dilation, fewer) for dilation in DILATIONS),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, C / 2, T * stride] of [B, C, T]."""
        longer: Tensor = self.block(x)
        return longer


class Quantizer(nn.Module):
    """One codebook: latents are projected and replaced by the entry of the nearest direction."""

    def __init__(self, channels: int, size: int, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.in_proj = convolve(channels, width, 1)
        self.out_proj = convolve(width, channels, 1)
        self.codebook = nn.Embedding(size, width)

    def project(self, z: Tensor) -> Tensor:
        """Return the projection of latents, [B, width, T / stride] of [B, C, T]."""
        projected: Tensor = self.in_proj(avg_pool1d(z, self.stride, self.stride))
        return projected

    def choose(self, projected: Tensor) -> Tensor:
        """Return the codes of projected latents, [B, T / stride]."""
        entries = normalize(self.codebook.weight)
        return torch.einsum("bdt,nd->btn", normalize(projected, dim=1), entries).argmax(dim=2)

    def look_up(self, codes: Tensor) -> Tensor:
        """Return the latents of codes, [B, C, T] of [B, T / stride]."""
        latents: Tensor = self.out_proj(self.codebook(codes).transpose(1, 2))
        return latents.repeat_interleave(self.stride, dim=2)


class Quantizers(nn.Module):
    """Codebooks in sequence: each encodes what the ones before it leave."""

    def __init__(self, channels: int, size: int, width: int, strides: Sequence[int]) -> None:
        super().__init__()
        self.quantizers = nn.ModuleList(Quantizer(channels, size, width, s) for s in strides)

    def encode(self, z: Tensor) -> list[Tensor]:
        """Return the codes of latents [B, C, T], one tensor per codebook."""
        codes = []
        for one in self.quantizers:
            assert isinstance(one, Quantizer)
            codes.append(one.choose(one.project(z)))
            z = z - one.look_up(codes[-1])
        return codes

    def decode(self, codes: Sequence[Tensor]) -> Tensor:
        """Return the latents of codes, [B, C, T]."""
        pairs = zip(self.quantizers, codes, strict=True)
        latents: Tensor = sum(
            (one.look_up(each) for one, each in pairs if isinstance(one, Quantizer)),
            start=torch.zeros(()).to(self.quantizers[0].codebook.weight),  # type: ignore[union-attr,arg-type]  # a module's attribute
        )
        return latents


class Snac(nn.Module):
    """The codec: sound to codes and back."""

    def __init__(self, config: Mapping[str, Any] = CONFIG) -> None:
        super().__init__()
        channels, before = config["encoder_dim"], [convolve(1, config["encoder_dim"], 7, padding=3)]
        for stride in config["encoder_rates"]:
            # as published: the first block too has as many groups as channels
            before.append(Down(channels, stride, channels))
            channels *= 2
        before.append(convolve(channels, channels, KERNEL, padding=3, groups=channels))
        encoder = nn.Module()
        encoder.block = nn.Sequential(*before)
        self.encoder = encoder
        self.quantizer = Quantizers(
            channels, config["codebook_size"], config["codebook_dim"], config["vq_strides"]
        )
        wide = config["decoder_dim"]
        after: list[nn.Module] = [
            convolve(channels, channels, KERNEL, padding=3, groups=channels),
            convolve(channels, wide, 1),
        ]
        for stride in config["decoder_rates"]:
            after.append(Up(wide, stride))
            wide //= 2
        after += [Snake(wide), convolve(wide, 1, KERNEL, padding=3), nn.Tanh()]
        decoder = nn.Module()
        decoder.model = nn.Sequential(*after)
        self.decoder = decoder

    def embed(self, sound: Tensor) -> Tensor:
        """Return the latents of sound, [B, C, T / 512] of [B, 1, T]."""
        latents: Tensor = self.encoder.block(sound)  # type: ignore[operator]  # a module's attribute
        return latents

    def render(self, latents: Tensor) -> Tensor:
        """Return the sound of latents, [B, 1, T * 512] of [B, C, T]."""
        sound: Tensor = self.decoder.model(latents)  # type: ignore[operator]  # a module's attribute
        return sound

    def encode(self, sound: Tensor) -> list[Tensor]:
        """Return the codes of complete frames of sound [B, 1, T], one tensor per codebook."""
        return self.quantizer.encode(self.embed(sound))

    def decode(self, codes: Sequence[Tensor]) -> Tensor:
        """Return the sound of codes, [B, 1, T]."""
        return self.render(self.quantizer.decode(codes))
