"""Every scene that is not held out, drawn in many jitters by several processes."""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from training.tiny import checker, world


def _jitter(seed: int) -> NDArray[np.uint8]:
    jitter = world.random_jitter(random.Random(seed))
    scenes = (scene for scene in world.scenes() if not scene.held_out)
    return np.stack([np.asarray(world.draw(scene, jitter)) for scene in scenes])


def _read(frames: NDArray[np.uint8]) -> list[tuple[str, ...]]:
    return [astuple(checker.read(Image.fromarray(frame))) for frame in frames]


class Hands:
    """Processes that draw and read pictures. They are forked: before there is a CUDA context."""

    def __init__(self, count: int) -> None:
        self.pool = ProcessPoolExecutor(count, get_context("fork"))
        list(self.pool.map(abs, range(count)))

    def _map(self, call: Callable[[Any], Any], given: Iterable[Any]) -> Iterator[Any]:
        yield from self.pool.map(call, given)

    def draw(self, jitters: int, seed: int) -> Tensor:
        """Return pictures (J, S, 3, 96, 96) in uint8 of the seen scenes in J jitters."""
        drawn = np.stack(list(self._map(_jitter, (seed + i for i in range(jitters)))))
        return torch.from_numpy(drawn).permute(0, 1, 4, 2, 3)

    def read(self, frames: Tensor, part: int = 64) -> list[checker.Seen]:
        """Return what frames (B, 3, H, W) in -1..1 show, by their pixels."""
        levels = ((frames.float().clamp(-1, 1) + 1) * 127.5).round().byte()
        pictures = levels.permute(0, 2, 3, 1).cpu().numpy()
        parts = [pictures[i : i + part] for i in range(0, len(pictures), part)]
        return [checker.Seen(*one) for seen in self._map(_read, parts) for one in seen]

    def close(self) -> None:
        """End the processes."""
        self.pool.shutdown()


def wrong(
    seen: Sequence[checker.Seen], asked: Sequence[world.Scene], fixed: Sequence[Sequence[bool]]
) -> list[bool]:
    """Return whether each picture differs from its scene in a part that is fixed."""
    return [
        any(f and a != b for f, a, b in zip(parts, astuple(s), astuple(scene), strict=True))
        for s, scene, parts in zip(seen, asked, fixed, strict=True)
    ]
