"""What each test reaches and costs, recorded once per state of the source and the tests."""

import hashlib
import json
import re
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from tools.mutation.copy import Project
from tools.mutation.fork_server import Answer
from tools.mutation.reach import lines_of

Line = tuple[str, int]
# A recording of this layout; raise it when the layout or the marks change.
LAYOUT: Final = 4
WORDS: Final = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Test:
    """One test: its pytest name, seconds, result on unchanged source, and the lines it reaches.

    `fixtures` are the shared fixtures it uses, with their seconds.
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
        """Return the tests that fail on unchanged source, or the last of a broken session."""
        names = [test.name for test in self.tests if test.result == "failed"]
        return names if names or self.verdict == "passed" else [self.broke_off]


def digest_state(project: Project, file: str) -> str:
    """Return a digest of what a recording of a file depends on, the source excepted."""
    digest = hashlib.sha256(f"{LAYOUT}".encode())
    options = tomllib.loads((project.root / "pyproject.toml").read_text())["tool"]["pytest"]
    digest.update(json.dumps(options).encode())
    support = find_support(project.root / project.tests, project.root / file)
    worlds = (project.root / "worlds").rglob("*.py")
    for path in (*sorted(support), *sorted(worlds), project.root / file):
        digest.update(path.relative_to(project.root).as_posix().encode() + b"\0")
        digest.update(path.read_bytes())
    return digest.hexdigest()


def find_support(tests: Path, file: Path) -> set[Path]:
    """Return what a test file uses of the files beside the tests.

    That is each conftest.py above it, and every file whose name and folders are words in it or in
    another that it uses: imported, or started as a process.
    """
    others = {path for path in tests.rglob("*.py") if not path.name.startswith("test_")}
    parts = {path: {*path.relative_to(tests).with_suffix("").parts} for path in others}
    fixtures = {path for path in others if path.name == "conftest.py"}
    found = {path for path in fixtures if path.parent in file.parents}
    waiting = [file, *found]
    while waiting:
        words = set(WORDS.findall(waiting.pop().read_text()))
        more = {path for path in others - fixtures - found if parts[path] <= words}
        found |= more
        waiting += more
    return found


def digest_sources(project: Project, record: Record) -> dict[str, str]:
    """Return the digests of the source files of which a recording ran any line.

    As long as none of these changes, a change to other files changes nothing.
    """
    lines = record.loading.union(*(test.lines for test in record.tests))
    folder = project.root / project.source
    return {
        file: hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for file in sorted({file for file, _ in lines})
        if (path := folder / file)
    }


def build_record(file: str, answer: Answer, folder: Path) -> Record:
    """Return the record of what a recording session sent and wrote."""
    seconds = {m["fixture"]: m["seconds"] for m in answer.results if "fixture" in m}
    known: dict[str, frozenset[Line]] = {}

    def lines(context: str) -> frozenset[Line]:
        if context not in known:
            known[context] = frozenset(lines_of(folder, context))
        return known[context]

    tests = []
    for message in answer.results:
        if "test" in message:
            shared = message["shared"]
            reached = frozenset().union(lines(message["context"]), *map(lines, shared))
            fixtures = tuple((f"{file}:{name}", seconds.get(name, 0.0)) for name in shared)
            tests.append(
                Test(message["test"], message["seconds"], message["result"], reached, fixtures)
            )
    return Record(tuple(tests), lines("collecting"), answer.verdict, answer.test or file)


def write(project: Project, file: str, record: Record, path: Path) -> None:
    """Write the recording of a test file made in `project`, which has not changed since."""
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {
        "state": digest_state(project, file),
        "sources": digest_sources(project, record),
        "tests": [{**asdict(test), "lines": _pack(test.lines)} for test in record.tests],
        "loading": _pack(record.loading),
    }
    path.write_text(json.dumps(facts))


def read(project: Project, file: str, path: Path) -> Record | None:
    """Return the recording of a test file, if one was written and is still valid."""
    try:
        facts = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    if facts["state"] != digest_state(project, file):
        return None
    tests = tuple(
        Test(
            test["name"],
            test["seconds"],
            test["result"],
            _unpack(test["lines"]),
            tuple((name, seconds) for name, seconds in test["fixtures"]),
        )
        for test in facts["tests"]
    )
    record = Record(tests, _unpack(facts["loading"]))
    return record if facts["sources"] == digest_sources(project, record) else None


def _pack(lines: frozenset[Line]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for file, number in sorted(lines):
        found.setdefault(file, []).append(number)
    return found


def _unpack(files: dict[str, list[int]]) -> frozenset[Line]:
    return frozenset((file, number) for file, numbers in files.items() for number in numbers)
