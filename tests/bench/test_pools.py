"""What fits which card is what the worker's own functions say."""

import json

import pytest

from bench import pools
from worker.families.qwen_image.planning import plan_working


def test_the_table_is_what_the_functions_give() -> None:
    found = {name: pools.compute(mebibytes) for name, mebibytes in pools.CARDS.items()}
    assert json.loads(pools.RESULTS.read_text()) == found, "run: python bench/pools.py"


def test_16_gb_hold_an_edit_without_offload_and_24_gb_both_models() -> None:
    """An L4 has less than 24 GB of memory."""
    found = {name: pools.compute(mebibytes) for name, mebibytes in pools.CARDS.items()}
    assert (found["A4000"]["precision"], found["A4000"]["offload"]) == ("4bit", False)
    assert (found["3090"]["both"], found["L4"]["both"]) == ("4bit", None)


@pytest.mark.parametrize("card", pools.CARDS)
def test_what_is_served_fits_with_the_context_counted_in(card: str) -> None:
    """Of the larger edit, with all its references."""
    total, found = pools.CARDS[card] << 20, pools.compute(pools.CARDS[card])
    weights = pools.read_weights()[found["precision"]]
    working = plan_working(pools.EDIT, pools.SETTINGS, found["precision"], found["edit"] ** 2)
    assert weights.whole + working + 1_000_000_000 <= total
