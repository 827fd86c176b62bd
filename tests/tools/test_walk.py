"""The walks that docs/architecture.md shows are those that jobs, starts and weights take."""

from pathlib import Path

import pytest

from tools import walk

PAGE = Path(__file__).parents[2] / walk.PAGE


@pytest.mark.slow
@pytest.mark.parametrize("name", walk.WALKS)
def test_the_documented_walk_is_the_one_that_is_taken(name: str) -> None:
    _, _, rest = PAGE.read_text(encoding="utf-8").partition(f"<!-- walk {name} -->\n")
    documented, _, _ = rest.partition("\n<!-- end -->")
    assert documented == walk.shown(name)
