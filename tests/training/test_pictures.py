"""The embedded pair makes and edits what is requested, by the pixels from the worker's engine.

The model card's figures are of hundreds of pictures (`make eval-tiny`); here a few of each, with
room for one miss, so that a rounding elsewhere changes no verdict.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace

import pytest
from PIL import Image

from training.tiny import begun, checker, evaluate, world
from training.tiny.cases import edits, exchanges, prompts, rates
from worker import boot, settings
from worker.seam import Model

CASES = 5
BUT_ONE = (CASES - 1) / CASES


@pytest.fixture(scope="module", params=["bf16", "8bit", "4bit"])
def models(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Model]]:
    """The embedded pair, opened as a worker opens it."""
    home = tmp_path_factory.mktemp("home")
    opened = boot.boot(
        settings.read({"MODEL": "tiny", "MODEL_DIR": str(home), "PRECISION_MODE": request.param})
    )
    yield {name: opened.take(f"tiny-{name}") for name in ("image", "edit")}
    for name in ("image", "edit"):
        opened.take(f"tiny-{name}").release()


@pytest.mark.parametrize("way", ["lightning-8", "lightning-4"])
def test_a_prompt_gives_its_scene(models: dict[str, Model], way: str) -> None:
    cases = list(prompts(CASES, 21))
    assert {case.held_out for case in cases} == {True, False}
    drawn = [evaluate.make(models["image"], case, way) for case in cases]
    assert rates(cases, drawn)["all five"] >= BUT_ONE


def test_an_edit_does_what_was_requested_and_keeps_the_rest(models: dict[str, Model]) -> None:
    cases = list(edits(2 * CASES, 22))
    for case in cases:
        before = checker.read(case.references[0])
        assert getattr(before, case.part) != getattr(case.scene, case.part)
    drawn = [evaluate.make(models["edit"], case, "lightning-8") for case in cases]
    result = rates(cases, drawn)
    assert result["asked"] >= 0.9
    assert result["rest kept"] >= 0.9


def test_two_references_give_the_object_of_one_and_the_background_of_the_other(
    models: dict[str, Model],
) -> None:
    cases = list(exchanges(CASES, 23))
    drawn = [evaluate.make(models["edit"], case, "lightning-8") for case in cases]
    assert rates(cases, drawn)["all five"] >= BUT_ONE


@pytest.mark.parametrize("kind", [begun.vary, begun.repaint, begun.widen])
def test_what_begins_from_a_picture_changes_what_it_must_and_nothing_else(
    models: dict[str, Model], kind: Callable[[int, int], Iterator[begun.Begun]]
) -> None:
    cases = list(kind(CASES, 24))
    assert {case.scene.held_out for case in cases} == {True, False}
    right = [
        begun.is_right(case, begun.make(models, case, evaluate.WAYS["lightning-8"]).show())
        for case in cases
    ]
    assert sum(right) >= CASES - 1


def test_a_source_is_not_what_it_must_become() -> None:
    """But for what stays: the checker would count a model that changes nothing."""
    for kind, least in ((begun.vary, 0.4), (begun.repaint, 1.0), (begun.widen, 0.5)):
        cases = list(kind(2 * CASES, 25))
        wrong = [not begun.is_right(case, case.source) for case in cases]
        assert sum(wrong) >= least * len(cases)


def test_a_pixel_outside_of_the_mask_is_seen() -> None:
    (case,) = begun.repaint(1, 26)
    shown = case.source.copy()
    assert begun.is_right(replace(case, scene=scene_of(shown)), shown)
    shown.putpixel((0, 95), (1, 2, 3))
    assert not begun.is_right(replace(case, scene=scene_of(shown)), shown)


def scene_of(picture: Image.Image) -> world.Scene:
    """Return the scene that the checker reads."""
    return world.Scene(**asdict(checker.read(picture)))
