"""Functions are verbs: the first word of every function's name in src says what it does."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"
FILES = sorted(SOURCE.rglob("*.py"))
WORDS = """
    adapt add admit adopt advise agree announce answer append apply arrange ask attach attempt
    attend begin block boot build cache call can capture cast check choose claim classify clean
    clear close collect combine compare compile complete compute configure confine convert copy
    correct count decide declare decode deliver denoise derive describe detach detect die digest
    divide download drop embed encode end escape estimate evict examine explain extract fail
    feather fetch fill find finish fit flatten fold follow forget format forward free fuse
    gather get go grow guard guess guide hand handle has hash hide identify ignore import
    inflate invert is iterate join judge keep kill learn leave limit list listen load log look
    make map match measure merge mix modulate multiply name normalise note obtain offer omit
    open pack pair parse patch pause pick ping place plan poll pool post predict prepare publish
    push put quantise quarantine query raise read recall receive recognise record redact reduce
    refuse release remove rename report request require reset resize resolve restore retry
    rotate round route run sample scale score select send serve settle show sign simplify skip
    sort speak split stack start step stop stream strip suggest sum sweep synchronize take tie
    tile tokenise translate transmit try turn undo unpack unquote unwrap upload use verify view
    wait warm warn watch widen write
"""
VERBS = frozenset(WORDS.split())
# A conversion may be named by what it gives, as in Python's own library.
CONVERSIONS = frozenset({"as", "from", "to"})
# Names that are another's: a command of our own command line, methods that libraries call.
GIVEN = frozenset({"doctor", "main", "addHandler", "setLevel", "connection_made"})


def functions(tree: ast.Module) -> Iterator[str]:
    """Yield the names of a file's functions and methods, but for properties and Python's own."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        decorators = {ast.unparse(one).rpartition(".")[2] for one in node.decorator_list}
        if not node.name.startswith("__") and decorators.isdisjoint(
            {"property", "cached_property", "setter"}
        ):
            yield node.name


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(SOURCE).as_posix())
def test_functions_are_verbs(file: Path) -> None:
    names = functions(ast.parse(file.read_text(encoding="utf-8")))
    first = {name: name.lstrip("_").partition("_")[0] for name in names if name not in GIVEN}
    assert {name for name, word in first.items() if word not in VERBS | CONVERSIONS} == set()


def test_every_verb_is_used() -> None:
    """A list that only grows would hold nothing."""
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in FILES]
    used = {name.lstrip("_").partition("_")[0] for tree in trees for name in functions(tree)}
    assert VERBS - used == set()
