"""The mutation tool: it changes what matters, kills what a test holds, reports what none holds."""

import ast
import builtins
import resource
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tools import mutants
from tools.mutation import equivalents, plan, reach, record, report, trial
from tools.mutation.choose import Mutant, find_rooms, pick_mutants
from tools.mutation.copy import Project
from tools.mutation.equivalents import Equivalent
from tools.mutation.marks import MARK, insert_marks
from tools.mutation.mutate import find_mutations, is_valid
from tools.mutation.plan import Atlas
from tools.mutation.record import Record
from tools.mutation.report import Room
from tools.mutation.trial import Outcome, Worker, start_workers
from tools.mutation.unseen import find_errors

ROOT = Path(__file__).parents[2]


def changes(source: str) -> set[str]:
    """Return the changed lines of every mutation of a source."""
    text = textwrap.dedent(source)
    errors = find_errors([ast.parse(text)])
    return {mutation.shown(text)[1] for mutation in find_mutations(text, errors)}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a < b", {"a <= b"}),
        ("a <= b", {"a < b"}),
        ("a > b", {"a >= b"}),
        ("a >= b", {"a > b"}),
        ("a == b", {"a != b"}),
        ("a != b", {"a == b"}),
        ("a in b", {"a not in b"}),
        ("a not in b", {"a in b"}),
        ("a is b", {"a is not b"}),
        ("a is not b", {"a is b"}),
        ("a < b <= c", {"a <= b <= c", "a < b < c"}),
        ("a and b and c", {"a or b and c", "a and b or c"}),
        ("a or b", {"a and b"}),
        ("not a", {"(a)"}),
        ("-a", {"(a)"}),
        ("a + b", {"a - b"}),
        ("a - b", {"a + b"}),
        ("a * b", {"a / b"}),
        ("a / b", {"a * b"}),
        ("a // b", {"a / b"}),
        ("a % b", {"a * b"}),
        ("a & b", {"a | b"}),
        ("a << b", {"a >> b"}),
        ("(a) + (b)", {"(a) - (b)"}),
        ("a if b else c", {"a if True else c", "a if False else c"}),
        ("[a for a in b if c]", {"[a for a in b if True]"}),
        ("'x' + a", {"'_x' + a"}),
        ("f'{a < b}x'", {"f'{a <= b}x'"}),
    ],
)
def test_expressions_are_changed_in_one_place(source: str, expected: set[str]) -> None:
    assert changes(f"x = {source}") == {f"x = {change}" for change in expected}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("x = 7", {"x = 8", "x = 6"}),
        ("x = 0", {"x = 1", "x = (-1)"}),
        ("x = 0.5", {"x = 1.5", "x = (-0.5)"}),
        ("x = True", {"x = False"}),
        ("x = 'ab'", {"x = '_ab'"}),
        ("x = b'ab'", {"x = b'_ab'"}),
        ("x = None", set()),
        ("x: Final[int] = 7", {"x: Final[int] = 8", "x: Final[int] = 6"}),
    ],
)
def test_constants_become_their_neighbours(source: str, expected: set[str]) -> None:
    assert changes(source) == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("call()", {"pass"}),
        ("await call()", {"pass"}),
        ("a.b = c", {"pass"}),
        ("a += c", {"pass", "a -= c"}),
        ("raise a", {"pass"}),
        ("return a", {"return None"}),
        ("return", {"pass"}),
        ("return None", set()),
        ("return True", {"return False"}),
        ("del a[b]", {"pass"}),
        ("call(a, b=c)", {"pass", "call(a)"}),
        ("call(b=c, d=e)", {"pass", "call(d=e)", "call(b=c)"}),
        ("call(a, **b)", {"pass"}),
    ],
)
def test_statements_and_arguments_are_dropped(body: str, expected: set[str]) -> None:
    assert changes(f"async def f(a):\n    {body}") == expected


def test_the_first_assignment_of_a_name_stays_as_python_would_miss_it() -> None:
    assert changes("def f(a):\n    b = a\n    b = a.c\n    a = b") == {"pass"}
    source = "def f(a):\n    b = a\n    b = a.c"
    assert [m.line(source) for m in find_mutations(source)] == [3]


def test_branches_are_decided_bodies_dropped_and_loops_ended() -> None:
    source = """
        def f(a):
            if a:
                b()
            elif c:
                d()
            else:
                e()
            while a:
                if b:
                    break
                g()
            for h in a:
                continue
            try:
                i()
            except OSError:
                j()
            with suppress(OSError):
                k()
            if l := a:
                m()
    """
    assert changes(source) == {
        *("if True:", "if False:", "elif True:", "elif False:", "while False:"),
        *("pass", "continue", "break", "raise", "with suppress():", "g() break"),
        *("if ((l := a), True)[1]:", "if ((l := a), False)[1]:"),
    }


@pytest.mark.parametrize(
    "source",
    [
        '"""A docstring with 3 words."""',
        "import a.b",
        "if TYPE_CHECKING:\n    import a\n    x = 3",
        'if __name__ == "__main__":\n    main(3)',
        '__all__ = ["a"]',
        'T = TypeVar("T", bound=3)',
        'Alias = dict[str, tuple[int, Literal["a"]]]',
        "def f(a: Literal['x']) -> Annotated[int, 3]:\n    '''Text.'''",
        "@dataclass(frozen=True)\nclass A(B, c=3):\n    '''Text.'''\n    a: int",
        "class A(Protocol):\n    x = 3\n    def f(self, a=3): ...",
        'log.get().info("shard prepared", shard=index + 1)',
        'logger.debug("x", exc_info=True)',
        'print(f"{a + 1} of them")',
        "assert a < 3",
        'raise AssertionError("never")',
        'x = "a message for people"',
        'x = f"{a + 1} bytes instead of {b}"',
    ],
)
def test_what_no_caller_can_notice_stays(source: str) -> None:
    assert changes(source) == set()


def test_words_of_errors_stay_and_their_facts_do_not() -> None:
    source = """
        class VolumeFull(Exception): ...
        class Deeper(VolumeFull): ...
        def f(a):
            raise Deeper("full", 3)
        def g(a):
            return VolumeFull("full", again=a)
    """
    assert changes(source) == {
        "pass",
        'raise Deeper("full", 4)',
        'raise Deeper("full", 2)',
        "return None",
        'return VolumeFull("full")',
    }


def test_a_warning_may_not_be_dropped_but_its_words_are_free() -> None:
    assert changes('def f():\n    log.get().warning("still", left=3)') == {"pass"}


@pytest.mark.parametrize("path", sorted((ROOT / "src").rglob("*.py")), ids=lambda p: p.name)
def test_every_change_of_the_source_is_python_and_every_mark_keeps_its_lines(path: Path) -> None:
    source = path.read_text()
    found = find_mutations(source)
    broken = []
    for mutation in found[:: max(1, len(found) // 20)]:
        try:
            ast.parse(mutation.applied(source))
        except SyntaxError:
            broken.append(mutation.shown(source))
    assert not broken
    told = insert_marks(source, path.name)
    assert len(told.splitlines()) == len(source.splitlines())
    compile(told, path, "exec")


def test_marks_record_each_statement_and_change_nothing() -> None:
    source = textwrap.dedent('''
        """A file."""
        def f(n):
            """Add up."""
            total = 0
            for i in range(n):
                if i % 2 or i == 0:
                    total += i
                else:
                    continue
            with open("/dev/null") as file:
                return total, file.read()
    ''')
    told: list[str] = []
    names: dict[str, object] = {MARK: told.append}
    exec(insert_marks(source, "a.py"), names)  # noqa: S102 - our own source
    f = names["f"]
    assert callable(f)
    told.clear()
    assert f(3) == (1, "")
    assert set(told) == {f"a.py:{n}" for n in (5, 6, 7, 8, 10, 11, 12)}
    told.clear()
    f(1)
    assert "a.py:10" not in told


def test_what_torch_compiles_as_one_graph_is_recorded_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builtins, MARK, None, raising=False)  # taken away again after the test
    recorder = reach.Recorder(tmp_path)
    recorder.start(MARK)
    recorder.switch("here")
    source = textwrap.dedent("""
        def f(x):
            if x.shape[0] > 1:
                return x + 1
            return x
    """)
    names: dict[str, Any] = {}
    exec(insert_marks(source, "a.py"), names)  # noqa: S102 - our own source
    run: Any = torch.compile(names["f"], backend="eager", fullgraph=True, dynamic=True)
    assert run(torch.ones(2)).tolist() == [2, 2]
    assert reach.lines_of(tmp_path, "here") == {("a.py", 3), ("a.py", 4)}


@pytest.mark.parametrize("most", [5, 16, 17, 20, 40], ids=lambda most: f"{most} bytes")
def test_a_bound_on_files_that_a_test_sets_loses_no_line_and_leaves_no_half_of_one(
    tmp_path: Path, most: int
) -> None:
    recorder = reach.Recorder(tmp_path)
    recorder.switch("before")
    places = [f"long/name.py:{number}" for number in (10, 11, 12)]
    recorder(places[0])
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, usual[1]))
    try:
        recorder(places[1])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    recorder(places[2])
    kept = {10, 12} if most < len(places[1]) + 2 else {10, 11, 12}
    assert reach.lines_of(tmp_path, "before") == {("long/name.py", number) for number in kept}
    recorder.switch("after")
    recorder(places[0])
    assert reach.lines_of(tmp_path, "after") == {("long/name.py", 10)}
    assert reach.lines_of(tmp_path, "nobody's") == set()


def test_a_process_that_takes_long_to_start_is_of_each_context_since_then(tmp_path: Path) -> None:
    """Such as a worker that a fixture starts, and that is there once the fixture has ended."""
    recorder = reach.Recorder(tmp_path)
    recorder.switch("earlier")
    recorder.switch("fixture")
    time.sleep(0.02)  # a process's start is known to a hundredth of a second
    code = f"""
        import sys
        sys.stdin.readline()
        from tools.mutation.reach import Recorder
        Recorder({str(tmp_path)!r}).start("mark")
        mark("a.py:7")
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True, cwd=ROOT) as process:
        recorder.switch("test")
        process.communicate("go\n")
    recorder.switch("later")
    contexts = "earlier", "fixture", "test", "later"
    found = {name for name in contexts if reach.lines_of(tmp_path, name) == {("a.py", 7)}}
    assert found == {"fixture", "test"}


FILES = {
    "pyproject.toml": '[tool.pytest.ini_options]\npythonpath = ["src", "tests"]\n',
    "src/sums/__init__.py": '"""Sums."""\n',
    "src/sums/ages.py": '''
        """Ages."""
        LEAST = 18
        def is_adult(age: int) -> bool:
            """Tell."""
            return age >= LEAST
        def unused(age: int) -> int:
            """Serve nobody."""
            return age + 1
    ''',
    "src/sums/shape.py": '''
        """What is read as a whole, by nobody's name."""
        class Shape:
            """A shape."""
            sides = 4
            _corners = 4
        def fields() -> dict[str, object]:
            """Return every field."""
            return {k: v for k, v in vars(Shape).items() if not k.startswith("_")}
        def doubled(sides: int) -> int:
            """Double."""
            return sides * 2
        OCTAGON = doubled(4)
        def octagon() -> int:
            """Return what was made when this was loaded."""
            return OCTAGON
    ''',
    "src/sums/shop/__init__.py": "",
    "src/sums/shop/names.py": '''
        """What tests alone name."""
        from types import SimpleNamespace
        OPEN = 9
        CLOSED = 17
        def make_day() -> SimpleNamespace:
            """Return the hours of a day."""
            return SimpleNamespace(closed=CLOSED)
    ''',
    "src/sums/shop/prices.py": '''
        """Prices."""
        def total(prices: list[int], limit: int) -> int:
            """Add up."""
            if sum(prices) > limit:
                return limit
            return sum(prices)
        def down(count: int) -> int:
            """Count down."""
            while count > 0:
                count -= 1
            return count
    ''',
    "src/sums/shop/away.py": '''
        """What only another process runs."""
        import resource
        FACTOR = 1
        def answer() -> int:
            """Answer."""
            return 42
        def shut_in() -> int:
            """Answer where no file can be opened."""
            resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
            return 7 * FACTOR
    ''',
    "worlds/hours.py": "from sums.shop.names import OPEN\n",
    "tests/test_hours.py": """
        from sums.shop.names import make_day
        from worlds import hours
        DAY = make_day()
        def test_open():
            assert hours.OPEN == 9
        def test_closed():
            assert DAY.closed == 17
    """,
    "tests/test_ages.py": """
        import pytest
        from sums.ages import is_adult
        @pytest.mark.parametrize(("age", "expected"), [(17, False), (18, True), (30, True)])
        def test_is_adult(age, expected):
            assert is_adult(age) is expected
        def test_that_fails_always():
            assert not is_adult(18)
        @pytest.mark.skip
        def test_that_is_skipped():
            assert is_adult(99)
    """,
    "tests/test_readme.py": """
        from sums import shape
        def test_readme():
            assert vars(shape.Shape)["_corners"] == 4
    """,
    "tests/test_shape.py": """
        from sums.shape import doubled, fields, octagon
        def test_fields():
            assert list(fields().values()) == [4]
        def test_doubled():
            assert doubled(0) == 0
        def test_octagon():
            assert octagon() == 8
    """,
    "tests/test_prices.py": """
        import subprocess, sys
        import pytest
        from sums.shop.names import make_day
        from sums.shop.prices import down, total
        @pytest.fixture(scope="module")
        def counted():
            return down(3)
        def test_total():
            assert total([1, 2], 10) == 3
        def test_down(counted):
            assert counted == 0
        def test_a_day():
            assert make_day()
        def test_another_process():
            code = "from sums.shop.away import answer, shut_in; print(answer(), shut_in())"
            command = [sys.executable, "-c", code]
            done = subprocess.run(command, capture_output=True, text=True, env={})
            assert done.stdout == "42 7\\n"
    """,
}


def made(folder: Path) -> Project:
    """Write the made-up project."""
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text).lstrip())
    return Project(folder, "src/sums")


EXPECTED = {
    ("return age >= LEAST", "return age > LEAST"): "killed",
    ("LEAST = 18", "LEAST = 19"): "killed",
    ("LEAST = 18", "LEAST = 17"): "killed",
    ("if sum(prices) > limit:", "if True:"): "killed",
    ("if sum(prices) > limit:", "if False:"): "survived",
    ("if sum(prices) > limit:", "if sum(prices) >= limit:"): "survived",
    ("return age + 1", "return age - 1"): "unreached",
    ("return limit", "return None"): "unreached",
    ("count -= 1", "count += 1"): "hangs",
    # named by what a test imports
    ("OPEN = 9", "OPEN = 10"): "killed",
    # named by the argument that it is passed as, and run while the file was loaded
    ("CLOSED = 17", "CLOSED = 18"): "killed",
    # noticed by a test that does not run it: it ran when the file was loaded
    ("return sides * 2", "return sides / 2"): "killed",
    # reached by no name, but by the tests of the file
    ("sides = 4", "sides = 5"): "killed",
    # and by those that compare it with the docs
    ("_corners = 4", "_corners = 5"): "killed",
    # run by another process alone
    ("return 42", "return 43"): "killed",
    # run by one that can write down no line any more
    ("return 7 * FACTOR", "return 8 * FACTOR"): "killed",
    ("FACTOR = 1", "FACTOR = 2"): "killed",
}


@dataclass
class Tried:
    """The made-up project, what its tests reach, and what became of some mutants."""

    project: Project
    records: dict[str, Record]
    outcomes: dict[tuple[str, str], str]


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> Tried:
    project = made(tmp_path_factory.mktemp("made"))
    folder = project.root / project.source
    with pytest.MonkeyPatch.context() as patch, start_workers(project, 1) as [worker]:
        patch.setattr(trial, "LEAST_LIMIT_S", 2.0)
        records = {file: worker.record(file) for file in project.test_files}
        atlas = Atlas(folder, list(records.values()), project.root / project.tests)
        outcomes = {}
        for name in find_rooms(folder):
            for mutant in pick_mutants(folder, name, 1, 1000):
                if (change := mutant.key[2:]) in EXPECTED:
                    tests, nearby = atlas.find_tests(mutant), atlas.find_nearby(mutant)
                    outcome = worker.try_mutant(mutant, tests, nearby)
                    outcomes[change] = outcome.result
        left = list((worker._copy.scratch / "tmp").glob("*"))
    assert not left
    return Tried(project, records, outcomes)


@pytest.mark.slow
@pytest.mark.parametrize("change", EXPECTED)
@pytest.mark.trial
def test_what_a_test_holds_is_killed_and_what_none_holds_survives(
    tried: Tried, change: tuple[str, str]
) -> None:
    assert tried.outcomes[change] == EXPECTED[change]


@pytest.mark.trial
def test_the_project_itself_is_never_touched(tried: Tried) -> None:
    for name, text in FILES.items():
        assert (tried.project.root / name).read_text() == textwrap.dedent(text).lstrip()


@pytest.mark.trial
def test_what_is_recorded_side_by_side_stays_valid(tmp_path: Path) -> None:
    """Though one copy has marks in it while the other's recording is written."""
    project = made(tmp_path)
    with start_workers(project, 2) as staff:
        mutants.load_records(project, project.test_files, staff)
    kept = {
        file: record.read(
            project, file, tmp_path / "out/mutants/reach" / f"{file.replace('/', '-')}.json"
        )
        for file in project.test_files
    }
    assert {file for file, found in kept.items() if found is None} == {"tests/test_ages.py"}


@pytest.mark.trial
def test_a_recording_has_results_and_lines(tried: Tried) -> None:
    tests = {t.name.split("::")[1]: t for r in tried.records.values() for t in r.tests}
    assert {name: test.result for name, test in tests.items()} == {
        "test_readme": "passed",
        "test_is_adult[17-False]": "passed",
        "test_is_adult[18-True]": "passed",
        "test_is_adult[30-True]": "passed",
        "test_that_fails_always": "failed",
        "test_that_is_skipped": "skipped",
        "test_total": "passed",
        "test_down": "passed",
        "test_a_day": "passed",
        "test_another_process": "passed",
        "test_open": "passed",
        "test_closed": "passed",
        "test_fields": "passed",
        "test_doubled": "passed",
        "test_octagon": "passed",
    }
    # a process is of every test that ended in the tick of the clock in which it was started, too
    total = {place for place in tests["test_total"].lines if place[0] != "shop/away.py"}
    assert total == {("shop/prices.py", 4), ("shop/prices.py", 6)}
    assert ("shop/prices.py", 10) in tests["test_down"].lines, "run by a shared fixture"
    away = {line for file, line in tests["test_another_process"].lines if file == "shop/away.py"}
    assert away == {3, 6, 9}, "line 10 where no file could be opened"
    failing = [name for r in tried.records.values() for name in r.failing]
    assert failing == ["tests/test_ages.py::test_that_fails_always"]


@pytest.mark.trial
def test_a_recording_is_kept_until_what_it_depends_on_changes(tried: Tried, tmp_path: Path) -> None:
    project = made(tmp_path / "project")
    file, path = "tests/test_prices.py", tmp_path / "kept.json"
    kept = tried.records[file]
    assert record.read(project, file, path) is None
    record.write(project, file, kept, path)
    read = record.read(project, file, path)
    assert read is not None
    assert (read.tests, read.loading) == (kept.tests, kept.loading)

    def is_right(changed: str, *, then: bool) -> None:
        record.write(project, file, kept, path)
        changed_file = project.root / changed
        before = changed_file.read_text() if changed_file.exists() else None
        changed_file.write_text(f"{before or ''}x = 1\n")
        assert (record.read(project, file, path) is not None) == then, changed
        changed_file.unlink() if before is None else changed_file.write_text(before)

    is_right("worlds/hours.py", then=False)
    is_right("tests/test_ages.py", then=True)
    is_right("src/sums/ages.py", then=True)
    is_right("src/sums/another.py", then=True)
    is_right("tests/test_prices.py", then=False)
    is_right("tests/world.py", then=True)
    is_right("tests/conftest.py", then=False)
    is_right("src/sums/shop/prices.py", then=False)
    is_right("src/sums/shop/away.py", then=False)
    (project.root / "src/sums/shop/away.py").unlink()
    assert record.read(project, file, path) is None


def test_a_recording_depends_on_what_its_tests_use_of_the_files_beside_them(tmp_path: Path) -> None:
    """What they import, what that starts, and the fixtures above; not what only has such a name."""
    files = {
        "conftest.py": "import shop.till",
        "shop/conftest.py": "",
        "shop/test_prices.py": "from shop import scales",
        "shop/scales.py": "",
        "shop/till.py": "run(['tests/shop/coins.py'])",
        "shop/coins.py": "",
        "shop/shelves.py": "",
        "garden/conftest.py": "",
        "garden/till.py": "",
        "garden/test_scales.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    found = record.find_support(tmp_path, tmp_path / "shop/test_prices.py")
    assert {path.relative_to(tmp_path).as_posix() for path in found} == {
        *("conftest.py", "shop/conftest.py"),
        *("shop/scales.py", "shop/till.py", "shop/coins.py"),
    }


@pytest.mark.trial
def test_the_same_seed_chooses_the_same_mutants_and_another_seed_others() -> None:
    folder = ROOT / "src/worker"

    def choose_some(seed: int, count: int) -> list[tuple[str, ...]]:
        return [mutant.key for mutant in pick_mutants(folder, "jobs", seed, count)]

    assert choose_some(1, 30) == choose_some(1, 30)
    assert choose_some(1, 30)[:10] == choose_some(1, 10)
    assert choose_some(1, 30) != choose_some(2, 30)
    assert len(set(choose_some(1, 30))) == 30
    listed = {mutant.key for mutant in pick_mutants(folder, "jobs", 1, 30)[::3]}
    longer = pick_mutants(folder, "jobs", 1, 30, lambda mutant: mutant.key in listed)
    assert [mutant.key for mutant in longer][:30] == choose_some(1, 30)
    assert len(longer) - sum(mutant.key in listed for mutant in longer) == 30
    kinds = {mutant.mutation.kind for mutant in pick_mutants(folder, "jobs", 1, 30)}
    assert kinds == {"operator", "constant", "branch", "statement", "argument"}


def test_rooms_are_folders_and_the_files_that_lie_in_none(tmp_path: Path) -> None:
    project = made(tmp_path)
    found = find_rooms(project.root / project.source)
    assert {name: [p.name for p in paths] for name, paths in found.items()} == {
        "top": ["__init__.py", "ages.py", "shape.py"],
        "shop": ["__init__.py", "away.py", "names.py", "prices.py"],
    }


def mutant_of(source: str, after: str) -> Mutant:
    """Return the mutant of a source whose changed line is that."""
    found = [Mutant("a.py", source, m) for m in find_mutations(source)]
    return next(m for m in found if m.key[3] == after)


def test_an_equivalent_is_named_by_its_line_wherever_it_moves() -> None:
    entry = Equivalent("a.py", "return  a < 3".replace("  ", " "), "a reason", "f")
    for above in ("", "x = 1\n\n"):
        source = f"{above}def f(a):\n    return a < 3\n"
        assert entry.covers(mutant_of(source, "return a <= 3"))
        assert entry.covers(mutant_of(source, "return a < 4"))
    assert not entry.covers(mutant_of("def g(a):\n    return a < 3\n", "return a <= 3"))
    whole = Equivalent("a.py", "*", "a reason", "f")
    assert whole.covers(mutant_of("def f(a):\n    return a < 3\n", "return a <= 3"))
    assert not whole.covers(mutant_of("def g(a):\n    return a < 3\n", "return a <= 3"))
    one = Equivalent("a.py", "return a < 3", "a reason", "f", "return a <= 3")
    assert one.covers(mutant_of("def f(a):\n    return a < 3\n", "return a <= 3"))
    assert not one.covers(mutant_of("def f(a):\n    return a < 3\n", "return a < 4"))


def test_an_entry_that_no_longer_matches_is_reported(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("def f(a):\n    return a < 3\n")
    right = Equivalent("a.py", "return a < 3", "a reason", "f")
    wrong = [
        Equivalent("a.py", "return a < 4", "the line has changed", "f"),
        Equivalent("a.py", "return a < 3", "the function is another", "g"),
        Equivalent("a.py", "return a < 3", "no such change", "f", "return a > 3"),
        Equivalent("gone.py", "return a < 3", "no such file", "f"),
    ]
    assert equivalents.find_stale([right, *wrong], tmp_path) == wrong


def test_the_list_has_a_reason_for_every_entry_and_no_entry_for_nothing() -> None:
    entries = equivalents.read_list()
    assert all(len(entry.reason.split()) >= 3 for entry in entries)
    assert equivalents.find_stale(entries, ROOT / "src/worker") == []


def test_an_entry_without_a_reason_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "equivalents.toml"
    path.write_text('[[equivalent]]\nfile = "a.py"\nline = "x"\n')
    with pytest.raises(TypeError, match="reason"):
        equivalents.read_list(path)


def test_portions_grow_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "PORTIONS_S", (2.0, 4.0))
    monkeypatch.setattr(plan, "MOST_S", 12.0)
    tests = [record.Test(f"t{n}", 1.0, "passed", frozenset()) for n in range(20)]
    assert [len(portion) for portion in plan.split_into_portions(tests)] == [2, 4, 4, 4]
    slow = record.Test("slow", 9.0, "passed", frozenset())
    assert [len(portion) for portion in plan.split_into_portions([slow, *tests[:3]])] == [1, 3]
    shared = [record.Test(f"t{n}", 0.1, "passed", frozenset(), (("f", 1.0),)) for n in range(5)]
    assert [len(portion) for portion in plan.split_into_portions(shared)] == [5]
    mixed = [record.Test(f"{file}::t", 0.1, "passed", frozenset()) for file in "abab"]
    assert [test.file for test in next(plan.split_into_portions(mixed))] == ["a", "a", "b", "b"]


def test_a_test_that_is_named_like_the_source_is_tried_before_one_that_costs_little_less(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.py").write_text(source := "def f(a):\n    return a < 3\n")
    lines = frozenset([("a.py", 2), ("b.py", 1)])
    near, quick, slow = (
        record.Test(f"{file}::t", seconds, "passed", lines)
        for file, seconds in (("test_a.py", 3.0), ("test_b.py", 0.65), ("test_c.py", 0.9))
    )
    atlas = Atlas(tmp_path, [Record((slow, quick, near), frozenset())])
    assert atlas.find_tests(mutant_of(source, "return a <= 3")) == [quick, near, slow]


def test_the_report_names_survivors_and_counts() -> None:
    source = "def f(a):\n    return a < 3\n"
    mutant = mutant_of(source, "return a <= 3")
    outcomes = [
        Outcome(mutant, "killed", "t", 1, 0.1),
        Outcome(mutant, "hangs", "t", 1, 0.1),
        Outcome(mutant, "survived", "", 7, 0.1),
        Outcome(mutant, "unreached"),
    ]
    found = [Room("jobs", outcomes, 2), Room("edge", outcomes[:2])]
    text = report.format_report(found, "src/worker", [Equivalent("a.py", "x", "a reason")])
    assert "src/worker/a.py:2 in f (operator; 7 tests pass)" in text
    assert "  - return a < 3\n  + return a <= 3" in text
    assert "no test reaches it" in text
    assert "no longer matches anything: a.py: x" in text
    lines = text.splitlines()[-3:]
    assert [line.split()[:2] for line in lines] == [
        ["jobs", "50.0%"],
        ["edge", "100.0%"],
        ["all", "66.7%"],
    ]
    assert "2 of 4 noticed (1 by time), 2 equivalent" in lines[0]


@pytest.mark.slow
def test_a_room_below_95_percent_ends_with_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole command on the made-up project: text, JSON, recordings that are kept."""
    monkeypatch.setattr(trial, "LEAST_LIMIT_S", 2.0)
    monkeypatch.setattr(equivalents, "read_list", list)
    project = made(tmp_path)
    folder = project.root / project.source
    survives = ("if sum(prices) > limit:", "if sum(prices) >= limit:")
    picked = [[m.key[2:] for m in pick_mutants(folder, "shop", seed, 3)] for seed in range(99)]
    # none with a change to the loop: one that never ends takes a minute, and is tried above
    seed = next(
        at
        for at, changed in enumerate(picked)
        if survives in changed and "count" not in str(changed)
    )
    arguments = ["--seed", str(seed), "--room", "shop", "--count", "3", "--workers", "2"]
    assert mutants.main(arguments, project) == 1
    said = capsys.readouterr().out
    assert "recorded tests/test_prices.py: 4 tests" in said
    assert "left out, as it fails without a change" in said
    assert "of 3 noticed" in said
    assert survives[1] in said
    assert (tmp_path / f"out/mutants/shop-{seed}.json").is_file()
    mutants.main([*arguments, "--list"], project)
    assert capsys.readouterr().out.count("  + ") == 3


def test_a_process_that_cannot_start_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "FORK_SERVER", "raise SystemExit('no such thing')")
    with pytest.raises(RuntimeError, match="no such thing"), start_workers(made(tmp_path), 1):
        pass


def test_a_run_that_is_broken_off_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "copies"))
    (tmp_path / "copies").mkdir()
    project = made(tmp_path / "project")
    (project.root / "tests/test_ages.py").write_text(
        "import pathlib, threading\n"
        "def test_for_ever():\n"
        f"    pathlib.Path({str(tmp_path / 'begun')!r}).touch()\n"
        "    threading.Event().wait()\n"
    )
    errors: list[str] = []

    def work(worker: Worker) -> None:
        with pytest.raises((RuntimeError, OSError)) as ended:
            worker.record("tests/test_ages.py")
        errors.append(str(ended.value))

    with start_workers(project, 1) as [worker]:
        thread = threading.Thread(target=work, args=(worker,))
        thread.start()
        while not (tmp_path / "begun").exists():
            assert thread.is_alive(), errors
            thread.join(0.05)
    thread.join(60)
    assert len(errors) == 1
    assert list((tmp_path / "copies").iterdir()) == []


def test_what_fails_in_one_worker_ends_the_others() -> None:
    def fail(_worker: Worker, task: int) -> int:
        if task == 3:
            raise ValueError("three")
        return task

    with pytest.raises(ValueError, match="three"):
        list(trial.distribute([None], [1, 2, 3, 4], fail))  # type: ignore[list-item]
    done = trial.distribute([None, None], [1, 2, 4], fail)  # type: ignore[list-item]
    assert sorted(done) == [(1, 1), (2, 2), (4, 4)]
    assert is_valid("x = 1", find_mutations("x = 1")[0])
    assert sys.version_info >= (3, 11)


def test_a_session_runs_under_this_projects_own_options(tmp_path: Path) -> None:
    """A plugin that is shut out takes its options with it, and then no test runs at all."""
    code = """
        import sys
        from tools.mutation.session import run
        sys.exit(run([sys.argv[1]], sys.argv[2], object(), stop=True))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), "tests/test_errors.py", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
