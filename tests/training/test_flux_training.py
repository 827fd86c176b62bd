"""The embedded FLUX.2 learns from seen scenes alone, by the function that a pipeline computes."""

import itertools
import random
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from training.tiny import checker, phrases, world
from training.tiny.flux import drawn, learn_steps, pace, shapes, stored, tables, words
from training.tiny.flux.flow import Flow
from training.tiny.flux.learn_model import optimisers_of

CPU = torch.device("cpu")
PROMPTS = ("make it red", "a large blue star on a white background, on the left")


@pytest.fixture(scope="module")
def examples() -> tables.Tables:
    """Return all examples."""
    torch.manual_seed(1)
    return tables.Tables(words.build_tokenizer(), 3, CPU)


@pytest.fixture(scope="module")
def flow() -> Flow:
    """Return an untrained model whose output depends on all of its inputs."""
    torch.manual_seed(2)
    transformer = shapes.build_transformer()
    with torch.no_grad():
        for weight in transformer.parameters():
            if not weight.any():
                weight.normal_(0.0, 0.05)
    return Flow(shapes.build_text_encoder(words.build_tokenizer()), transformer, bf16=False)


def test_a_prompt_is_filled_in_as_the_tokenizers_own_template_does() -> None:
    tokenizer = words.build_tokenizer()
    for prompt in PROMPTS:
        turn = [{"role": "user", "content": prompt}]
        filled = tokenizer.apply_chat_template(
            turn, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        assert words.fill(prompt) == filled
    assert len(tokenizer("a picture like these").input_ids) == 4


@torch.no_grad()
def test_with_every_place_of_the_padding_the_model_is_the_pipelines_own(flow: Flow) -> None:
    from diffusers import Flux2KleinPipeline  # noqa: PLC0415 - only here

    tokenizer = words.build_tokenizer()
    encoded = tokenizer([words.fill(p) for p in PROMPTS], return_tensors="pt", padding="longest")
    noisy, references = torch.randn(2, 36, 64), torch.randn(2, 2, 36, 64)
    t = torch.tensor([0.3, 0.8])
    given = flow.condition(
        encoded.input_ids,
        encoded.attention_mask.bool(),
        references,
        torch.zeros(2, 2),
        512 - encoded.input_ids.shape[1],
    )
    embeds = Flux2KleinPipeline._get_qwen3_prompt_embeds(
        flow.text_encoder, tokenizer, list(PROMPTS), hidden_states_layers=shapes.TEXT_LAYERS
    )
    torch.testing.assert_close(given.embeds, embeds)
    one = torch.zeros(1, 64, 6, 6)
    places = (
        Flux2KleinPipeline._prepare_latent_ids(one),
        Flux2KleinPipeline._prepare_image_ids([one, one]),
    )
    theirs = flow.transformer(
        hidden_states=torch.cat((noisy, references.flatten(1, 2)), dim=1),
        timestep=t,
        encoder_hidden_states=embeds,
        txt_ids=Flux2KleinPipeline._prepare_text_ids(embeds),
        img_ids=torch.cat(places, dim=1),
        return_dict=False,
    )[0][:, :36]
    torch.testing.assert_close(flow(noisy, t, given), theirs)


@torch.no_grad()
def test_few_places_of_the_padding_count_for_all(flow: Flow) -> None:
    tokenizer = words.build_tokenizer()
    encoded = tokenizer([words.fill(PROMPTS[0])], return_tensors="pt")
    ids, real = encoded.input_ids, encoded.attention_mask.bool()
    noisy, t, none = torch.randn(1, 36, 64), torch.tensor([0.5]), torch.zeros(1, 0, 36, 64)

    def run(count: int) -> Tensor:
        out: Tensor = flow(noisy, t, flow.condition(ids, real, none, torch.zeros(1, 0), count))
        return out

    whole = run(512 - ids.shape[1])
    few = torch.stack([run(64) for _ in range(8)]).mean(0)
    without = flow(noisy, t, flow.condition(ids[:, :-1], real[:, :-1], none, torch.zeros(1, 0), 1))
    assert (few - whole).norm() < 0.2 * (without - whole).norm()


def test_no_example_shows_a_held_out_scene(examples: tables.Tables) -> None:
    assert not any(scene.held_out for scene in examples.scenes)
    assert len(examples.scenes) == sum(not scene.held_out for scene in world.scenes())


@pytest.mark.parametrize("task", ["edit", "describe"])
def test_an_edit_changes_one_part_and_keeps_the_jitter(examples: tables.Tables, task: str) -> None:
    some = examples.sample({task: 200}, 2)
    for target, references in zip(some.target.tolist(), some.references.tolist(), strict=True):
        (_, before), _ = references
        pairs = zip(astuple(examples.scenes[before]), astuple(examples.scenes[target]), strict=True)
        assert sum(a != b for a, b in pairs) == 1
    assert torch.equal(some.references[:, 0, 0], some.jitter)
    assert (some.logits == torch.tensor([0.0, tables.NONE])).all()


def test_an_exchange_shows_the_first_on_the_seconds_background(examples: tables.Tables) -> None:
    some = examples.sample({"exchange": 200}, 2)
    for target, references in zip(some.target.tolist(), some.references.tolist(), strict=True):
        first, second = (examples.scenes[scene] for _, scene in references)
        result = phrases.exchange(first, second, phrases.EXCHANGES[0]).scene
        assert examples.scenes[target] == result


def test_the_heavier_of_two_references_is_to_be_shown(examples: tables.Tables) -> None:
    some = examples.sample({"like": 200}, 2)
    heavier = some.logits.argmax(dim=1)
    shown = some.references[torch.arange(200), heavier]
    assert torch.equal(shown, torch.stack((some.jitter, some.target), dim=1))
    assert (some.logits.diff().abs() >= tables.LEAST_RATIO - 1e-6).all()
    assert 50 < int(heavier.sum()) < 150


def test_words_describe_their_scene_in_the_parts_that_they_fix(examples: tables.Tables) -> None:
    some = examples.sample({"image": 100, "whole": 100}, 0)
    tokenizer = words.build_tokenizer()
    for i, target in enumerate(some.target.tolist()):
        text = tokenizer.decode(some.ids[i][some.real[i]]).lower()
        scene = examples.scenes[target]
        for part, fixed in zip(phrases.PARTS, some.fixed[i].tolist(), strict=True):
            if part in {"colour", "shape", "background", "size"} and fixed:
                assert getattr(scene, part) in text
    assert some.fixed[100:].all()
    assert not some.fixed[:100].all()
    assert some.references.shape == (200, 0, 2)


def test_processes_draw_and_read_as_one_would() -> None:
    hands = drawn.Hands(2)
    pictures = hands.draw(1, 5)
    jitter = world.random_jitter(random.Random(5))
    scenes = [scene for scene in world.scenes() if not scene.held_out]
    for i in (0, 500, 1079):
        alone = torch.from_numpy(np.array(world.draw(scenes[i], jitter))).permute(2, 0, 1)
        assert torch.equal(pictures[0, i], alone)
    seen = hands.read(pictures[0, :130].float() / 127.5 - 1)
    hands.close()
    by_one = [
        checker.read(Image.fromarray(frame.permute(1, 2, 0).numpy())) for frame in pictures[0, :130]
    ]
    assert seen == by_one
    asked = scenes[:130]
    assert not any(drawn.wrong(seen, asked, [[True] * 5] * 130))
    assert all(drawn.wrong(seen, scenes[500:630], [[True] * 5] * 130))
    assert not any(drawn.wrong(seen, scenes[500:630], [[False] * 5] * 130))


def test_four_steps_are_kleins_own() -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler  # noqa: PLC0415 - only here
    from diffusers.pipelines.flux2.pipeline_flux2_klein import (  # noqa: PLC0415 - the same
        compute_empirical_mu,
    )

    scheduler = FlowMatchEulerDiscreteScheduler(**shapes.SCHEDULER)
    scheduler.set_timesteps(sigmas=np.linspace(1, 0.25, 4), mu=compute_empirical_mu(36, 4))
    ours = learn_steps.levels(4, learn_steps.shift_of(4))
    assert ours == pytest.approx(scheduler.sigmas.tolist(), abs=1e-6)


def test_a_teacher_of_the_second_order_ends_nearer_than_as_many_plain_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a flow whose end is known: from noise to a Gaussian of half its spread, by scaling."""
    monkeypatch.setattr(learn_steps, "conditioned", lambda *_: None)
    spread = 0.5

    def flow(x: Tensor, t: Tensor, _given: object) -> Tensor:
        level = t[:, None, None]
        rest = (1 - level) * spread**2
        return x * (level - rest) / ((1 - level) * rest + level**2)

    noise = plain = torch.randn(2, 36, 64)
    for level, following in itertools.pairwise(learn_steps.levels(14, 3.0)):
        plain = plain + (following - level) * flow(plain, plain.new_full((2,), level), None)
    taught = learn_steps.teach(flow, None, None, noise)  # type: ignore[arg-type] # of no use here
    end = spread * noise
    assert (taught - end).norm() < 0.2 * (plain - end).norm()


def test_a_stopped_stage_goes_on_where_it_was(tmp_path: Path) -> None:
    stage = stored.Stage(tmp_path, "model")
    model = nn.Linear(3, 3)
    average = stored.Average(model, 0.9)
    optimiser = torch.optim.AdamW(model.parameters(), 0.1)
    model(torch.ones(1, 3)).sum().backward()
    optimiser.step()
    average.follow()
    stage.save(model, average, [optimiser], 12.5)

    other = nn.Linear(3, 3)
    resumed, again = stored.Average(other, 0.9), torch.optim.AdamW(other.parameters(), 0.1)
    assert stage.resume(other, resumed, [again]) == 12.5
    assert torch.equal(other.weight, model.weight)
    assert torch.equal(resumed.weights["weight"], average.weights["weight"])
    assert not torch.equal(resumed.weights["weight"], model.weight)
    assert again.state_dict()["state"][0]["step"] == 1
    assert stage.finished(CPU) is None
    stage.finish(model.state_dict())
    assert stage.resume(other, resumed, [again]) == 0.0
    finished = stage.finished(CPU)
    assert finished is not None
    assert torch.equal(finished["weight"], model.weight)


def test_a_rate_rises_then_holds_then_falls_with_the_time_spent() -> None:
    at = [pace.Pace(1e6, spent=share * 1e6).rate(0.5) for share in (0, 0.01, 0.3, 0.75, 1)]
    assert at == pytest.approx([0.033, 0.367, 1.0, 0.5, 0.01], abs=1e-3)


def test_the_last_layer_of_the_text_encoder_is_not_trained(flow: Flow) -> None:
    learned = dict(flow.learned())
    assert not any(".layers.3." in name or name.endswith("model.norm.weight") for name in learned)
    assert any(".layers.2." in name for name in learned)
    every = [w for o in optimisers_of(flow) for g in o.param_groups for w in g["params"]]
    assert len(every) == len(learned)
