"""A model as published: what is so unless it is said otherwise, and which Lightning it has."""

from pathlib import Path

import pytest

from worker import settings
from worker.errors import InvalidSettings
from worker.weights.sources import make_place
from worker.weights.spec import (
    Elsewhere,
    Listing,
    LoraFile,
    ModelSpec,
    choose_parts,
    list_default_steps,
    list_lightning_steps,
)

OWN = {4: LoraFile(None, "four"), 8: LoraFile(None, "eight")}


def published(**facts: object) -> ModelSpec:
    return ModelSpec("mine", "org/mine", **facts)  # type: ignore[arg-type] # each of its own type


def test_a_repository_of_which_nothing_is_known() -> None:
    """It needs a GPU, is open to all, is alone and has no parts of others."""
    spec = published()
    assert (spec.pipeline, spec.family, spec.tasks, spec.licence) == ("", "", (), "unknown")
    assert (spec.needs_gpu, spec.is_gated, spec.is_alone) == (True, False, True)
    assert (spec.lightning_place, spec.transformer, spec.placements) == ("", "", ())
    assert spec.listing == Listing("", is_row=False, instead="")
    assert make_place(spec) == Path("org/mine")
    assert (Elsewhere("org/part").revision, Elsewhere("org/part").embedded) == ("", None)


def test_a_word_names_a_model_as_model_does() -> None:
    assert published().word == "org/mine"
    assert published(revision="v2").word == "org/mine@v2"
    assert published(revision="v2", folder=Path("/there")).word == "mine"


@pytest.mark.parametrize(
    ("environ", "found"),
    [
        ({}, {4: LoraFile(None, "four"), 8: LoraFile(None, "eight")}),
        (
            {"LIGHTNING": "a/b/c/x-{n}-of-{n}.safetensors"},
            {n: LoraFile("a/b", f"c/x-{n}-of-{n}.safetensors") for n in (8, 4)},
        ),
        (
            {"LIGHTNING": "a/b/x{n}.safetensors", "LIGHTNING_STEPS": "4"},
            {4: LoraFile("a/b", "x4.safetensors")},
        ),
        (
            {"LIGHTNING": "a/b/x-Lightning-6steps.safetensors", "LIGHTNING_STEPS": "4"},
            {6: LoraFile("a/b", "x-Lightning-6steps.safetensors")},
        ),
    ],
)
def test_lightning_is_the_models_own_or_what_the_settings_name(
    environ: dict[str, str], found: dict[int, LoraFile]
) -> None:
    spec = choose_parts(published(lightning=OWN), settings.read(environ))
    assert spec.lightning == found
    assert (spec.lightning_place, spec.transformer) == (environ.get("LIGHTNING", ""), "")


def test_a_transformer_is_what_the_settings_name() -> None:
    read = settings.read({"TRANSFORMER": "a/b/c"})
    assert choose_parts(published(), read).transformer == "a/b/c"


@pytest.mark.parametrize(
    ("facts", "environ", "steps"),
    [
        ({}, {}, (8,)),
        ({"embedded": "tiny"}, {}, (8, 4)),
        ({"embedded": "tiny"}, {"LIGHTNING_FUSED": "1"}, (8,)),
        ({}, {"LIGHTNING_STEPS": "4,8"}, (4, 8)),
        ({}, {"LIGHTNING_STEPS": "4", "LIGHTNING_FUSED": "1"}, (4,)),
        ({}, {"USE_LIGHTNING_LORA": "0"}, ()),
        ({"lightning": {}}, {}, ()),
        ({"lightning": {}}, {"LIGHTNING_STEPS": "4"}, ()),
    ],
)
def test_the_fewest_mistakes_come_first_unless_steps_are_set(
    facts: dict[str, object], environ: dict[str, str], steps: tuple[int, ...]
) -> None:
    spec = published(**{"lightning": OWN, **facts})
    assert list_lightning_steps(spec, settings.read(environ)) == steps


def test_the_default_steps_are_the_most_or_both_of_an_embedded_pair() -> None:
    assert list_default_steps(published(lightning=OWN)) == (8,)
    assert list_default_steps(published(lightning=OWN, embedded="tiny")) == (8, 4)
    assert list_default_steps(published()) == ()


def test_a_count_without_a_lora_is_refused_with_what_there_is() -> None:
    spec = published(lightning={8: LoraFile(None, "eight"), 6: LoraFile(None, "six")})
    with pytest.raises(InvalidSettings, match="mine has no LoRA for 4 steps, it has 8, 6"):
        list_lightning_steps(spec, settings.read({"LIGHTNING_STEPS": "8,4"}))
