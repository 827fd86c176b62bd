"""What a batch is predicted from, row by row; and what each kind of model has by default."""

from typing import Any

import pytest
import torch

from worker.families.catalogue import CATALOGUE
from worker.families.flux2.denoising import Conditions

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
