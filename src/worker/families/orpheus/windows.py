"""A sound decoded piece by piece: windows of a fixed grid, each with what its edges need to see."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Final

import torch
from torch import Tensor

from worker.families.clock import Clock
from worker.families.orpheus.codec import SnacDecoder

# Written of each window; the last size is that of all that follow. Small ones first: of a stream,
# the first sound is there after 4 + 3 frames.
GRID: Final = (4, 8, 16, 32)
# Written on both sides that change a frame's samples: the decoder sees 2.32 of them (measured by
# changing one code).
CONTEXT: Final = 3


def find_end(start: int) -> int:
    """Return where the window of the grid ends that begins at a frame."""
    end = 0
    for index in range(start + 1):
        end += GRID[min(index, len(GRID) - 1)]
        if end > start:
            break
    return end


def derive_seed(seed: int, first: int, second: int) -> int:
    """Return a seed of 63 bits for one of many things of a seed, by two numbers."""
    digest = hashlib.sha256(f"{seed} {first} {second}".encode()).digest()
    return int.from_bytes(digest[:8]) >> 1


def make_noise(seed: int, frame: int, spans: Sequence[int]) -> list[Tensor]:
    """Return the noise of one frame, for each level as many normal numbers as it has values.

    It depends on nothing else, so that a frame sounds the same whatever is decoded with it. The
    generator is the CPU's, the same on every device.
    """
    noise = []
    for level, span in enumerate(spans):
        generator = torch.Generator().manual_seed(derive_seed(seed, level, frame))
        noise.append(torch.randn(span, generator=generator))
    return noise


class Decoding:
    """The sound of one passage, as its frames become known; `seed` is that of its noise.

    `clock` measures the phase "decode", where one is given.
    """

    def __init__(
        self, codec: SnacDecoder, seed: int, device: torch.device, clock: Clock | None = None
    ) -> None:
        self._codec, self._seed, self._device = codec, seed, device
        self._clock = clock
        self._done = 0

    def decode_ready(self, frames: Sequence[Sequence[int]], *, is_end: bool) -> Iterator[Tensor]:
        """Yield the samples of each window that all its frames are known for.

        `frames` are the codes of all frames so far, [7] each; with `is_end` no more will come.
        """
        while self._done < len(frames):
            end = find_end(self._done)
            if len(frames) < end + CONTEXT and not is_end:
                return
            end = min(end, len(frames))
            with nullcontext() if self._clock is None else self._clock.measure_phase("decode"):
                window = self._decode(frames, self._done, end)
            yield window
            self._done = end

    @torch.inference_mode()
    def _decode(self, frames: Sequence[Sequence[int]], start: int, end: int) -> Tensor:
        first, last = max(0, start - CONTEXT), min(len(frames), end + CONTEXT)
        rows = [make_noise(self._seed, frame, self._codec.spans) for frame in range(first, last)]
        noise = [
            torch.cat(parts).to(self._device, non_blocking=True)
            for parts in zip(*rows, strict=True)
        ]
        codes = torch.tensor([list(frame) for frame in frames[first:last]])
        samples: Tensor = self._codec(codes, noise)
        stride = self._codec.stride
        return samples[(start - first) * stride : (end - first) * stride]
