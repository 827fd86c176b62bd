"""Rotary positions of the joint sequence: cos and sin of every token, in real float32."""

from collections.abc import Hashable, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from worker.engine.cache import TensorCache

# 1 KB per token at 128 channels per head: the largest picture with three references of its size
CACHED_BYTES: Final = 64 << 20


def make_table(frequencies: Tensor) -> Tensor:
    """Return cos and sin, float32 [2, tokens, 1, channels], of complex [tokens, channels / 2].

    A pair (a, b) becomes (a cos - b sin, b cos + a sin): the sign is in the table.
    """
    cos, sin = frequencies.real, frequencies.imag
    both = torch.stack([torch.stack([cos, cos], dim=-1), torch.stack([-sin, sin], dim=-1)])
    return both.flatten(-2).unsqueeze(2)


class Positions:
    """The tables of a transformer's positions, for the shapes used last, on its device."""

    def __init__(self, transformer: Any) -> None:
        self._embed = transformer.pos_embed
        self._is_layered = bool(transformer.config.use_layer3d_rope)
        self._cache = TensorCache(CACHED_BYTES)
        self._text: dict[torch.device, Tensor] = {}

    def find(
        self, shapes: Sequence[tuple[int, int, int]], text_tokens: int, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Return the tables of the pictures' tokens and of the text's, as `make_table` does.

        `shapes` are the (frames, height, width) in tokens of each picture, one after the other.
        """
        key: Hashable = (tuple(shapes), device)
        image = self._cache.get(key, lambda: make_table(self._place(shapes)).to(device))
        text = self._text.get(device)
        if text is None:
            text = self._text[device] = make_table(self._embed.pos_freqs).to(device)
        # the text's positions follow those of the largest picture, whose middle is 0
        first = max(side // 2 for shape in shapes for side in shape[1:])
        if self._is_layered:
            first = max(first, len(shapes) - 1)
        return image, text[:, first : first + text_tokens]

    def _place(self, shapes: Sequence[tuple[int, int, int]]) -> Tensor:
        """Return the frequencies of pictures' tokens, complex64 [tokens, channels / 2].

        Those of diffusers' QwenEmbedRope and QwenEmbedLayer3DRope, whose own caches grow with every
        size and keep each on the device.
        """
        halves = [dim // 2 for dim in self._embed.axes_dim]
        after = self._embed.pos_freqs.split(halves, dim=1)
        before = self._embed.neg_freqs.split(halves, dim=1)

        def select_centre(axis: int, count: int) -> Tensor:
            first = len(before[axis]) - (count - count // 2)
            return torch.cat([before[axis][first:], after[axis][: count // 2]])

        pictures = []
        for index, (frames, height, width) in enumerate(shapes):
            is_condition = self._is_layered and index == len(shapes) - 1
            planes = before[0][-1:] if is_condition else after[0][index : index + frames]
            axes = (
                planes.view(-1, 1, 1, halves[0]),
                select_centre(1, height).view(1, height, 1, halves[1]),
                select_centre(2, width).view(1, 1, width, halves[2]),
            )
            spread = [one.expand(frames, height, width, -1) for one in axes]
            pictures.append(torch.cat(spread, dim=-1).flatten(0, 2))
        return torch.cat(pictures)
