"""A schedule begins where the strength says, without a jump, and a mask keeps its source."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, QwenImageImg2ImgPipeline

from worker.engine.begin import Beginning, list_sigmas, mix_noise
from worker.engine.schedule import make_schedule
from worker.families.qwen_image import rows
from worker.families.qwen_image.lightning import LIGHTNING, make_lightning_schedule
from worker.families.qwen_image.modulation import round_timesteps
from worker.tasks.picture import warm_up
from worlds import published

BASE = {
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "max_image_seq_len": 8192,
    "max_shift": 0.9,
    "shift_terminal": 0.02,
    "time_shift_type": "exponential",
    "use_dynamic_shifting": True,
}
OPEN = {**BASE, "shift_terminal": None}
CONFIGS = {"base": BASE, "open": OPEN, "lightning": LIGHTNING}
GRID = [percent / 100 for percent in range(1, 101)]


def stock_timesteps(config: dict[str, object], steps: int, strength: float) -> torch.Tensor:
    """Return the timesteps of diffusers' img2img over one of our complete schedules."""
    pipeline = QwenImageImg2ImgPipeline.__new__(QwenImageImg2ImgPipeline)
    object.__setattr__(pipeline, "scheduler", make_schedule(config, steps, 4096))
    timesteps, _ = pipeline.get_timesteps(steps, strength, "cpu")
    assert isinstance(timesteps, torch.Tensor)
    return timesteps


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("steps", [4, 8, 20, 50])
def test_a_strength_of_m_of_n_has_the_stock_pipelines_timesteps(
    config: dict[str, object], steps: int
) -> None:
    """And so many steps, however the quotient is rounded."""
    for m in range(1, steps + 1):
        ours = make_schedule(config, steps, 4096, strength=m / steps)
        assert torch.equal(ours.timesteps, make_schedule(config, steps, 4096).timesteps[-m:])
        assert torch.equal(ours.sigmas, make_schedule(config, steps, 4096).sigmas[-m - 1 :])
        if m / steps not in (0.56, 0.28):  # where int(n - n s) runs one step too many
            assert torch.equal(ours.timesteps, stock_timesteps(config, steps, m / steps))


def test_a_quotient_that_is_no_exact_number_has_no_step_of_its_own() -> None:
    """25 x 0.56 is more than 14 by rounding, and the stock pipeline runs 15."""
    assert len(list_sigmas(25, 0.56)) == 14
    assert len(list_sigmas(25, 0.57)) == 15


def test_the_steps_that_run_are_known_before() -> None:
    """A job's progress counts them from the first."""
    wish = warm_up(published.IMAGE)
    for steps in range(2, 101):
        for strength in GRID:
            begun = replace(wish, steps=steps, strength=strength)
            assert len(list_sigmas(steps, strength)) == begun.run_steps
    assert (wish.run_steps, wish.strength) == (wish.steps, None)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("steps", [2, 4, 8, 50])
def test_the_start_rises_with_the_strength_without_a_jump(
    config: dict[str, object], steps: int
) -> None:
    """A hundredth moves it by at most what the shift stretches one, and every timestep falls."""
    starts = []
    for strength in GRID:
        scheduler = make_schedule(config, steps, 4096, strength=strength)
        assert (scheduler.timesteps.diff() < 0).all()
        assert scheduler.sigmas[-1] == 0
        starts.append(float(scheduler.sigmas[0]))
    rises = np.diff(starts)
    assert starts[-1] == 1
    assert (rises >= 0).all()
    assert rises.max() < 0.031  # the steepest shift is 3
    at_all = np.array(GRID[:-1]) >= (1 / steps if config is BASE else 0)
    assert (rises[at_all] > 0).all()


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_just_above_a_step_the_start_alone_is_new(config: dict[str, object]) -> None:
    """So that what is made there is what is made at the step, but for one tiny step."""
    at = make_schedule(config, 8, 4096, strength=0.5)
    above = make_schedule(config, 8, 4096, strength=0.5001)
    assert torch.equal(above.timesteps[1:], at.timesteps)
    assert 0 < above.timesteps[0] - at.timesteps[0] < 0.2


def test_a_stretched_schedule_begins_no_lower_than_it_ends() -> None:
    """Below it there are no rows, and the stretch would make noise of less than nothing."""
    for strength in (0.01, 0.1, 0.125):
        scheduler = make_schedule(BASE, 8, 4096, strength=strength)
        assert scheduler.timesteps.tolist() == pytest.approx([20.0])


@pytest.mark.parametrize("config", [BASE, OPEN], ids=["base", "open"])
@pytest.mark.parametrize("tokens", [16, 4096, 16384])
def test_every_timestep_of_every_strength_has_a_modulation_row(
    config: dict[str, object], tokens: int
) -> None:
    """The rows of a bundle are those of all bf16 numbers from its last timestep on."""
    available = rows.compute_keys(config).float()
    for strength in GRID:
        for steps in (2, 4, 8, 33, 100):
            found = [make_schedule(config, steps, tokens, strength=strength).timesteps]
            if steps in (4, 8):
                found.append(make_lightning_schedule(steps, tokens, strength).timesteps)
            for timesteps in found:
                assert torch.isin(round_timesteps(timesteps).float(), available).all()


def test_lightning_begins_at_three_times_the_strength_at_most() -> None:
    """3 s / (1 + 2 s), and only the steps below it follow."""
    assert make_lightning_schedule(4, 36, 0.6).timesteps.tolist() == pytest.approx(
        [1000 * 1.8 / 2.2, 750, 500]
    )
    assert make_lightning_schedule(8, 36, 0.01).timesteps.tolist() == pytest.approx([30 / 1.02])


def test_noise_is_mixed_as_the_stock_scheduler_mixes_it() -> None:
    source, noise = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(dict(LIGHTNING))
    scheduler.set_timesteps(sigmas=list_sigmas(8, 1.0), mu=1.0986)
    for step, t in enumerate(scheduler.timesteps):
        scheduler.set_begin_index(step)
        stock = scheduler.scale_noise(source, t[None], noise)
        assert torch.equal(mix_noise(source, noise, float(scheduler.sigmas[step])), stock)
    assert torch.equal(mix_noise(source, noise, 1.0), noise)
    assert torch.equal(mix_noise(source, noise, 0.0), source)


def test_noise_is_as_much_as_sigma_says_in_bf16_too() -> None:
    """A sigma of 0.729 is not rounded to 0.7305 first."""
    source, noise = torch.zeros(1, dtype=torch.bfloat16), torch.full((1,), 512.0).bfloat16()
    assert mix_noise(source, noise, 0.729) == torch.tensor(0.729 * 512).bfloat16()
    assert mix_noise(source, noise, 0.729).dtype == torch.bfloat16
    source, noise = torch.randn(2, 4096).bfloat16()
    exact = 0.75 * noise.double() + 0.25 * source.double()  # rounded once, if in float32
    assert torch.equal(mix_noise(source, noise, 0.75), exact.float().bfloat16())


def test_what_is_not_repainted_is_the_source_again_after_each_step() -> None:
    """As noisy as the rest while it is noisy, and the very source at the end."""
    source, noise, made = (torch.randn(2, 3, 4) for _ in range(3))
    repainted = torch.rand(2, 3, 4) > 0.5
    beginning = Beginning(source, noise, repainted)
    for sigma in (0.5, 0.0):
        got = beginning.restore(made, sigma)
        assert torch.equal(got[repainted], made[repainted])
        assert torch.equal(got[~repainted], mix_noise(source, noise, sigma)[~repainted])
    assert torch.equal(beginning.restore(made, 0.0)[~repainted], source[~repainted])
    assert Beginning(source, noise).restore(made, 0.5) is made


def test_a_row_that_leaves_takes_its_source_along() -> None:
    source, noise = torch.randn(3, 2, 4), torch.randn(3, 2, 4)
    repainted = torch.rand(3, 2, 4) > 0.5
    kept = Beginning(source, noise, repainted).keep([2, 0])
    assert kept.repainted is not None
    assert torch.equal(kept.latents, source[[2, 0]])
    assert torch.equal(kept.noise, noise[[2, 0]])
    assert torch.equal(kept.repainted, repainted[[2, 0]])
    assert Beginning(source, noise).keep([1]).repainted is None
