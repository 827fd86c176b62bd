"""What no caller can notice, so that no test needs to cover it: words, types, declarations."""

import ast
import re
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from typing import Final

# Two words with a blank between them: a message for people, not a word of a protocol.
PROSE: Final = re.compile(r"[A-Za-z]{2,}[,;:.]? +[A-Za-z]{2,}")
LOG_WORDS: Final = frozenset({"debug", "info", "warning", "error", "exception", "print", "bind"})
# These may also be deleted; on a warning or an error an operator relies.
DISPENSABLE: Final = frozenset({"debug", "info", "print"})
TYPES: Final = frozenset(
    {"Final", "Literal", "Callable", "Annotated", "Mapping", "Sequence", "Iterator", "Iterable"}
    | {"type", "tuple", "list", "dict", "set", "frozenset", "Future", "Queue", "Popen"}
)
DECLARING: Final = frozenset({"TypeVar", "ParamSpec", "NewType", "dataclass", "Protocol"})
# Named arguments that only describe, or only guard the programmer.
DESCRIBING: Final = frozenset(
    {"description", "help", "title", "examples", "metavar", "prog", "stacklevel"}
    | {"thread_name_prefix", "repr", "compare", "slots", "frozen"}
)
# Errors of the programmer, raised where no caller gets.
IMPOSSIBLE: Final = frozenset({"AssertionError", "NotImplementedError"})


def is_unseen(node: ast.AST) -> bool:  # noqa: PLR0911 - one line per kind of node
    """Return whether nothing about a node and its contents can be noticed."""
    match node:
        case ast.Expr(value=ast.Constant()) | ast.Import() | ast.ImportFrom() | ast.Assert():
            return True
        case ast.Expr(value=ast.Call() as call):
            return _is_logging(call) and name_of(call.func) in DISPENSABLE
        case ast.If(test=test):
            return _is_never_run(test)
        case ast.Assign(targets=[ast.Name(id=name)], value=value):
            return name in ("__all__", "__slots__") or _declares(name, value)
        case ast.Raise(exc=exc):
            return name_of(exc.func if isinstance(exc, ast.Call) else exc) in IMPOSSIBLE
        case ast.ClassDef(bases=bases):
            return any(name_of(base) == "Protocol" for base in bases)
        case ast.Constant(value=str(text)):
            return PROSE.search(text) is not None
        case ast.JoinedStr():
            parts = (p.value if isinstance(p, ast.Constant) else "0" for p in node.values)
            return PROSE.search("".join(map(str, parts))) is not None
        case ast.keyword(arg=name):
            return name in DESCRIBING
        case _:
            return False


def seen_arguments(call: ast.Call, errors: AbstractSet[str]) -> Iterator[ast.expr]:
    """Yield the arguments of a call that are more than words for people.

    `errors` are the project's own error classes: their text is read by people.
    """
    name = name_of(call.func)
    if _is_logging(call) or name in DECLARING:
        return
    positional = list(call.args)
    if name == "isinstance":
        positional = positional[:1]
    if name == "cast":
        positional = positional[1:]
    named = [keyword.value for keyword in seen_keywords(call)]
    is_error = _is_error(name, errors)
    for argument in (*positional, *named):
        is_text = isinstance(argument, ast.JoinedStr) or (
            isinstance(argument, ast.Constant) and isinstance(argument.value, str)
        )
        if not (is_error and is_text):
            yield argument


def seen_keywords(call: ast.Call) -> list[ast.keyword]:
    """Return the named arguments of a call that a test could notice.

    `strict` of zip reports a programmer's mistake, and changes nothing where there is none.
    """
    if _is_logging(call) or name_of(call.func) in DECLARING | {"zip"}:
        return []
    return [keyword for keyword in call.keywords if not is_unseen(keyword)]


def is_type(node: ast.expr) -> bool:
    """Return whether a subscript of this would be a type: `Final[...]`, `tuple[...]`."""
    return name_of(node) in TYPES


def name_of(node: ast.AST | None) -> str:
    """Return the last word of a dotted name, "" for anything else."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case _:
            return ""


def _is_logging(call: ast.Call) -> bool:
    """Return whether a call logs, such as `log.get().info(...)`, or prints."""
    if name_of(call.func) not in LOG_WORDS:
        return False
    if isinstance(call.func, ast.Name):
        return call.func.id == "print"
    assert isinstance(call.func, ast.Attribute)
    owner = call.func.value
    owner = owner.func if isinstance(owner, ast.Call) else owner
    words = {name_of(owner), name_of(owner.value) if isinstance(owner, ast.Attribute) else ""}
    return any(re.search(r"log", word, re.IGNORECASE) for word in words)


def find_errors(trees: Iterable[ast.Module]) -> frozenset[str]:
    """Return the classes of a project that are errors, however far down the tree.

    Ours are named for what happened (VolumeFull), so that the name alone does not show it.
    """
    bases = {
        node.name: {name_of(base) for base in node.bases}
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    found: set[str] = set()
    while more := {
        name
        for name, above in bases.items()
        if name not in found and any(_is_error(base, found) for base in above)
    }:
        found |= more
    return frozenset(found)


def _is_error(name: str, errors: AbstractSet[str]) -> bool:
    return name in errors or name.endswith(("Error", "Exception", "Warning"))


def _is_never_run(test: ast.expr) -> bool:
    if name_of(test) == "TYPE_CHECKING":
        return True
    return isinstance(test, ast.Compare) and name_of(test.left) == "__name__"


def _declares(name: str, value: ast.expr) -> bool:
    """Return whether `Name = ...` names a type."""
    if isinstance(value, ast.Call):
        return name_of(value.func) in DECLARING
    return name[:1].isupper() and not name.isupper() and not isinstance(value, ast.Constant)
