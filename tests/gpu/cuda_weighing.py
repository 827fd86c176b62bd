"""What FLUX.2 alone makes on the device: pictures from weighed references, and with a LoRA."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gpu.figures import Figures
from gpu.studio import (
    FLUX,
    Drawing,
    Studio,
    make_image,
    make_wishes,
    measure_decibels,
    summarise,
    weigh,
)
from PIL import Image
from safetensors.torch import save_file

from training.tiny.cases import Case, edits, exchanges, prompts, rates
from training.tiny.flux import evaluate
from worker.loras.ready import ReadyLora

CPU = torch.device("cpu")
NEAR_DB = 30.0
RANK = 8
Weighed = tuple[Case, tuple[float, ...]]


@pytest.fixture(params=["bf16", "8bit", "4bit"])
def precision(request: pytest.FixtureRequest) -> str:
    """Each precision."""
    return str(request.param)


@pytest.fixture(params=[FLUX])
def model(studio: Studio, request: pytest.FixtureRequest, precision: str) -> Drawing:
    """The model on the device."""
    return studio.open(request.param, precision)


def list_kinds() -> Iterator[list[Weighed]]:
    """Yield what is asked of the model: from text, one reference, two, and two with weights."""
    for cases in (prompts(4, 11), edits(5, 12), exchanges(2, 13)):
        yield [(case, ()) for case in cases]
    yield [*evaluate.weigh(4, 15)]


def draw(model: Drawing, weighed: list[Weighed]) -> list[Image.Image]:
    """Return the pictures of cases."""
    return [evaluate.make(model, case, weights) for case, weights in weighed]


def test_pictures_are_right_and_near_those_of_a_cpu_worker(
    studio: Studio, figures: Figures, model: Drawing, precision: str
) -> None:
    """For the same seed, each from the bundle that its own device prepared."""
    other = studio.open(FLUX, precision, CPU)
    for weighed in list_kinds():
        cases = [case for case, _ in weighed]
        here, there = draw(model, weighed), draw(other, weighed)
        decibels = [measure_decibels(*pair) for pair in zip(here, there, strict=True)]
        kind = "rest kept" if cases[0].kind == "edit" else "all five"
        right = [rates(cases, pictures)[kind] for pictures in (here, there)]
        figures.put(**{cases[0].kind: summarise(decibels) | {"right": right}})
        assert right[0] >= right[1] - 1 / len(cases)
        assert sum(decibels) / len(decibels) > NEAR_DB


def test_a_reference_counts_as_often_as_its_weight(model: Drawing) -> None:
    """Once without any, to the last bit; one of 0 not at all."""
    wish = weigh(make_wishes(FLUX)[0])
    pictures = {
        weights: make_image(model, replace(wish, reference_weights=weights)).tobytes()
        for weights in ((), (1.0, 1.0), (2.0, 0.5), (0.5, 2.0), (1.0, 0.0))
    }
    alone = replace(wish, references=wish.references[:1], reference_weights=())
    assert pictures[1.0, 1.0] == pictures[()]
    assert pictures[1.0, 0.0] == make_image(model, alone).tobytes()
    assert len(set(pictures.values())) == len(pictures) - 1


def make_lora(model: Drawing, folder: Path) -> ReadyLora:
    """Return a LoRA of some Linears of both kinds of blocks."""
    modules = dict(model._parts.transformer.named_modules())
    names = (
        "transformer_blocks.0.attn.to_q",
        "transformer_blocks.1.ff.linear_in",
        "single_transformer_blocks.0.attn.to_qkv_mlp_proj",
        "single_transformer_blocks.3.attn.to_out",
    )
    made = torch.Generator().manual_seed(5)
    state = {}
    for name in names:
        linear = modules[name]
        down = torch.randn(RANK, linear.in_features, generator=made)
        state[f"transformer.{name}.lora_A.weight"] = down * linear.in_features**-0.5
        up = torch.randn(linear.out_features, RANK, generator=made)
        state[f"transformer.{name}.lora_B.weight"] = up * 0.4
    path = folder / "lora.safetensors"
    save_file(state, path)
    return ReadyLora("lora", f"sha256:{path}", 1.0, path, None, is_callers=True)


def test_a_lora_is_seen_as_on_a_cpu_and_leaves_no_trace(
    studio: Studio, figures: Figures, model: Drawing, precision: str, tmp_path: Path
) -> None:
    other = studio.open(FLUX, precision, CPU)
    lora = make_lora(other, tmp_path)
    wishes = make_wishes(FLUX)
    plain = [make_image(model, wish) for wish in wishes]
    styled = [replace(wish, loras=(lora,)) for wish in wishes]
    here, there = ([make_image(each, wish) for wish in styled] for each in (model, other))
    near = [measure_decibels(*pair) for pair in zip(here, there, strict=True)]
    changed = [measure_decibels(*pair) for pair in zip(here, plain, strict=True)]
    figures.put(to_cpu=summarise(near), to_plain=summarise(changed))
    assert sum(near) / len(near) > NEAR_DB
    assert sum(changed) < sum(near) - 6 * len(near)
    again = [make_image(model, wish) for wish in wishes]
    assert [one.tobytes() for one in again] == [one.tobytes() for one in plain]
