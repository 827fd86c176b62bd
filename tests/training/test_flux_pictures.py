"""The embedded FLUX.2 makes and edits what is requested, by the pixels from the worker's engine.

The model card's figures are of hundreds of pictures (`make eval-tiny MODEL=tiny-flux`); here a few
of each, with room for one miss, so that a rounding elsewhere changes no verdict.
"""

from collections.abc import Callable, Iterator
from dataclasses import astuple, replace
from pathlib import Path

import pytest

from training.tiny import begun, checker, evaluate
from training.tiny.cases import Case, edits, exchanges, prompts, rates
from training.tiny.flux import evaluate as judged
from worker.seam import Model

FOLDER = Path(__file__).parents[2] / "checkpoints" / "tiny" / "flux"
CASES = 4
# With an eighth of noise the source stays; with a quarter, as the judge has it, not always.
STAYS = {0.02: True, 0.8: False}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """The embedded FLUX.2, opened as a worker opens it."""
    opened = judged.opened(FOLDER, "bf16", tmp_path_factory.mktemp("home"))
    yield opened
    opened.release()


def is_shown(model: Model, case: Case, weights: tuple[float, ...] = ()) -> bool:
    """Return whether a case's picture shows its scene in all five parts."""
    return astuple(checker.read(judged.make(model, case, weights))) == astuple(case.scene)


@pytest.mark.parametrize("kind", [prompts, exchanges])
def test_words_and_two_references_give_their_scene(
    model: Model, kind: Callable[[int, int], Iterator[Case]]
) -> None:
    cases = list(kind(CASES, 31))
    assert {case.held_out for case in cases} == {True, False}
    assert sum(is_shown(model, case) for case in cases) >= CASES - 1


def test_an_edit_does_what_was_requested_and_keeps_the_rest(model: Model) -> None:
    cases = list(edits(5, 32))
    result = rates(cases, [judged.make(model, case) for case in cases])
    assert min(result["asked"], result["rest kept"]) >= 0.8


def test_the_heavier_of_two_references_is_shown_and_the_other_when_they_change_places(
    model: Model,
) -> None:
    weighed = list(judged.weigh(CASES, 33))
    for (one, first), (other, second) in zip(weighed[::2], weighed[1::2], strict=True):
        assert replace(one, scene=other.scene) == other
        assert first == second[::-1]
        assert not any(
            a == b for a, b in zip(astuple(one.scene), astuple(other.scene), strict=True)
        )
    shown = [is_shown(model, case, weights) for case, weights in weighed]
    assert sum(shown) >= CASES - 1


@pytest.mark.parametrize("kind", ["img2img", "inpaint", "outpaint"])
def test_what_begins_from_a_picture_changes_what_it_must_and_nothing_else(
    model: Model, kind: str
) -> None:
    cases = {
        "img2img": lambda: begun.vary(CASES, 34, STAYS),
        "inpaint": lambda: begun.repaint(CASES, 34),
        "outpaint": lambda: begun.widen(CASES, 34),
    }[kind]()
    models = {"image": model, "edit": model}
    shown = [
        begun.is_right(case, begun.make(models, case, evaluate.WAYS[judged.WAY]).show())
        for case in cases
    ]
    assert len(shown) == CASES
    assert sum(shown) >= CASES - 1


def test_weights_are_judged_over_both_orders_and_held_out_scenes() -> None:
    weighed = list(judged.weigh(20, 35))
    assert len(weighed) == 20
    heavier = [weights.index(2.0) for _, weights in weighed]
    assert heavier == [0, 1] * 10
    assert {(h, case.held_out) for h, (case, _) in zip(heavier, weighed, strict=True)} == {
        (h, held) for h in (0, 1) for held in (True, False)
    }
