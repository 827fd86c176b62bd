"""The denoising loop on the device: it never waits, stays one step ahead, and stops at once."""

import json
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu.figures import Figures
from gpu.studio import FLUX, Studio, change, guide, make_image, make_wishes, take_image

from worker.engine.sampler import sample
from worker.engine.schedule import make_schedule
from worker.seam import Control, Phase

pytestmark = pytest.mark.cuda
SCHEDULE = Path(__file__).resolve().parents[2] / "checkpoints/tiny/image/scheduler"


class Watching(Control):
    """Let what waits for the device raise, from the first step's end to the last's."""

    def report(self, phase: Phase, step: int, steps: int) -> None:
        """Begin and end there."""
        if phase == "denoise":
            torch.cuda.set_sync_debug_mode("default" if step == steps else "error")


@pytest.mark.parametrize("precision", ["bf16", "8bit", "4bit"])
@pytest.mark.parametrize("name", ["tiny-image", "tiny-edit", FLUX])
@pytest.mark.parametrize("kind", ["one way", "the other way"])
def test_no_step_waits_for_the_device(studio: Studio, name: str, precision: str, kind: str) -> None:
    model = studio.open(name, precision)
    wish, *_ = make_wishes(name)
    wish = change(name, wish) if kind == "the other way" else wish
    expected = make_image(model, wish)
    try:
        (outcome,) = model.make([wish], [Watching()])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert take_image(outcome).tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", ["tiny-image", "tiny-edit", FLUX])
def test_the_waits_of_a_job_are_counted(studio: Studio, figures: Figures, name: str) -> None:
    """Outside the loop some are needed: figures, and where they are."""
    model = studio.open(name)
    first, second, *_ = make_wishes(name)
    make_image(model, first)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            make_image(model, second)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = [
        f"{Path(one.filename).name}:{one.lineno}"
        for one in caught
        if "synchronizing" in str(one.message)
    ]
    figures.put(count=len(waits), places=sorted(set(waits)))
    assert len(waits) < 100


class Stop(Exception):
    """What a cancel raises."""


def test_a_stop_leaves_the_device_one_step_at_most(figures: Figures, device: torch.device) -> None:
    """Steps of about 30 ms, so that what is queued can be measured."""
    big = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
    scheduler = make_schedule(json.loads((SCHEDULE / "scheduler_config.json").read_text()), 12, 64)
    latents = torch.randn(1, 64, 64, device=device, dtype=torch.bfloat16)

    def predict(given: torch.Tensor, timestep: torch.Tensor, step: int) -> torch.Tensor:
        del timestep, step
        for _ in range(20):
            torch.mm(big, big)
        return given * 0.5

    def measure(work: Any) -> float:
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        work()
        torch.cuda.synchronize(device)
        return (time.perf_counter() - start) * 1000

    measure(lambda: predict(latents, latents, 0))
    step_ms = measure(lambda: predict(latents, latents, 0))

    def stop(step: int, steps: int) -> None:
        del steps
        if step == 6:
            raise Stop

    torch.cuda.synchronize(device)
    start = time.perf_counter()
    with pytest.raises(Stop):
        sample(predict, scheduler, latents, on_step=stop)
    stopped = time.perf_counter()
    torch.cuda.synchronize(device)
    left_ms = (time.perf_counter() - stopped) * 1000
    figures.put(
        step_ms=round(step_ms, 2),
        until_stop_ms=round((stopped - start) * 1000, 2),
        left_ms=round(left_ms, 2),
        left_steps=round(left_ms / step_ms, 2),
    )
    assert left_ms < 1.5 * step_ms


class Ending(Control):
    """A control that stops its picture at a step, and counts what it hears."""

    def __init__(self, step: int) -> None:
        self._step = step
        self.heard = 0

    def report(self, phase: Phase, step: int, steps: int) -> None:
        """Stop there."""
        del steps
        if phase == "denoise":
            self.heard = step
            if step == self._step:
                raise Stop


@pytest.mark.parametrize("step", [1, 3, 6])
def test_a_cancelled_picture_ends_at_its_step(studio: Studio, figures: Figures, step: int) -> None:
    """The next one is what it is without it."""
    model = studio.open("tiny-image", "4bit")
    wish = guide(make_wishes("tiny-image")[0])
    expected = make_image(model, wish).tobytes()
    control = Ending(step)
    start = time.perf_counter()
    with pytest.raises(Stop):
        list(model.make([wish], [control]))
    torch.cuda.synchronize()
    figures.put(ms=round((time.perf_counter() - start) * 1000, 1))
    assert control.heard == step
    assert make_image(model, wish).tobytes() == expected
