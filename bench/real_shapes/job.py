"""One job to time: what is asked, with inputs that no cache has seen."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL import Image

from worker.tasks.picture import PictureWish

WEIGHTS: Final = (2.0, 0.5)
NUMBERS: Final = itertools.count(1000)  # four digits: as many tokens each


@dataclass(frozen=True, slots=True)
class Case:
    """A task at a size in pixels (square), its references, steps and batch.

    With `weighed` its two references have weights.
    """

    side: int
    references: int
    steps: int
    batch: int = 1
    weighed: bool = False

    @property
    def edit(self) -> bool:
        """Whether it has references."""
        return self.references > 0

    @property
    def name(self) -> str:
        """Name it as the results do: task, steps, batch."""
        task = f"edit-{self.side}-{self.references}ref" if self.edit else f"image-{self.side}"
        return f"{task}{'-weighed' if self.weighed else ''}/{self.steps}/{self.batch}"


def cases(
    small: int, large: int, *, steps: tuple[int, ...], batches: tuple[int, ...]
) -> list[Case]:
    """Return every case, the ones that matter most first: batch 1 before 2 and 4."""
    tasks = [(small, 1), (small, 0), (large, 0), (small, 2)]
    return [
        Case(side, references, count, batch)
        for batch in batches
        for count in steps
        for side, references in tasks
    ]


def draw_reference(side: int, seed: int) -> Image.Image:
    """Return a picture with large and small structure, another one for every seed."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    fine = Image.fromarray(random.integers(0, 256, (side, side, 3), dtype=np.uint8))
    return Image.blend(coarse.resize((side, side), Image.Resampling.BICUBIC), fine, 0.1)


def inputs(case: Case, numbers: Iterator[int] = NUMBERS) -> Iterator[list[PictureWish]]:
    """Yield the pictures of one job after another; all prompts have the same number of tokens.

    By default no prompt and no reference comes twice in a process, so that no cache has seen them;
    with `numbers` of one's own, the same ones come again.
    """
    while True:
        yield [_generation(case, next(numbers)) for _ in range(case.batch)]


def _generation(case: Case, number: int) -> PictureWish:
    return PictureWish(
        task="edit" if case.edit else "text-to-image",
        prompt=f"a large red circle on a blue background, number {number}",
        negative_prompt=None,
        references=tuple(
            draw_reference(case.side, number * 3 + index) for index in range(case.references)
        ),
        width=case.side,
        height=case.side,
        steps=case.steps,
        true_cfg_scale=1.0,
        lightning=True,  # what a model without LoRAs of its own does not look at
        seed=number,
        reference_weights=WEIGHTS if case.weighed else (),
    )
