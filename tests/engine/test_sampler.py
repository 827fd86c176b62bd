"""The loop packs, guides and steps as the stock pipelines do, and a batch is its members."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import QwenImagePipeline
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from worker.engine.sampler import _Pace, make_noise, pack, sample, unpack
from worker.families.qwen_image.denoising import Conditioning, LatentShape, denoise, stack
from worker.families.qwen_image.lightning import make_lightning_schedule
from worker.families.qwen_image.modulation import WeightModulation


@pytest.mark.parametrize(("batch", "height", "width"), [(1, 12, 8), (3, 2, 6), (2, 8, 8)])
def test_latents_are_packed_as_the_stock_pipeline_packs_them(
    batch: int, height: int, width: int
) -> None:
    latents = torch.randn(batch, 16, height, width)
    packed = pack(latents)
    stock = QwenImagePipeline._pack_latents(latents, batch, 16, height, width)
    assert torch.equal(packed, stock)
    assert packed.shape == (batch, height * width // 4, 64)
    assert torch.equal(unpack(packed, height, width), latents[:, :, None])
    stock = QwenImagePipeline._unpack_latents(packed, height * 8, width * 8, 8)
    assert torch.equal(unpack(packed, height, width), stock)


def test_a_seeds_noise_is_the_stock_pipelines() -> None:
    """Drawn as diffusers' prepare_latents draws it, from a generator on the CPU."""
    drawn = torch.randn(
        (1, 1, 16, 6, 4), generator=torch.Generator("cpu").manual_seed(7), dtype=torch.bfloat16
    )
    stock = QwenImagePipeline._pack_latents(drawn, 1, 16, 6, 4)
    assert torch.equal(make_noise([7], 16, 6, 4, torch.bfloat16), stock)
    assert not torch.equal(make_noise([8], 16, 6, 4, torch.bfloat16), stock)


def test_prompts_of_one_length_need_no_mask() -> None:
    one, two = (Conditioning(torch.randn(1, 5, 3)) for _ in range(2))
    joined = stack([one, two])
    assert joined.mask is None
    assert torch.equal(joined.embeds, torch.cat([one.embeds, two.embeds]))


def test_a_shorter_prompt_is_padded_behind_and_masked_there() -> None:
    short, long = Conditioning(torch.randn(1, 2, 3)), Conditioning(torch.randn(1, 4, 3))
    joined = stack([short, long])
    assert joined.mask is not None
    assert joined.mask.dtype == torch.bool
    assert joined.mask.tolist() == [[True, True, False, False], [True] * 4]
    assert torch.equal(joined.embeds[0, :2], short.embeds[0])
    assert torch.equal(joined.embeds[1], long.embeds[0])
    assert not joined.embeds[0, 2:].any()


def test_a_mask_that_is_there_is_kept() -> None:
    """Also where all are of one length, and where another has none."""
    masked = Conditioning(torch.randn(1, 3, 2), torch.tensor([[True, False, True]]))
    for other in (Conditioning(torch.randn(1, 3, 2)), Conditioning(torch.randn(1, 4, 2))):
        mask = stack([masked, other]).mask
        assert mask is not None
        assert mask[0].tolist()[:3] == [True, False, True]
        assert mask[1].all()


Call = tuple[Tensor, Tensor, Conditioning, Sequence[LatentShape]]


@dataclass
class Predicting:
    """A transformer that predicts a mean of what it is shown, and keeps what it was given."""

    calls: list[Call] = field(default_factory=list)

    def __call__(
        self,
        latents: Tensor,
        timestep: Tensor,
        condition: Conditioning,
        shapes: Sequence[LatentShape],
    ) -> Tensor:
        """Return a prediction for every token, references' too."""
        self.calls.append((latents, timestep, condition, shapes))
        return latents * 0.5 + condition.embeds.mean(dim=(1, 2), keepdim=True)


class Selected(WeightModulation):
    """Keeps which steps were selected."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def select(self, step: int) -> None:
        """Take note of it."""
        self.steps.append(step)


def guided(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Write true CFG as the stock pipelines do."""
    combined = unconditional + scale * (conditional - unconditional)
    norms = [torch.norm(p, dim=-1, keepdim=True) for p in (conditional, combined)]
    found: Tensor = combined * (norms[0] / norms[1])
    return found


@pytest.mark.parametrize("scale", [None, 1.0, 4.0])
@pytest.mark.parametrize("has_references", [False, True])
def test_each_step_is_the_stock_loops(scale: float | None, *, has_references: bool) -> None:
    start, prompt, unwanted = torch.randn(2, 6, 4), torch.randn(2, 5, 3), torch.randn(2, 4, 3)
    references = torch.randn(2, 3, 4) if has_references else None
    transformer, modulation, reports = Predicting(), Selected(), []
    found = denoise(
        transformer,
        modulation,
        make_lightning_schedule(4, 6),
        start,
        Conditioning(prompt),
        [(1, 2, 3), (1, 1, 3)],
        negative=None if scale is None else Conditioning(unwanted),
        true_cfg_scale=scale or 1.0,
        references=references,
        on_step=lambda done, of: reports.append((done, of)),
    )
    scheduler, expected = make_lightning_schedule(4, 6), start
    for t in scheduler.timesteps:
        predicted = expected * 0.5 + prompt.mean(dim=(1, 2), keepdim=True)
        if scale is not None:
            other = expected * 0.5 + unwanted.mean(dim=(1, 2), keepdim=True)
            predicted = guided(predicted, other, scale)
        expected = scheduler.step(predicted, t, expected, return_dict=False)[0]
    torch.testing.assert_close(found, expected)
    assert found.shape == start.shape
    assert reports == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert modulation.steps == [0, 1, 2, 3]
    assert len(transformer.calls) == (4 if scale is None else 8)
    for latents, timestep, condition, shapes in transformer.calls:
        assert shapes == [(1, 2, 3), (1, 1, 3)]
        assert condition.mask is None
        assert timestep.shape == (2,)
        assert latents.shape[1] == (9 if has_references else 6)
        if references is not None:
            assert torch.equal(latents[:, 6:], references)
    shown = [float(timestep[0]) for _, timestep, _, _ in transformer.calls]
    assert shown[:: 1 if scale is None else 2] == pytest.approx([1.0, 0.9, 0.75, 0.5])


def test_a_report_may_stop_the_loop_and_none_is_needed() -> None:
    transformer = Predicting()

    def stop(done: int, _: int) -> None:
        if done == 2:
            raise InterruptedError

    def run(**more: Any) -> Tensor:
        return denoise(
            transformer,
            WeightModulation(),
            make_lightning_schedule(4, 6),
            torch.randn(1, 6, 4),
            Conditioning(torch.randn(1, 5, 3)),
            [(1, 2, 3)],
            true_cfg_scale=1.0,
            **more,
        )

    with pytest.raises(InterruptedError):
        run(on_step=stop)
    assert len(transformer.calls) == 2
    assert run().shape == (1, 6, 4)
    assert len(transformer.calls) == 6


@pytest.mark.parametrize("masked", [False, True])
def test_a_step_that_is_watched_shows_where_it_leads_and_changes_nothing(*, masked: bool) -> None:
    """With a velocity that leads straight to a picture, each estimate is that picture."""
    picture, noise = torch.randn(1, 6, 4), torch.randn(1, 6, 4)
    source = torch.zeros(1, 6, 4)

    def predict(latents: Tensor, timestep: Tensor, step: int) -> Tensor:
        del latents, timestep, step
        return noise - picture

    def correct(latents: Tensor, sigma: float) -> Tensor:
        kept = sigma * noise + (1 - sigma) * source
        return torch.cat([latents[:, :3], kept[:, 3:]], dim=1) if masked else latents

    watched: list[tuple[int, int]] = []

    def watch(step: int, steps: int, estimate: Callable[[], Tensor]) -> None:
        watched.append((step, steps))
        found = estimate()
        torch.testing.assert_close(found[:, :3], picture[:, :3])
        torch.testing.assert_close(found[:, 3:], (source if masked else picture)[:, 3:])

    begun = [noise.clone(), noise.clone()]
    plain = sample(predict, make_lightning_schedule(4, 6), begun[0], correct=correct)
    seen = sample(predict, make_lightning_schedule(4, 6), begun[1], correct=correct, watch=watch)
    assert torch.equal(plain, seen)
    assert watched == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_gpu_is_waited_for_one_step_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at once, which would leave it idle, and not later: a stop takes effect within a step."""
    said: list[tuple[str, int]] = []

    class Event:
        made = 0

        def __init__(self) -> None:
            Event.made += 1
            self._number = Event.made

        def record(self) -> None:
            said.append(("recorded", self._number))

        def synchronize(self) -> None:
            said.append(("waited for", self._number))

    monkeypatch.setattr(torch.cuda, "Event", Event)
    for device in (torch.device("cpu"), torch.device("cuda")):
        pace = _Pace(device)
        for _ in range(3):
            pace.step()
    waits = [("recorded", 1), ("waited for", 1), ("recorded", 2), ("waited for", 2)]
    assert said == [*waits, ("recorded", 3)]


def test_each_step_on_a_gpu_is_waited_for_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU: the latents are said to be on one, and nothing is computed."""
    said: list[str] = []

    class Event:
        def record(self) -> None:
            said.append("recorded")

        def synchronize(self) -> None:
            said.append("waited for")

    def predict(latents: Tensor, _timestep: Tensor, step: int) -> Tensor:
        said.append(f"step {step}")
        return latents

    class Schedule:
        timesteps = torch.tensor([1000.0, 900.0, 750.0, 500.0])
        sigmas = np.array([1.0, 0.9, 0.75, 0.5, 0.0])

        def step(self, *given: Any, return_dict: bool) -> tuple[Tensor]:
            assert not return_dict
            latents: Tensor = given[-1]
            return (latents,)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    scheduler = Schedule()
    with FakeTensorMode(allow_non_fake_inputs=True):
        latents = torch.empty(1, 6, 4, device="cuda")
        assert sample(predict, scheduler, latents).device.type == "cuda"
    steps = [f"step {step}" for step in range(4)]
    assert said[:2] == [steps[0], "recorded"]
    for step in steps[1:]:
        at = said.index(step)
        assert said[at + 1 : at + 3] == ["waited for", "recorded"]
    assert len(said) == 4 + 4 + 3
