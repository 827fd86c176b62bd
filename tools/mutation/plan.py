"""Which tests can notice a change, the likeliest first, in portions."""

import ast
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

from tools.mutation.choose import Mutant
from tools.mutation.record import Line, Record, Test

# The first portion takes about as long as starting it; only survivors meet the expensive tests.
PORTIONS_S: Final = (3.0, 12.0, 40.0)
# Campaigns are left out, and so is any test that would make one mutant cost minutes.
LONGEST_S: Final = 60.0
MOST_S: Final = 90.0
# What any test costs, however quick it is.
LEAST_S: Final = 0.02
# A test of test_NAME.py is as likely to notice a change of NAME.py at so many times the cost.
NAMESAKE: Final = 4.0
# Where the docs are compared with what the source declares, all of it as one.
COMPARING: Final = "test_readme.py"


@dataclass(frozen=True)
class Atlas:
    """The source with its names, and the tests by the lines they reach and the names they use."""

    folder: Path
    records: Sequence[Record]
    tests: Path | None = None

    @cached_property
    def _tests(self) -> list[tuple[Record, list[Test]]]:
        """The tests that can notice a change."""
        return [
            (record, [t for t in record.tests if t.result == "passed" and t.cost <= LONGEST_S])
            for record in self.records
        ]

    @cached_property
    def _trees(self) -> dict[str, ast.Module]:
        return {
            path.relative_to(self.folder).as_posix(): ast.parse(path.read_text())
            for path in sorted(self.folder.rglob("*.py"))
        }

    @cached_property
    def _by_line(self) -> dict[Line, list[Test]]:
        found: dict[Line, list[Test]] = {}
        for _, tests in self._tests:
            for test in tests:
                for line in test.lines:
                    found.setdefault(line, []).append(test)
        return found

    @cached_property
    def _loading(self) -> dict[Line, list[Test]]:
        """The tests by the lines that ran while their file was collected."""
        found: dict[Line, list[Test]] = {}
        for record, tests in self._tests:
            for line in record.loading:
                found.setdefault(line, []).extend(tests)
        return found

    def find_tests(self, mutant: Mutant) -> list[Test]:
        """Return the tests that may notice a mutant, the likeliest per second first.

        A line in a function is noticed by the tests that run it; a constant, or the default of a
        class, by the tests that run a line that names it or name it themselves, or the argument
        that it is passed as, by those of test_NAME.py, which reach what is read from a class as
        one, such as a model's fields, and by those that compare the docs with all that is declared.
        """
        file, mutation = mutant.file, mutant.mutation
        own = {(file, n) for n in range(mutation.first, mutation.last + 1)}
        inside = self._is_in_function(file, mutation.first)
        lines = own if inside else set(self._uses(file, mutation.first))
        found = {test.name: test for line in lines for test in self._by_line.get(line, ())}
        if not inside:
            if not all(line in self._by_line for line in lines):  # see find_nearby
                found |= {test.name: test for test in self.find_nearby(mutant)}
            names = self._defined(file, mutation.first)
            found |= {test.name: test for test in self._find_naming(names | self._passed(names))}
            found |= {test.name: test for test in self._find_namesakes(file)}
            found |= {
                test.name: test
                for line in own
                for test in self._loading.get(line, ())
                if Path(test.file).name == COMPARING
            }
        if not found and not inside:
            found = {test.name: test for line in own for test in self._by_line.get(line, ())}
        # what ran while a file was loaded may have made what any of its tests uses
        if inside or not found:
            found |= {test.name: test for line in own for test in self._loading.get(line, ())}
        return sorted(found.values(), key=lambda test: (self._worth(test, file), test.name))

    def find_nearby(self, mutant: Mutant) -> list[Test]:
        """Return the tests that run anything of a mutant's file, the likeliest per second first.

        They are for a line that none is known to run: a process that has shut itself in, such as
        the decoder of hostile pictures, can write down no further line.
        """
        found = {t.name: t for (file, _), tests in self._by_line.items() if file == mutant.file
                 for t in tests}  # fmt: skip
        return sorted(found.values(), key=lambda test: (self._worth(test, mutant.file), test.name))

    @cached_property
    def _vocabulary(self) -> dict[str, tuple[set[str], set[str]]]:
        """What each file of the tests and worlds names, and which modules it imports."""
        found: dict[str, tuple[set[str], set[str]]] = {}
        tests = self.tests or Path()
        roots = (tests, tests), (tests.parent / "worlds", tests.parent)
        for folder, root in roots if self.tests else ():
            for path in sorted(folder.rglob("*.py")):
                nodes = list(ast.walk(ast.parse(path.read_text())))
                names = {name for node in nodes for name in _named(node)}
                imports = {module for node in nodes for module in _imported(node)}
                found[".".join(path.relative_to(root).with_suffix("").parts)] = names, imports
        return found

    def _find_naming(self, names: set[str]) -> Iterator[Test]:
        """Yield the tests of the files that use one of the names, directly or by an import."""
        using = {module for module, (words, _) in self._vocabulary.items() if words & names}
        while more := {
            module
            for module, (_, imports) in self._vocabulary.items()
            if module not in using and imports & using
        }:
            using |= more
        for _, tests in self._tests:
            yield from (test for test in tests if self._module(test.file) in using)

    def _module(self, file: str) -> str:
        """Return the dotted name of a test file below the folder of tests."""
        parts = Path(file).with_suffix("").parts
        return (
            ".".join(parts[1:]) if self.tests and parts[0] == self.tests.name else ".".join(parts)
        )

    def _find_namesakes(self, file: str) -> Iterator[Test]:
        """Yield the tests of test_NAME.py that run a line of NAME.py."""
        for _, tests in self._tests:
            for test in tests:
                if _is_namesake(test, file) and any(name == file for name, _ in test.lines):
                    yield test

    def _worth(self, test: Test, file: str) -> float:
        """Return a test's seconds per share of its lines that are in a file; less is better."""
        own = sum(1 for name, _ in test.lines if name == file)
        cost = (test.cost + LEAST_S) / (NAMESAKE if _is_namesake(test, file) else 1.0)
        return cost * len(test.lines) / max(own, 0.1)

    def _is_in_function(self, file: str, line: int) -> bool:
        return any(
            _body(node)[0] <= line <= _body(node)[1] for node in _functions(self._trees[file])
        )

    def _uses(self, file: str, line: int) -> Iterator[Line]:
        """Yield the lines in functions that name what a line outside them defines."""
        seen: set[str] = set()
        names = self._defined(file, line)
        while names - seen:
            name = (names - seen).pop()
            seen.add(name)
            for other, tree in self._trees.items():
                for node in ast.walk(tree):
                    if name not in _named(node):
                        continue
                    at = getattr(node, "lineno", 0)
                    if self._is_in_function(other, at):
                        yield other, at
                    else:
                        names |= self._defined(other, at)

    def _defined(self, file: str, line: int) -> set[str]:
        """Return the names that the statement at a line outside of functions defines."""
        names: set[str] = set()
        for node in ast.walk(self._trees[file]):
            if not isinstance(node, ast.stmt) or not _covers(node, line):
                continue
            if isinstance(node, ast.Assign):
                names |= {t.id for t in node.targets if isinstance(t, ast.Name)}
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                names.add(node.target.id)
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                names.add(node.name)  # the line is of its defaults or decorators
        return names

    def _passed(self, names: set[str]) -> set[str]:
        """Return the keywords as whose arguments any of the names is passed."""
        return {
            node.arg
            for tree in self._trees.values()
            for node in ast.walk(tree)
            if isinstance(node, ast.keyword) and node.arg and names & set(_named(node.value))
        }


def split_into_portions(tests: Sequence[Test]) -> Iterator[list[Test]]:
    """Split tests into portions of increasing duration, up to MOST_S in all.

    A fixture that tests of a portion share counts once, so the tests of a file stay together.
    """
    left, spent, at = list(tests), 0.0, 0
    while left and spent < MOST_S:
        room = PORTIONS_S[min(at, len(PORTIONS_S) - 1)]
        taken: list[Test] = []
        paid: set[str] = set()
        for test in left:
            cost = test.seconds + sum(s for name, s in test.fixtures if name not in paid)
            if taken and cost > room:
                break
            room -= cost
            spent += cost
            paid |= {name for name, _ in test.fixtures}
            taken.append(test)
        left = left[len(taken) :]
        at += 1
        files = list(dict.fromkeys(test.file for test in taken))
        yield sorted(taken, key=lambda test: files.index(test.file))


def _is_namesake(test: Test, file: str) -> bool:
    return Path(test.file).name == f"test_{Path(file).name}"


def _functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def _body(node: ast.FunctionDef | ast.AsyncFunctionDef) -> tuple[int, int]:
    return node.body[0].lineno, node.end_lineno or node.lineno


def _covers(node: ast.stmt, line: int) -> bool:
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    first = min(node.lineno, *(d.lineno for d in decorators), node.lineno)
    return first <= line <= (node.end_lineno or node.lineno)


def _named(node: ast.AST) -> Iterable[str]:
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name) | ast.keyword(arg=str(name)):
            return (name,)
        case _:
            return ()


def _imported(node: ast.AST) -> Iterable[str]:
    match node:
        case ast.Import(names=names):
            return [alias.name for alias in names]
        case ast.ImportFrom(module=str(module), names=names):
            return [module, *(f"{module}.{alias.name}" for alias in names)]
        case _:
            return ()
