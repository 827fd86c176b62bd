"""What a family says of itself before it is imported agrees with how it prepares its models."""

import importlib

import pytest

from worker.families.catalogue import CATALOGUE
from worker.weights.spec import ModelSpec, Parts


@pytest.mark.parametrize("row", CATALOGUE.rows, ids=lambda row: row.name)
def test_a_row_has_the_parts_of_its_family_s_recipe(row: ModelSpec) -> None:
    recipe = importlib.import_module(row.family).OPENER.recipe
    assert row.parts == Parts(weights=recipe.with_weights, beside=recipe.copied)
