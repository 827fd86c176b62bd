"""A source file -> every single change to it that a test should notice."""

import ast
import re
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Final, Literal

from tools.mutation import unseen

Kind = Literal["operator", "constant", "branch", "statement", "argument"]
KINDS: Final[tuple[Kind, ...]] = ("operator", "constant", "branch", "statement", "argument")

# A boundary is moved, a condition is inverted, a calculation is replaced.
COMPARISONS: Final[dict[type[ast.cmpop], tuple[str, str]]] = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: (r"is\s+not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: (r"not\s+in", "in"),
}
ARITHMETIC: Final[dict[type[ast.operator], tuple[str, str]]] = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "/"),
    ast.Mod: ("%", "*"),
    ast.Pow: ("**", "*"),
    ast.LShift: ("<<", ">>"),
    ast.RShift: (">>", "<<"),
    ast.BitAnd: ("&", "|"),
}


@dataclass(frozen=True, slots=True)
class Mutation:
    """One change: bytes `start` up to `end` of the source become `text`.

    `first` and `last` are the lines (from 1) that a test must run to see it, `within` is the dotted
    name of the function or class around it, or "" at the top of the file.
    """

    kind: Kind
    start: int
    end: int
    text: str
    first: int
    last: int
    within: str

    def applied(self, source: str) -> str:
        """Return the changed source."""
        data = source.encode()
        return (data[: self.start] + self.text.encode() + data[self.end :]).decode()

    def shown(self, source: str) -> tuple[str, str]:
        """Return the touched lines before and after the change, with blanks collapsed.

        Together with the file and `within` they identify a change wherever its lines move.
        """
        data = source.encode()
        begin = data.rfind(b"\n", 0, self.start) + 1
        stop = data.find(b"\n", self.end)
        stop = len(data) if stop < 0 else stop
        before = data[begin:stop].decode()
        after = data[begin : self.start] + self.text.encode() + data[self.end : stop]
        return " ".join(before.split()), " ".join(after.decode().split())

    def line(self, source: str) -> int:
        """Return the number of the line where the change is."""
        return source.encode().count(b"\n", 0, self.start) + 1


def find_mutations(source: str, errors: AbstractSet[str] = frozenset()) -> list[Mutation]:
    """Return the changes to a file in source order; for `errors` see `unseen.find_errors`."""
    finder = _Finder(source, errors)
    finder.visit(ast.parse(source))
    return sorted(finder.found, key=lambda m: (m.start, m.end, m.text))


def is_valid(source: str, mutation: Mutation) -> bool:
    """Return whether the changed file is valid Python and a different program."""
    try:
        changed = ast.parse(mutation.applied(source))
    except SyntaxError:
        return False
    return ast.dump(changed) != ast.dump(ast.parse(source))


class _Finder(ast.NodeVisitor):
    """Collect mutations, leaving out what `unseen` names."""

    def __init__(self, source: str, errors: AbstractSet[str]) -> None:
        self.found: list[Mutation] = []
        self._errors = errors
        self._data = source.encode()
        starts = [0]
        for line in self._data.splitlines(keepends=True):
            starts.append(starts[-1] + len(line))
        self._starts = starts
        self._statement: tuple[int, int] = (1, 1)
        self._names: list[str] = []
        self._assigned: list[set[str]] = [set()]

    # places

    def _start(self, node: ast.expr | ast.stmt | ast.keyword | ast.ExceptHandler) -> int:
        return self._starts[node.lineno - 1] + node.col_offset

    def _end(self, node: ast.expr | ast.stmt | ast.keyword) -> int:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return self._starts[node.end_lineno - 1] + node.end_col_offset

    def _text(self, node: ast.expr | ast.stmt | ast.keyword) -> str:
        return self._data[self._start(node) : self._end(node)].decode()

    def _add(
        self, kind: Kind, start: int, end: int, text: str, lines: tuple[int, int] | None = None
    ) -> None:
        first, last = lines or self._statement
        self.found.append(Mutation(kind, start, end, text, first, last, ".".join(self._names)))

    def _replace(self, kind: Kind, node: ast.expr | ast.stmt, text: str) -> None:
        self._add(kind, self._start(node), self._end(node), text)

    def _between(self, left: ast.expr, right: ast.expr, token: str, text: str) -> None:
        """Change the operator between two operands, past brackets and comments."""
        start, end = self._end(left), self._start(right)
        gap = self._data[start:end].decode(errors="replace")
        for match in re.finditer(rf"#[^\n]*|{token}", gap):
            if not match[0].startswith("#"):
                at = start + len(gap[: match.start()].encode())
                self._add("operator", at, at + len(match[0].encode()), text)
                return

    # statements

    def visit(self, node: ast.AST) -> None:
        """Visit what a test could notice; a statement's lines are recorded first."""
        if unseen.is_unseen(node):
            return
        if isinstance(node, ast.stmt):
            before = self._statement
            self._statement = _lines(node)
            super().visit(node)
            self._statement = before
        else:
            super().visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        """Visit the defaults and the body."""
        self._function(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        """Visit the defaults and the body."""
        self._function(node)

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._names.append(node.name)
        self._assigned.append({a.arg for a in ast.walk(node.args) if isinstance(a, ast.arg)})
        for default in (*node.args.defaults, *node.args.kw_defaults):
            if default is not None:
                self._statement = (node.body[0].lineno, node.body[-1].end_lineno or node.lineno)
                self.visit(default)
        for statement in node.body:
            self.visit(statement)
        self._assigned.pop()
        self._names.pop()

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        """Visit only the body: bases and decorators are declarations."""
        self._names.append(node.name)
        for statement in node.body:
            self.visit(statement)
        self._names.pop()

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        """Skip the annotation."""
        if node.value is not None:
            self._drop_assignment(node, [node.target])
            self.visit(node.value)

    def visit_Assign(self, node: ast.Assign) -> None:
        """Drop an assignment that changes something."""
        self._drop_assignment(node, node.targets)
        self.generic_visit(node)

    def _drop_assignment(
        self, node: ast.Assign | ast.AnnAssign, targets: Sequence[ast.expr]
    ) -> None:
        """Drop any but the first assignment of a name, which Python itself would miss."""
        names = {t.id for t in targets if isinstance(t, ast.Name)}
        first = bool(names - self._assigned[-1]) or any(isinstance(t, ast.Tuple) for t in targets)
        self._assigned[-1] |= names
        if not first and len(self._assigned) > 1:
            self._replace("statement", node, "pass")

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        """Drop it, or use another operator."""
        self._replace("statement", node, "pass")
        if (change := ARITHMETIC.get(type(node.op))) and not _is_sequence(node.value):
            self._between(node.target, node.value, re.escape(f"{change[0]}="), f"{change[1]}=")
        self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> None:
        """Drop a call."""
        value = node.value.value if isinstance(node.value, ast.Await) else node.value
        if isinstance(value, ast.Call):
            self._replace("statement", node, "pass")
        self.generic_visit(node)

    def visit_Delete(self, node: ast.Delete) -> None:
        """Drop the deletion of an item or attribute."""
        if not all(isinstance(target, ast.Name) for target in node.targets):
            self._replace("statement", node, "pass")
        self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> None:
        """Continue instead of raising."""
        self._replace("statement", node, "pass")
        if node.exc is not None:
            self.visit(node.exc)

    def visit_Return(self, node: ast.Return) -> None:
        """Return None, or continue where nothing is returned."""
        if node.value is None:
            self._replace("statement", node, "pass")
        elif not isinstance(node.value, ast.Constant) or not isinstance(
            node.value.value, bool | None
        ):
            self._replace("statement", node.value, "None")
        self.generic_visit(node)

    # branches

    def _decide(self, test: ast.expr, *answers: bool) -> None:
        if isinstance(test, ast.Constant):
            return
        binds = any(isinstance(node, ast.NamedExpr) for node in ast.walk(test))
        for answer in answers:
            text = f"(({self._text(test)}), {answer})[1]" if binds else str(answer)
            self._replace("branch", test, text)

    def visit_If(self, node: ast.If) -> None:
        """Decide without the condition, or do nothing in the else branch."""
        self._decide(node.test, True, False)
        if node.orelse and self._data[self._start(node.orelse[0]) :][:4] != b"elif":
            self._body(node.orelse, "pass")
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        """Decide without the condition."""
        self._decide(node.test, True, False)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        """Drop the condition."""
        for condition in node.ifs:
            self._decide(condition, True)
        self.generic_visit(node)

    def visit_While(self, node: ast.While) -> None:
        """Never begin, or stop after one iteration."""
        self._decide(node.test, False)
        self._once(node.body)
        self.generic_visit(node)

    def visit_For(self, node: ast.For) -> None:
        """Stop after one iteration."""
        self._once(node.body)
        self.generic_visit(node)

    def visit_AsyncFor(self, node: ast.AsyncFor) -> None:
        """Stop after one iteration."""
        self._once(node.body)
        self.generic_visit(node)

    def _once(self, body: Sequence[ast.stmt]) -> None:
        last = body[-1]
        if not isinstance(last, ast.Return | ast.Raise | ast.Break | ast.Continue):
            end = self._end(last)
            indent = " " * body[0].col_offset
            lines = (body[0].lineno, last.end_lineno or last.lineno)
            self._add("branch", end, end, f"\n{indent}break", lines)

    def visit_Break(self, node: ast.Break) -> None:
        """Continue the loop."""
        self._replace("branch", node, "continue")

    def visit_Continue(self, node: ast.Continue) -> None:
        """Leave the loop."""
        self._replace("branch", node, "break")

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        """Raise the error instead of handling it."""
        if not isinstance(node.body[0], ast.Raise):
            self._body(node.body, "raise")
        for statement in node.body:
            self.visit(statement)

    def _body(self, body: Sequence[ast.stmt], text: str) -> None:
        lines = (body[0].lineno, body[-1].end_lineno or body[-1].lineno)
        self._add("branch", self._start(body[0]), self._end(body[-1]), text, lines)

    # expressions

    def visit_Constant(self, node: ast.Constant) -> None:
        """Use another number, the other truth value, another string."""
        value = node.value
        if isinstance(value, bool):
            self._replace("constant", node, str(not value))
        elif isinstance(value, int | float):
            for other in (value + 1, value - 1):
                self._replace("constant", node, repr(other) if other >= 0 else f"({other!r})")
        elif isinstance(value, str | bytes):
            mark = "_" if isinstance(value, str) else b"_"
            self._replace("constant", node, repr(mark + value))  # type: ignore[operator]

    def visit_Compare(self, node: ast.Compare) -> None:
        """Move each boundary, invert each comparison."""
        left = node.left
        for operator, right in zip(node.ops, node.comparators, strict=True):
            token, text = COMPARISONS[type(operator)]
            self._between(left, right, token, text)
            left = right
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        """Swap `and` and `or`."""
        token, text = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in zip(node.values, node.values[1:], strict=False):
            self._between(left, right, token, text)
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        """Use another operator; strings and lists have no other."""
        change = ARITHMETIC.get(type(node.op))
        if change and not _is_sequence(node.left) and not _is_sequence(node.right):
            self._between(node.left, node.right, re.escape(change[0]), change[1])
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        """Drop `not` or the sign."""
        if isinstance(node.op, ast.Not | ast.USub):
            self._replace("operator", node, f"({self._text(node.operand)})")
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        """Drop one named argument; suppress nothing."""
        if unseen.name_of(node.func) == "suppress":
            self._replace("branch", node, "suppress()")
            return
        for keyword in unseen.seen_keywords(node):
            if keyword.arg is not None:
                self._drop_keyword(node, keyword)
        self.visit(node.func)
        for argument in unseen.seen_arguments(node, self._errors):
            self.visit(argument)

    def _drop_keyword(self, call: ast.Call, keyword: ast.keyword) -> None:
        """Drop an argument with the comma after it, or before it if it is the last."""
        given: list[ast.expr | ast.keyword] = [*call.args, *call.keywords]
        every = sorted(given, key=lambda node: (node.lineno, node.col_offset))
        at = every.index(keyword)
        if at + 1 < len(every):
            self._add("argument", self._start(keyword), self._start(every[at + 1]), "")
        else:
            start = self._end(every[at - 1]) if at else self._start(keyword)
            self._add("argument", start, self._end(call) - 1, "")

    def visit_Subscript(self, node: ast.Subscript) -> None:
        """Skip the arguments of a type."""
        self.visit(node.value)
        if not unseen.is_type(node.value):
            self.visit(node.slice)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """Visit what is in braces, if Python (wrong before 3.12) reports its place correctly."""
        for part in node.values:
            if isinstance(part, ast.FormattedValue) and self._is_placed(part.value):
                self.visit(part.value)

    def _is_placed(self, node: ast.expr) -> bool:
        for inner in ast.walk(node):
            if not isinstance(inner, ast.expr):
                continue
            try:
                there = ast.parse(f"({self._text(inner)})", mode="eval").body
            except (SyntaxError, ValueError, IndexError):
                return False
            if ast.dump(there) != ast.dump(inner):
                return False
        return True


def _is_sequence(node: ast.expr) -> bool:
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str | bytes)
    return isinstance(node, ast.JoinedStr | ast.List | ast.Tuple | ast.ListComp)


def _lines(node: ast.stmt) -> tuple[int, int]:
    """Return the lines of a statement; if it has a body, those before the body."""
    end = node.end_lineno or node.lineno
    body = getattr(node, "body", None)
    if isinstance(body, list) and body:
        end = max(node.lineno, body[0].lineno - 1)
    return node.lineno, end
