"""Lightning's timesteps are the distilled ones at every size; the base schedule is the model's."""

import inspect

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.qwenimage.pipeline_qwenimage import calculate_shift

from worker.engine import schedule
from worker.errors import LoraNotApplied
from worker.families.qwen_image import lightning

BASE = {
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "max_image_seq_len": 8192,
    "max_shift": 0.9,
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "shift_terminal": 0.02,
    "time_shift_type": "exponential",
    "use_dynamic_shifting": True,
}


@pytest.mark.parametrize("tokens", [36, 256, 4096, 6889])
@pytest.mark.parametrize(
    ("steps", "timesteps"),
    [
        (4, [1000.0, 900.0, 750.0, 500.0]),
        (8, [1000, 954.5455, 900, 833.3333, 750, 642.8571, 500, 300]),
    ],
)
def test_lightning_timesteps_are_the_distilled_ones(
    steps: int, timesteps: list[float], tokens: int
) -> None:
    """They do not depend on the resolution."""
    got = lightning.make_lightning_schedule(steps, tokens).timesteps
    assert torch.allclose(got, torch.tensor(timesteps), atol=1e-3)


def test_lightning_says_what_diffusers_knows_and_has_the_sizes_of_the_base_schedule() -> None:
    """Any other field is ignored by it."""
    known = inspect.signature(FlowMatchEulerDiscreteScheduler.__init__).parameters
    assert set(lightning.LIGHTNING) <= set(known)
    for name in ("base_image_seq_len", "max_image_seq_len", "num_train_timesteps", "shift"):
        assert lightning.LIGHTNING[name] == BASE[name]


def test_lightning_has_no_other_step_counts() -> None:
    """A LoRA distilled on 8 steps has no schedule for 6."""
    with pytest.raises(LoraNotApplied):
        lightning.make_lightning_schedule(6, 4096)


def test_the_base_schedule_depends_on_the_resolution() -> None:
    """Larger pictures stay longer at high noise, and the last timestep is shift_terminal's."""
    small = schedule.make_schedule(BASE, 40, 256).timesteps
    large = schedule.make_schedule(BASE, 40, 6889).timesteps
    assert (large[1:-1] > small[1:-1]).all()
    assert torch.allclose(small[-1], torch.tensor(20.0), atol=1e-2)


def test_every_picture_gets_a_scheduler_of_its_own() -> None:
    """A scheduler keeps its place in the loop; two pictures share none."""
    assert lightning.make_lightning_schedule(4, 36) is not lightning.make_lightning_schedule(4, 36)


@pytest.mark.parametrize("tokens", [36, 256, 4096, 6889])
@pytest.mark.parametrize("config", [BASE, {"use_dynamic_shifting": True}, {"shift": 3.0}])
def test_the_base_schedule_is_the_stock_pipelines(config: dict[str, object], tokens: int) -> None:
    """With whatever a scheduler_config.json leaves out as diffusers has it."""
    stock = FlowMatchEulerDiscreteScheduler.from_config(config)
    names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
    mu = calculate_shift(tokens, *(stock.config[name] for name in names))
    stock.set_timesteps(sigmas=np.linspace(1.0, 1 / 7, 7), mu=mu)
    ours = schedule.make_schedule(config, 7, tokens)
    assert torch.equal(ours.timesteps, stock.timesteps)
    assert torch.equal(ours.sigmas, stock.sigmas)
    assert ours.begin_index == 0


def test_a_family_may_have_a_formula_of_its_own_for_the_shift() -> None:
    """Then the size of the picture changes nothing but what the family makes of it."""
    computed = schedule.make_schedule(BASE, 7, 4096)
    given = schedule.make_schedule(BASE, 7, 36, mu=schedule._compute_shift(computed.config, 4096))
    assert torch.equal(given.timesteps, computed.timesteps)
    none = schedule.make_schedule(BASE, 7, 4096, mu=0.0)
    assert torch.allclose(none.timesteps[:1], torch.tensor(1000.0))
    assert (none.timesteps[1:-1] < computed.timesteps[1:-1]).all()


def test_lightnings_scheduler_is_set_as_its_script_sets_it() -> None:
    """generate_with_diffusers.py of Qwen-Image-Lightning; nothing is left to a default."""
    script = {
        "base_image_seq_len": 256,
        "base_shift": np.log(3),
        "invert_sigmas": False,
        "max_image_seq_len": 8192,
        "max_shift": np.log(3),
        "num_train_timesteps": 1000,
        "shift": 1.0,
        "shift_terminal": None,
        "stochastic_sampling": False,
        "time_shift_type": "exponential",
        "use_beta_sigmas": False,
        "use_dynamic_shifting": True,
        "use_exponential_sigmas": False,
        "use_karras_sigmas": False,
    }
    config = lightning.make_lightning_schedule(8, 4096).config
    assert {name: config[name] for name in script} == script
    assert script.keys() == lightning.LIGHTNING.keys()


def test_a_lightning_schedule_that_is_not_the_distilled_one_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A tenth of a step off is another schedule."""
    monkeypatch.setitem(lightning.LIGHTNING_TIMESTEPS, 4, (1000.0, 900.1, 750.0, 500.0))
    with pytest.raises(LoraNotApplied, match="4 steps"):
        lightning.make_lightning_schedule(4, 4096)
    assert len(lightning.make_lightning_schedule(8, 4096).timesteps) == 8
