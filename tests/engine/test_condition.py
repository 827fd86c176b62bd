"""A batch is denoised from noise or from pictures, and the rows that are left go on as if alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from worker.engine.begin import Beginning, mix_noise
from worker.engine.condition import denoise_from
from worker.engine.schedule import make_schedule

CONFIG = {"use_dynamic_shifting": True}
ROWS, STEPS = 3, 4


@dataclass
class Leading:
    """Predicts from what each row leads to, and notes what it was asked."""

    goals: Tensor
    asked: list[tuple[Tensor, Tensor, int]] = field(default_factory=list)

    def predict(self, latents: Tensor, timestep: Tensor, step: int) -> Tensor:
        """Return a velocity that depends on all that is given."""
        self.asked.append((latents, timestep, step))
        return (latents - self.goals) * timestep[:, None, None] + 0.1 * step

    def keep(self, rows: Sequence[int]) -> "Leading":
        """Return these rows."""
        return Leading(self.goals[list(rows)], self.asked)


def schedule() -> Any:
    return make_schedule(CONFIG, STEPS + 1, 36, strength=STEPS / (STEPS + 1))


def draw() -> Tensor:
    return torch.randn(ROWS, 6, 4)


def make_beginning(kind: str) -> Beginning | None:
    if kind == "noise":
        return None
    return Beginning(draw(), draw(), torch.rand(ROWS, 6, 4) > 0.5 if kind == "masked" else None)


@pytest.mark.parametrize("kind", ["noise", "picture", "masked"])
def test_the_rows_that_are_left_go_on_as_if_they_were_alone(kind: str) -> None:
    goals, noise, beginning = draw(), draw(), make_beginning(kind)

    def leave(step: int, steps: int) -> list[int] | None:
        assert steps == STEPS
        return {1: [2, 0, 1], 3: [0, 1]}.get(step)

    found = denoise_from(Leading(goals), schedule(), noise, beginning=beginning, on_step=leave)
    alone = [
        denoise_from(
            Leading(goals[row : row + 1]),
            schedule(),
            noise[row : row + 1],
            beginning=None if beginning is None else beginning.keep([row]),
        )
        for row in (2, 0)
    ]
    assert torch.equal(found, torch.cat(alone))


@pytest.mark.parametrize("kind", ["noise", "picture", "masked"])
def test_it_begins_with_the_noise_of_the_first_step_and_shows_where_each_step_leads(
    kind: str,
) -> None:
    condition, noise, beginning = Leading(draw()), draw(), make_beginning(kind)
    sigmas = schedule().sigmas.tolist()
    shown: list[tuple[int, int, Tensor]] = []

    def watch(step: int, steps: int, estimate: Callable[[], Tensor]) -> None:
        shown.append((step, steps, estimate()))

    found = denoise_from(condition, schedule(), noise, beginning=beginning, watch=watch)
    first = noise
    if beginning is not None:
        first = mix_noise(beginning.latents, beginning.noise, sigmas[0])
    assert torch.equal(condition.asked[0][0], first)
    assert [step for _, _, step in condition.asked] == list(range(STEPS))
    for (_, timestep, _), sigma in zip(condition.asked, sigmas, strict=False):
        torch.testing.assert_close(timestep, torch.full((ROWS,), sigma))
    assert [(step, steps) for step, steps, _ in shown] == [(n + 1, STEPS) for n in range(STEPS)]
    torch.testing.assert_close(shown[-1][2], found)
    if beginning is not None and beginning.repainted is not None:
        stays = ~beginning.repainted
        for estimate in (found, *(each for _, _, each in shown)):
            assert torch.equal(estimate[stays], beginning.latents[stays])
