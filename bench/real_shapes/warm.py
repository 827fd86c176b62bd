"""One warm model of ours, of any family of pictures, a job at a time."""

import time
from typing import Any

import torch

from bench.real_shapes.job import Case
from bench.real_shapes.measure import PeakClock, Spent
from worker.engine import device as gpu
from worker.engine.decoded import make_picture
from worker.families.clock import Clock
from worker.families.sharing import Sharing
from worker.media.images import encode
from worker.seam import Unheard
from worker.tasks.picture import PictureWish


def unheard(wishes: list[PictureWish]) -> Sharing:
    """Return the control of wishes that nothing follows."""
    return Sharing([Unheard()] * len(wishes), drops=False)


class Warm:
    """A family's model over its open `parts`."""

    def __init__(self, model: Any, parts: Any) -> None:
        self._model = model
        self.parts = parts

    def forget(self) -> None:
        """Forget the prompts and references of earlier jobs."""
        self._model._cache.clear()  # noqa: SLF001 - a worker forgets them only when memory is scarce

    def make_latents(self, wishes: list[PictureWish]) -> torch.Tensor:
        """Return the final latents of a batch."""
        made: torch.Tensor = self._model.make_latents(
            wishes, unheard(wishes), Clock(self.parts.device)
        )
        return made

    def job(self, case: Case, wishes: list[PictureWish]) -> Spent:
        """Make the pictures of a job, PNGs and all; return what each phase took."""
        clock = PeakClock(self.parts.device)
        images = []
        with gpu.translate_errors():
            latents = self._model.make_latents(wishes, unheard(wishes), clock)
            for row in latents.split(1):  # one after the other, as make() does
                with clock.measure_phase("decode"):
                    pixels = self._model._vae.decode(row, case.side, case.side)  # noqa: SLF001 - make() tells a batch's phases of each picture
                    images.append(make_picture(pixels[0]))
        start = time.perf_counter()
        for image in images:
            encode(image, "png")
        phases: dict[str, float] = {str(phase): spent for phase, spent in clock.spent.items()}
        phases["png"] = (time.perf_counter() - start) * 1000
        return Spent(phases, clock.peaks)
