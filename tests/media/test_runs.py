"""Runs of tiny pieces are skipped to their end, by patterns that every supported Python matches."""

import ast
import re
from pathlib import Path

import pytest

from worker.media.runs import STEP, compile_run, skip_run

SOURCE = Path(__file__).parents[2] / "src"
POSSESSIVE = re.compile(r"(?<!\\)[*+?}]\+|\(\?>")


@pytest.mark.parametrize("count", [0, 1, 2, 7, 2 * STEP + 1])
def test_a_run_is_skipped_to_its_end_and_no_further(count: int) -> None:
    run = compile_run(rb"a(?:\x01.|\x02..)")
    data = b"start" + b"a\x01\na\x02bb" * count
    assert skip_run(run, data + b"a\x03ccc", 5) == len(data)
    assert skip_run(run, data, 5) == len(data)


def test_no_pattern_of_the_worker_is_possessive_or_atomic() -> None:
    """Debian 12's Python matches these wrongly (cpython issue 106052): it read no PNG."""
    found = [
        (file.name, node.value)
        for file in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str | bytes)
        and POSSESSIVE.search(repr(node.value)[1:].replace("\\\\", "\\"))
    ]
    assert found == []
