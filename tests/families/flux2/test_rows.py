"""What a batch is predicted from, row by row; and what each kind of model has by default."""

import inspect
from dataclasses import replace
from typing import Any

import diffusers
import pytest
import torch

from worker.engine.schedule import make_schedule
from worker.families.catalogue import CATALOGUE
from worker.families.flux2 import models
from worker.families.flux2.denoising import Conditions
from worker.families.flux2.models import DISTILLED
from worker.families.flux2.shift import compute_mu
from worker.weights.spec import ModelSpec

FIELDS = ("prompt", "negative", "references", "guidance")


@pytest.mark.parametrize("given", [FIELDS, ("prompt",)], ids=len)
def test_the_rows_that_are_kept_have_all_that_was_theirs(given: tuple[str, ...]) -> None:
    """An ended picture leaves the forwards, and takes nothing of another's with it."""
    forward: Any = None
    values: dict[str, Any] = {name: torch.rand(3, 2) for name in given}
    kept = Conditions(forward, places=[(0, 1, 1)], **values).keep([2, 0])
    for name in FIELDS:
        found = getattr(kept, name)
        if name in given:
            assert torch.equal(found, values[name][[2, 0]])
        else:
            assert found is None


def test_distilled_models_take_four_steps_and_the_others_fifty() -> None:
    rows = [row for row in CATALOGUE.rows if row.repository.startswith("black-forest-labs/")]
    steps = {row.name: row.defaults.steps for row in rows}
    assert {name for name, count in steps.items() if count == 4} == {
        "flux-2-klein-4b",
        "flux-2-klein-9b",
    }
    assert {count for name, count in steps.items() if "base" in name or "dev" in name} == {50}


@pytest.mark.parametrize("row", models.TABLE, ids=lambda row: row.name)
def test_what_a_job_leaves_out_is_what_the_stock_pipeline_takes(row: ModelSpec) -> None:
    """A scale of CFG, or dev's own guidance; a distilled model runs without either."""
    stock = inspect.signature(getattr(diffusers, row.pipeline).__call__).parameters
    scale, known = stock["guidance_scale"].default, row.defaults
    if row.pipeline == "Flux2Pipeline":
        expected = (stock["num_inference_steps"].default, 1.0, scale)
    elif "base" in row.name:
        expected = (stock["num_inference_steps"].default, scale, None)
    else:
        expected = (4, 1.0, None)
    assert (known.steps, known.true_cfg_scale, known.guidance) == expected
    assert known.area == (96 * 96 if row.embedded else 1024 * 1024)


def test_every_flux_weighs_up_to_four_references_and_no_other_model_weighs_any() -> None:
    for row in CATALOGUE.rows:
        if "speech" not in row.tasks:
            is_flux = row in models.TABLE
            assert row.defaults.weighs_references is is_flux
            assert (row.defaults.max_references == 4) is is_flux


def test_a_picture_that_is_begun_from_another_is_four_fifths_noise_unless_a_job_says_more() -> None:
    """In four steps, of a million pixels: for so little strength, since the schedule is shifted."""
    config = {"num_train_timesteps": 1000, "shift": 3.0, "use_dynamic_shifting": True}
    tokens = 64 * 64
    for row in models.TABLE:
        begun = make_schedule(
            config, 4, tokens, mu=compute_mu(tokens, 4), strength=row.defaults.strength
        )
        assert float(begun.sigmas[0]) == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize("row", models.TABLE, ids=lambda row: row.name)
def test_every_size_has_the_aspect_of_its_name_and_about_the_area_of_its_model(
    row: ModelSpec,
) -> None:
    """In multiples of the 16 pixels of a token."""
    defaults = row.defaults
    for aspect, (width, height) in defaults.sizes.items():
        wide, high = map(int, aspect.split(":"))
        assert width % 16 == height % 16 == 0
        assert width * height == pytest.approx(defaults.area, rel=0.12)
        assert width / height == pytest.approx(wide / high, rel=0.13)
        assert defaults.sizes[f"{high}:{wide}"] == (height, width)


def test_what_is_not_apache_s_asks_for_consent_and_the_embedded_one_for_no_gpu() -> None:
    for row in models.TABLE:
        assert row.is_gated == (row.licence != "apache-2.0")
        assert row.is_gated == ("4b" not in row.name and row.embedded is None)
        assert row.needs_gpu == (row.embedded is None)
        assert row.tasks == models.ALL_TASKS


@pytest.mark.parametrize(
    ("area", "used", "sizes"),
    [
        (96 * 96, 96 * 96, models.SMALL_SIZES),
        (512 * 512, 512 * 512, models.KLEIN_SIZES),
        (1, 1, models.KLEIN_SIZES),
        (0, DISTILLED.area, models.KLEIN_SIZES),
        (-1, DISTILLED.area, models.KLEIN_SIZES),
        (None, DISTILLED.area, models.KLEIN_SIZES),
        ("96", DISTILLED.area, models.KLEIN_SIZES),
    ],
)
def test_a_model_from_outside_has_the_area_that_it_names(area: Any, used: int, sizes: Any) -> None:
    """Where that is one; and what its class can do."""
    for pipeline, about, defaults in (
        ("Flux2KleinPipeline", {"is_distilled": True}, DISTILLED),
        ("Flux2KleinPipeline", {}, models.BASE),
        ("Flux2Pipeline", {"is_distilled": True}, models.GUIDED),
    ):
        spec = ModelSpec("x", "x/y", pipeline)
        found = models.FAMILY.classes[pipeline](spec, {**about, "area": area})
        assert found.defaults == replace(defaults, area=used, sizes=sizes)
        assert found.defaults.rank_bytes == 0  # nothing is known of its blocks
        assert (found.family, found.tasks, found.parts) == (
            models.TABLE[0].family,
            models.ALL_TASKS,
            models.PARTS,
        )
