"""The committed style LoRA: small, seen in pictures of every key form, at half strength too."""

import random
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from training.tiny import architecture, checker, evaluate, frames, style, world
from training.tiny.cases import prompts
from worker.engine import lora_file
from worker.engine.lora import Adapters
from worker.loras.ready import ReadyLora
from worlds import prepared
from worlds.loras import FORMS, write_form

FOLDER = Path(__file__).resolve().parents[2] / "checkpoints" / "tiny"
CASES = list(prompts(2, 21))


def test_the_file_is_small_and_of_every_module_that_public_loras_reach() -> None:
    file = FOLDER / style.FILE
    assert file.stat().st_size < 1_000_000
    transformer = architecture.build_transformer(zero_cond_t=False)
    lora = lora_file.read_scaled(file, Adapters(transformer).modules)
    assert set(lora.scales) == set(style.module_names())
    assert set(lora.scales.values()) == {1.0}


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_a_frame_is_measured_and_removed(strength: float) -> None:
    """Whatever is in it: the scene is read as it is without one."""
    rng = random.Random(5)
    for _ in range(20):
        scene = world.random_scene(rng)
        picture = frames.draw(scene, world.random_jitter(rng), strength)
        colour = world.COLOURS[scene.colour]
        assert frames.measure(picture, colour) == pytest.approx(strength, abs=0.02)
        assert astuple(checker.read(frames.remove(picture))) == astuple(scene)


def test_rates_count_what_is_framed_and_what_is_right() -> None:
    """At scale 1 a frame of the colour, below it a weaker one."""
    plain, framed, half = (
        [frames.draw(case.scene, world.Jitter(0, 0, 0), strength) for case in CASES]
        for strength in (0.0, 1.0, 0.5)
    )
    assert evaluate.rate_styled(CASES, framed, 1.0) == {"framed": 1.0, "all five": 1.0}
    assert evaluate.rate_styled(CASES, half, 0.5) == {
        "weaker": 1.0,
        "all five": 1.0,
        "mean strength": pytest.approx(0.5, abs=0.02),
    }
    assert evaluate.rate_styled(CASES, half, 1.0)["framed"] == 0.0
    assert evaluate.rate_styled(CASES, framed, 0.5)["weaker"] == 0.0
    assert evaluate.rate_styled(CASES[::-1], framed, 1.0)["all five"] == 0.0
    assert evaluate.rate_styled(CASES, [framed[0], plain[1]], 1.0)["framed"] == 0.5


@pytest.mark.parametrize(
    ("result", "missed"),
    [
        ({"framed": 0.95, "all five": 0.949}, {"all five"}),
        ({"weaker": 1.0, "all five": 1.0, "mean strength": 0.3}, set[str]()),
        ({"weaker": 1.0, "all five": 1.0, "mean strength": 0.7}, set[str]()),
        ({"weaker": 1.0, "all five": 1.0, "mean strength": 0.29}, {"mean strength"}),
        ({"weaker": 0.9, "all five": 1.0, "mean strength": 0.71}, {"weaker", "mean strength"}),
    ],
)
def test_half_the_strength_is_about_half_a_frame_in_the_mean(
    result: dict[str, float], missed: set[str]
) -> None:
    assert evaluate.list_missed(result).keys() == missed


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The embedded text-to-image model from a bundle."""
    home = tmp_path_factory.mktemp("home")
    return prepared.model("tiny-image", prepared.opened("tiny-image", home))


@pytest.fixture(scope="module")
def committed(model: Any) -> list[Image.Image]:
    """The pictures with the committed file, beside Lightning."""
    return evaluate.draw_styled(model, CASES, FOLDER, "lightning-8, framed")


def test_the_style_is_seen_beside_lightning_and_at_half_strength(
    model: Any, committed: list[Image.Image]
) -> None:
    """One case of two is held out of its training."""
    assert [case.held_out for case in CASES] == [False, True]
    assert evaluate.rate_styled(CASES, committed, 1.0) == {"framed": 1.0, "all five": 1.0}
    cases = list(prompts(12, 21))
    half = evaluate.draw_styled(model, cases, FOLDER, "lightning-8, half framed")
    assert evaluate.list_missed(evaluate.rate_styled(cases, half, 0.5)) == {}
    plain = [evaluate.make(model, case, "lightning-8") for case in CASES]
    assert evaluate.rate_styled(CASES, plain, 1.0)["framed"] == 0.0


@pytest.mark.parametrize("name", FORMS)
def test_every_key_form_of_it_gives_the_same_picture(
    model: Any, committed: list[Image.Image], name: str, tmp_path: Path
) -> None:
    state = load_file(FOLDER / style.FILE)
    pairs = {
        module: (
            state[f"transformer.{module}.lora_A.weight"],
            state[f"transformer.{module}.lora_B.weight"],
        )
        for module in style.module_names()
    }
    file = tmp_path / "style.safetensors"
    beside = write_form(pairs, style.RANK, FORMS[name], file)
    lora = ReadyLora(name, f"sha256:{name}", 1.0, file, beside, is_callers=True)
    case = CASES[0]
    picture = evaluate.draw(model, case.prompt, (), case.seed, "lightning-8", (lora,))
    assert picture == committed[0]


def test_what_is_written_is_what_was_trained(tmp_path: Path) -> None:
    """Every factor in bf16, and the scale 1 in the record that diffusers reads."""
    loras = style.attach(architecture.build_transformer(zero_cond_t=True), 3)
    for lora in loras.values():
        torch.nn.init.normal_(lora.up, std=0.1)
    file = tmp_path / style.FILE
    style.save(loras, file)
    found = lora_file.read_scaled(file, style.module_names())
    assert set(found.scales.values()) == {1.0}
    for name, trained in loras.items():
        down, up = found.find_sides(name)
        assert torch.equal(down, trained.down.detach().bfloat16())
        assert torch.equal(up, trained.up.detach().bfloat16())
