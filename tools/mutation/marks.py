"""A source file -> the same file, line for line, which reports each statement that it reaches.

Marks cost almost nothing, whereas a trace would slow every call of a library, and they work in
threads, in forks and in any process that a test starts.
"""

import ast
from collections.abc import Iterator
from typing import Final

# What Recorder.start adds to the built-in names; mypy and ruff never see it.
MARK: Final = "__reach__"
COMPOUND: Final = (
    *(ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Try, ast.TryStar),
    *(ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Match),
)
# They must come first in their file or block, or bind nothing that runs.
UNMARKED: Final = (ast.Import, ast.ImportFrom)


def insert_marks(source: str, file: str) -> str:
    """Return the source with a mark at each statement; line numbers stay the same."""
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
    """Yield the offset (in bytes) and the text of every mark."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.stmt) or isinstance(node, UNMARKED) or _is_docstring(node):
            continue
        call = f'{MARK}("{file}:{node.lineno}")'
        if not isinstance(node, COMPOUND):
            yield starts[node.lineno - 1] + node.col_offset, f"{call}; "
        elif (first := _first_expression(node)) is not None:
            assert first.end_lineno is not None
            assert first.end_col_offset is not None
            yield starts[first.lineno - 1] + first.col_offset, f"{call} or ("
            yield starts[first.end_lineno - 1] + first.end_col_offset, ")"


def _is_docstring(node: ast.stmt) -> bool:
    """Return whether a statement is a docstring, which must come first."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _first_expression(node: ast.stmt) -> ast.expr | None:
    """Return what a compound statement evaluates first; None if it evaluates nothing."""
    match node:
        case ast.If(test=first) | ast.While(test=first):
            return first
        case ast.For(iter=first) | ast.AsyncFor(iter=first) | ast.Match(subject=first):
            return first
        case ast.With(items=[item, *_]) | ast.AsyncWith(items=[item, *_]):
            return item.context_expr
        case _:
            return None
