"""What each test reaches and costs, recorded once for each state of the source and the tests."""

import hashlib
import json
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from tools.mutation.copy import Project
from tools.mutation.nursery import Answer
from tools.mutation.reach import lines_of

Line = tuple[str, int]
# A recording of this layout; raise it when the layout or the marks change.
LAYOUT: Final = 3


@dataclass(frozen=True, slots=True)
class Test:
    """One test: its pytest name, its seconds, what it gives unchanged, and the lines it reaches.

    `fixtures` are the shared fixtures that it uses, with their seconds.
    """

    name: str
    seconds: float
    result: str
    lines: frozenset[Line]
    fixtures: tuple[tuple[str, float], ...] = ()

    @property
    def file(self) -> str:
        """Return the file that it is in."""
        return self.name.partition("::")[0]

    @property
    def cost(self) -> float:
        """Return its seconds when it runs alone."""
        return self.seconds + sum(seconds for _, seconds in self.fixtures)


@dataclass(frozen=True, slots=True)
class Record:
    """The tests of one file, and the lines that ran while it was collected."""

    tests: tuple[Test, ...]
    loading: frozenset[Line]
    verdict: str = "passed"
    broke_off: str = ""

    @property
    def failing(self) -> list[str]:
        """Return the tests that fail unchanged, and the last one of a session that broke off."""
        names = [test.name for test in self.tests if test.result == "failed"]
        return names if names or self.verdict == "passed" else [self.broke_off]


def state_of(project: Project, file: str) -> str:
    """Return a digest of what a recording of a file depends on, but for the source."""
    digest = hashlib.sha256(f"{LAYOUT}".encode())
    options = tomllib.loads((project.root / "pyproject.toml").read_text())["tool"]["pytest"]
    digest.update(json.dumps(options).encode())
    tests = project.root / project.tests
    support = [p for p in sorted(tests.rglob("*.py")) if not p.name.startswith("test_")]
    support += sorted((project.root / "worlds").rglob("*.py"))
    for path in (*support, project.root / file):
        digest.update(path.relative_to(project.root).as_posix().encode() + b"\0")
        digest.update(path.read_bytes())
    return digest.hexdigest()


def sources_of(project: Project, record: Record) -> dict[str, str]:
    """Return the digests of the source files of which a recording ran a line, if only to load it.

    What happens with others is the same as long as nothing in these changes.
    """
    lines = record.loading.union(*(test.lines for test in record.tests))
    folder = project.root / project.source
    return {
        file: hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for file in sorted({file for file, _ in lines})
        if (path := folder / file)
    }


def gathered(file: str, answer: Answer, folder: Path) -> Record:
    """Return what a recording session told and wrote."""
    seconds = {m["fixture"]: m["seconds"] for m in answer.told if "fixture" in m}
    known: dict[str, frozenset[Line]] = {}

    def lines(context: str) -> frozenset[Line]:
        if context not in known:
            known[context] = frozenset(lines_of(folder, context))
        return known[context]

    tests = []
    for message in answer.told:
        if "test" in message:
            shared = message["shared"]
            reached = frozenset().union(lines(message["context"]), *map(lines, shared))
            fixtures = tuple((f"{file}:{name}", seconds.get(name, 0.0)) for name in shared)
            tests.append(
                Test(message["test"], message["seconds"], message["result"], reached, fixtures)
            )
    return Record(tuple(tests), lines("collecting"), answer.verdict, answer.test or file)


def written(project: Project, file: str, record: Record, path: Path) -> None:
    """Keep the recording of a file of tests that was made in `project`, which is as it was then."""
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {
        "state": state_of(project, file),
        "sources": sources_of(project, record),
        "tests": [{**asdict(test), "lines": _packed(test.lines)} for test in record.tests],
        "loading": _packed(record.loading),
    }
    path.write_text(json.dumps(facts))


def read(project: Project, file: str, path: Path) -> Record | None:
    """Return the recording of a file of tests that was kept, if it is still right."""
    try:
        facts = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    if facts["state"] != state_of(project, file):
        return None
    tests = tuple(
        Test(
            test["name"],
            test["seconds"],
            test["result"],
            _unpacked(test["lines"]),
            tuple((name, seconds) for name, seconds in test["fixtures"]),
        )
        for test in facts["tests"]
    )
    record = Record(tests, _unpacked(facts["loading"]))
    return record if facts["sources"] == sources_of(project, record) else None


def _packed(lines: frozenset[Line]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for file, number in sorted(lines):
        found.setdefault(file, []).append(number)
    return found


def _unpacked(files: dict[str, list[int]]) -> frozenset[Line]:
    return frozenset((file, number) for file, numbers in files.items() for number in numbers)
