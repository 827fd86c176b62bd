"""The embedded pair draws and edits, by the pixels that the worker's engine makes.

Colour and background are what this state of the training has learned; the model card says what it
has not. Held to the majority of a few cases, so that a bf16 rounding elsewhere changes no verdict.
"""

from collections.abc import Iterator

import pytest

from builder.tiny import checker, evaluate
from worker import boot, settings
from worker.families import Model

CASES = 10


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Model]]:
    """The embedded pair, opened as a worker opens it."""
    home = tmp_path_factory.mktemp("home")
    opened = boot.boot(settings.read({"MODEL": "tiny", "MODEL_DIR": str(home)}))
    yield {name: opened.take(f"tiny-{name}") for name in ("image", "edit")}
    for name in ("image", "edit"):
        opened.take(f"tiny-{name}").release()


@pytest.mark.parametrize("way", ["lightning-8", "lightning-4"])
def test_a_prompt_gives_its_colours(models: dict[str, Model], way: str) -> None:
    right = 0
    for case in evaluate.prompts(CASES, 21):
        seen = checker.read(evaluate.make(models["image"], case, way))
        right += (seen.colour, seen.background) == (case.scene.colour, case.scene.background)
    assert right >= 0.7 * CASES


def test_an_edit_changes_the_background_that_it_was_asked_for(models: dict[str, Model]) -> None:
    cases = [case for case in evaluate.edits(5 * CASES, 22) if case.part == "background"]
    assert len(cases) == CASES
    right = 0
    for case in cases:
        before = checker.read(case.references[0])
        seen = checker.read(evaluate.make(models["edit"], case, "lightning-8"))
        assert before.background != case.scene.background
        right += seen.background == case.scene.background
    assert right >= 0.7 * CASES


def test_two_references_give_the_object_of_one_and_the_background_of_the_other(
    models: dict[str, Model],
) -> None:
    right = 0
    for case in evaluate.exchanges(CASES, 23):
        seen = checker.read(evaluate.make(models["edit"], case, "lightning-8"))
        right += (seen.colour, seen.background) == (case.scene.colour, case.scene.background)
    assert right >= 0.7 * CASES
