"""A preset fills in what the caller leaves open, and the reply says what it was."""

from typing import Any

import pytest

from worker import settings
from worker.seam import Served
from worker.tasks.picture import offer_of
from worker.tasks.preset import list_presets
from worker.tasks.request import Request, parse
from worlds.published import IMAGE, offering

FUSED = {"LIGHTNING_FUSED": "true"}
BARE = offering(IMAGE, lightning_steps=())


def ask(given: Any, model: Served = IMAGE, environ: Any = None) -> Request:
    request = parse({"prompt": "a cat", **given}, (model,), settings.read(environ or {}))
    assert isinstance(request, Request)
    return request


def made(given: Any, model: Served = IMAGE, environ: Any = None) -> tuple[int, float, bool]:
    """Return the steps, the scale and whether Lightning runs."""
    draft = ask(given, model, environ).asked.draft
    return draft.steps, draft.true_cfg_scale, draft.lightning


@pytest.mark.parametrize(
    ("loaded", "environ", "rows"),
    [
        ((8, 4), {}, [(4, 1.0, True), (8, 1.0, True), (50, 4.0, False)]),
        ((8,), {}, [(8, 1.0, True), (8, 1.0, True), (50, 4.0, False)]),
        ((8,), FUSED, [(8, 1.0, True)] * 3),
        ((), {}, [(20, 4.0, False), (30, 4.0, False), (50, 4.0, False)]),
    ],
)
def test_a_preset_is_a_row_of_what_the_worker_has_loaded(
    loaded: tuple[int, ...], environ: Any, rows: list[tuple[int, float, bool]]
) -> None:
    model = offering(IMAGE, lightning_steps=loaded)
    offer, chosen = offer_of(model), settings.read(environ)
    assert list(list_presets(offer, chosen).values()) == rows
    for name, row in zip(("fast", "Balanced", "QUALITY"), rows, strict=True):
        assert made({"preset": name}, model, environ) == row


def test_few_steps_stay_two() -> None:
    offer = offer_of(offering(BARE, steps=3))
    assert [row[0] for row in list_presets(offer, settings.read({})).values()] == [2, 2, 3]


@pytest.mark.parametrize(
    ("given", "result", "filled"),
    [
        ({"steps": 8}, (8, 1.0, True), {"true_cfg_scale": 1.0, "lightning": True}),
        ({"lightning": True}, (4, 1.0, True), {"num_inference_steps": 4, "true_cfg_scale": 1.0}),
        (
            {"preset": "quality", "cfg": 2, "steps": 30},
            (30, 2.0, False),
            {"lightning": False},
        ),
    ],
)
def test_what_is_given_next_to_it_wins_and_the_rest_is_reported(
    given: Any, result: tuple[int, float, bool], filled: dict[str, Any]
) -> None:
    preset = given.get("preset", "fast")
    assert made({"preset": "fast", **given}) == result
    asked: Any = ask({"preset": "fast", **given}).asked
    assert asked.adjusted == {"preset": (preset, filled)}


def test_a_preset_of_another_schedule_has_no_effect() -> None:
    for given, result in (
        ({"preset": "fast", "lightning": False}, (50, 4.0, False)),
        ({"preset": "quality", "lightning": True}, (8, 1.0, True)),
    ):
        request = ask(given)
        assert made(given) == result
        word = "true" if given["lightning"] else "false"
        assert request.warnings == (
            f"preset: {given['preset']} has no effect with lightning {word}",
        )
        assert request.asked.adjusted == {}  # type: ignore[attr-defined]


def test_without_a_preset_nothing_is_filled_in() -> None:
    assert made({}) == (8, 1.0, True)
    assert ask({}).asked.adjusted == {}  # type: ignore[attr-defined]
