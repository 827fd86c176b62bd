"""What a family says of itself before it is imported agrees with how it prepares its models."""

import importlib

import pytest

from worker import settings
from worker.families.catalogue import CATALOGUE
from worker.weights.spec import ModelSpec, Parts


@pytest.mark.parametrize("row", CATALOGUE.rows, ids=lambda row: row.name)
def test_a_row_has_the_parts_of_its_family_s_recipe(row: ModelSpec) -> None:
    recipe = importlib.import_module(row.family).OPENER.recipe
    if row.placements:  # they say where each part is in the root of a repository
        assert [one.role for one in row.placements] == [part.role for part in recipe.parts]
        assert row.parts == Parts(weights=("",))
        return
    assert row.parts == Parts(weights=recipe.with_weights, beside=recipe.copied)


@pytest.mark.parametrize("row", CATALOGUE.rows, ids=lambda row: row.name)
def test_every_family_computes_what_a_job_takes_beside_the_weights(row: ModelSpec) -> None:
    recipe = importlib.import_module(row.family).OPENER.recipe
    assert recipe.compute_working(row, settings.read({}), "bf16") > 0


@pytest.mark.parametrize("row", CATALOGUE.rows, ids=lambda row: row.name)
def test_messages_call_the_part_that_may_wait_by_its_role_in_plain_words(row: ModelSpec) -> None:
    recipe = importlib.import_module(row.family).OPENER.recipe
    assert recipe.waiting in recipe.with_weights
    assert recipe.waiting_word.split() == recipe.waiting.split("_")
