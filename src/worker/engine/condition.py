"""Denoising with what a batch is predicted from, and with the pictures that it begins from."""

from collections.abc import Sequence
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from worker.engine.begin import Beginning
from worker.engine.sampler import OnStep, Watch, keep_all, sample, watch_nothing


class Condition(Protocol):
    """What a family's transformer predicts the rows of a batch from: prompts, references, CFG."""

    def predict(self, latents: Tensor, timestep: Tensor, step: int) -> Tensor:
        """Return the velocity of packed latents [batch, tokens, channels], in their shape.

        `timestep` [batch] is 0 to 1, in the dtype of the latents.
        """

    def keep(self, rows: Sequence[int]) -> Self:
        """Return these rows of the batch."""


@torch.inference_mode()
def denoise_from(
    condition: Condition,
    scheduler: Any,
    noise: Tensor,
    *,
    beginning: Beginning | None = None,
    on_step: OnStep = keep_all,
    watch: Watch = watch_nothing,
) -> Tensor:
    """Denoise packed noise [batch, tokens, channels] and return the latents, same shape and dtype.

    With a `beginning` they begin from that, with as much of its noise as the schedule's first step
    has, and keep of it what its mask says. `on_step(step, steps)` is called after each step; it may
    raise to stop there, or name the rows to go on with. `watch` is that of `sample`.
    """
    latents = noise if beginning is None else beginning.begin(float(scheduler.sigmas[0]))

    def predict(given: Tensor, timestep: Tensor, step: int) -> Tensor:
        return condition.predict(given, timestep, step)

    def correct(given: Tensor, sigma: float) -> Tensor:
        return given if beginning is None else beginning.restore(given, sigma)

    def finish_step(step: int, steps: int) -> Sequence[int] | None:
        nonlocal condition, beginning
        rows = on_step(step, steps)
        if rows is not None:
            condition = condition.keep(rows)
            beginning = None if beginning is None else beginning.keep(rows)
        return rows

    return sample(predict, scheduler, latents, on_step=finish_step, correct=correct, watch=watch)
