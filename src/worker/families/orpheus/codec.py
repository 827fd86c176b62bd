"""SNAC's decoder: codes to samples (arXiv 2410.14411), by modules under the names of its weights.

The published class decodes with noise from the device's generator. Here the noise is an argument:
the same codes and noise are the same sound.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

KERNEL: Final = 7
DILATIONS: Final = (1, 3, 9)
# How the published file names what a weight is computed from, now and formerly, and our names.
NORMED: Final = (
    (".parametrizations.weight.original0", ".norm"),
    (".parametrizations.weight.original1", ".direction"),
    (".weight_g", ".norm"),
    (".weight_v", ".direction"),
)
# The codebook of each slot of a frame; the codes of one codebook are in the order of their times.
CODEBOOKS: Final = (0, 1, 2, 2, 1, 2, 2)


def split_weight(convolution: Any) -> Any:
    """Return a convolution whose weight comes as its norm and its direction (arXiv 1602.07868)."""
    weight = convolution.weight
    convolution.norm = nn.Parameter(torch.empty_like(weight[:, :1, :1]))
    convolution.direction = nn.Parameter(torch.empty_like(weight))
    del convolution.weight
    return convolution


class Snake(nn.Module):
    """x + sin^2(alpha x) / alpha, one alpha per channel (arXiv 2006.08195)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map [rows, channels, times] to the same shape; 1e-9 is the published class's."""
        return x + (self.alpha + 1e-9).reciprocal() * torch.sin(self.alpha * x).pow(2)


class Residual(nn.Module):
    """A depthwise convolution and one over channels, added to what came in."""

    def __init__(self, channels: int, dilation: int, groups: int) -> None:
        super().__init__()
        padding = (KERNEL - 1) * dilation // 2
        self.block = nn.Sequential(
            Snake(channels),
            split_weight(
                nn.Conv1d(
                    channels, channels, KERNEL, dilation=dilation, padding=padding, groups=groups
                )
            ),
            Snake(channels),
            split_weight(nn.Conv1d(channels, channels, 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [rows, channels, times] to the same shape."""
        added: Tensor = self.block(x)
        return x + added


class NoiseGain(nn.Module):
    """How strong noise is in each channel, by what is there."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = split_weight(nn.Conv1d(channels, channels, 1, bias=False))

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        """Add noise [rows, 1, times] to [rows, channels, times]."""
        gain: Tensor = self.linear(x)
        return x + noise * gain


class Widening(nn.Module):
    """One level of the decoder: `stride` times as many samples, in `channels` of before."""

    def __init__(
        self, before: int, channels: int, stride: int, *, has_noise: bool, groups: int
    ) -> None:
        super().__init__()
        widen = nn.ConvTranspose1d(
            before,
            channels,
            2 * stride,
            stride=stride,
            padding=math.ceil(stride / 2),
            output_padding=stride % 2,
        )
        parts: list[nn.Module] = [Snake(before), split_weight(widen)]
        if has_noise:
            parts.append(NoiseGain(channels))
        parts += [Residual(channels, dilation, groups) for dilation in DILATIONS]
        self.block = nn.Sequential(*parts)

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        """Map [rows, before, times] to [rows, channels, stride times]."""
        for part in self.block:
            x = part(x, noise) if isinstance(part, NoiseGain) else part(x)
        return x


class Codebook(nn.Module):
    """One level of codes: each a vector, made as wide as the decoder's first layer."""

    def __init__(self, width: int, codes: int, size: int) -> None:
        super().__init__()
        self.codebook = nn.Embedding(codes, size)
        self.out_proj = split_weight(nn.Conv1d(size, width, 1))

    def forward(self, codes: Tensor) -> Tensor:
        """Map codes [rows, times] to [rows, width, times]."""
        vectors: Tensor = self.out_proj(self.codebook(codes).transpose(1, 2))
        return vectors


class SnacDecoder(nn.Module):
    """SNAC without its encoder, of a configuration as published.

    `stride` is how many samples a frame has, and `spans` how many values each level of noise.
    Raises ValueError for a configuration that it does not build, KeyError or TypeError for one that
    lacks something.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        if config.get("attn_window_size") is not None:
            raise ValueError("a codec with attention is not built here")
        if list(config["vq_strides"]) != [4, 2, 1]:
            raise ValueError(f"vq_strides is {config['vq_strides']}, not [4, 2, 1]")
        rates: Sequence[int] = config["decoder_rates"]
        width = config.get("latent_dim") or config["encoder_dim"] * 2 ** len(
            config["encoder_rates"]
        )
        channels, depthwise = config["decoder_dim"], config.get("depthwise", True)
        has_noise = config.get("noise", True)
        self.rate: int = config["sampling_rate"]
        self.codes: int = config["codebook_size"]
        self.repeats: tuple[int, ...] = tuple(config["vq_strides"])
        self.stride = self.repeats[0] * math.prod(rates)
        self.spans = tuple(
            self.repeats[0] * math.prod(rates[: level + 1]) if has_noise else 0
            for level in range(len(rates))
        )
        self.quantizer = nn.Module()
        self.quantizer.quantizers = nn.ModuleList(
            Codebook(width, self.codes, config["codebook_dim"]) for _ in self.repeats
        )
        first: list[nn.Module] = (
            [
                split_weight(nn.Conv1d(width, width, KERNEL, padding=KERNEL // 2, groups=width)),
                split_weight(nn.Conv1d(width, channels, 1)),
            ]
            if depthwise
            else [split_weight(nn.Conv1d(width, channels, KERNEL, padding=KERNEL // 2))]
        )
        levels = []
        for stride in rates:
            groups = channels // 2 if depthwise else 1
            levels.append(
                Widening(channels, channels // 2, stride, has_noise=has_noise, groups=groups)
            )
            channels //= 2
        last = [Snake(channels), split_weight(nn.Conv1d(channels, 1, KERNEL, padding=KERNEL // 2))]
        self.decoder = nn.Module()
        self.decoder.model = nn.Sequential(*first, *levels, *last)

    def forward(self, frames: Tensor, noise: Sequence[Tensor]) -> Tensor:
        """Return the samples [stride x frames], in [-1, 1], of codes [frames, 7] on the CPU.

        `noise` has what each level adds, [its span x frames] in the order of the samples.
        """
        x = self._look_up(frames)
        levels = iter(noise)
        layers: Any = self.decoder.model
        for part in layers:
            x = part(x, next(levels)[None, None]) if isinstance(part, Widening) else part(x)
        return torch.tanh(x).flatten()

    def _look_up(self, frames: Tensor) -> Tensor:
        """Return the sum of the codebooks' vectors [1, width, 4 x frames]."""
        found: Tensor | None = None
        codebooks: Any = self.quantizer.quantizers
        device = next(self.parameters()).device
        for level, repeats in enumerate(self.repeats):
            slots = [slot for slot, of in enumerate(CODEBOOKS) if of == level]
            codes = frames[:, slots].reshape(1, -1).to(device, non_blocking=True)
            vectors = codebooks[level](codes).repeat_interleave(repeats, dim=-1)
            found = vectors if found is None else found + vectors
        assert found is not None  # noqa: S101 - there are three levels
        return found


def name_tensor(name: str) -> str | None:
    """Return the name in our modules of a published tensor; None for what only encoding needs.

    Weights and their norms had other names in older files.
    """
    if name.startswith("encoder.") or ".in_proj." in name:
        return None
    for published, ours in NORMED:
        name = name.replace(published, ours)
    return name


def fold(codec: SnacDecoder) -> SnacDecoder:
    """Return a filled decoder with each weight computed once from its norm and direction."""
    for module in codec.modules():
        parts: Any = module
        if hasattr(parts, "direction"):
            weight = torch._weight_norm(parts.direction, parts.norm, 0)  # noqa: SLF001 - torch's own kernel, for the bits of the published class
            parts.weight = nn.Parameter(weight, requires_grad=False)
            del parts.norm, parts.direction
    return codec
