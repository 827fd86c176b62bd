"""A source file -> the same one that tells of each statement which it comes to, line for line.

Marks cost almost nothing, where a trace would make every call of a library slow, and they work in
threads, in forks and in whatever process a test starts.
"""

import ast
from collections.abc import Iterator
from typing import Final

# What Recorder.start puts among the built-in names; mypy and ruff never see it.
MARK: Final = "__reach__"
COMPOUND: Final = (
    *(ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Try, ast.TryStar),
    *(ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Match),
)
# They must stand first in their file or block, or bind nothing that runs.
UNMARKED: Final = (ast.Import, ast.ImportFrom)


def marked(source: str, file: str) -> str:
    """Return the source with a mark for each statement; lines keep their numbers."""
    data = source.encode()
    starts = [0]
    for line in data.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    pieces: list[bytes] = []
    done = 0
    for at, text in sorted(_insertions(ast.parse(source), file, starts)):
        pieces += [data[done:at], text.encode()]
        done = at
    return b"".join([*pieces, data[done:]]).decode()


def _insertions(tree: ast.Module, file: str, starts: list[int]) -> Iterator[tuple[int, str]]:
    """Yield the places (in bytes) and texts of all marks."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.stmt) or isinstance(node, UNMARKED) or _is_text(node):
            continue
        call = f'{MARK}("{file}:{node.lineno}")'
        if not isinstance(node, COMPOUND):
            yield starts[node.lineno - 1] + node.col_offset, f"{call}; "
        elif (asked := _asked(node)) is not None:
            assert asked.end_lineno is not None
            assert asked.end_col_offset is not None
            yield starts[asked.lineno - 1] + asked.col_offset, f"{call} or ("
            yield starts[asked.end_lineno - 1] + asked.end_col_offset, ")"


def _is_text(node: ast.stmt) -> bool:
    """Tell whether a statement is a docstring, which must stand first."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _asked(node: ast.stmt) -> ast.expr | None:
    """Return what a compound statement evaluates first, of those that evaluate something."""
    match node:
        case ast.If(test=first) | ast.While(test=first):
            return first
        case ast.For(iter=first) | ast.AsyncFor(iter=first) | ast.Match(subject=first):
            return first
        case ast.With(items=[item, *_]) | ast.AsyncWith(items=[item, *_]):
            return item.context_expr
        case _:
            return None
