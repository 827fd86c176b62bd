"""The sizes in README are those that the code computes from the full architecture."""

import importlib.util
import json
from pathlib import Path

BENCH = Path(__file__).parents[2] / "bench"


def test_the_written_sizes_are_the_computed_ones() -> None:
    """A change of what is quantised or kept shows here before it shows on a GPU."""
    spec = importlib.util.spec_from_file_location("sizes", BENCH / "sizes.py")
    assert spec is not None
    assert spec.loader is not None
    sizes = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sizes)
    written = json.loads((BENCH / "results" / "sizes.json").read_text())
    assert sizes.compute() == written, "run: python bench/sizes.py"
    # a third less than the published 40.9 GB, and an eighth of the rest in four bits and a bit
    assert written["bf16"]["transformer"] < 0.67 * 40.9
    assert written["4bit"]["transformer"] < 7.5
