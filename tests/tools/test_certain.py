"""make certain finds what fails in some runs only, says how to see it again, and is a neighbour."""

import contextlib
import multiprocessing
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools import certain
from tools.neighbour import busy

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.timeout(600)  # pytest itself takes long to start on a busy machine

SUITE = """
import os, pytest
from pathlib import Path

@pytest.mark.parametrize("n", range(8))
def test_good(n):
    with Path(os.environ["ORDER"]).open("a") as file:
        file.write(f"{n} ")

def test_bad():
    assert not os.environ["BAD"], "on purpose"
"""


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file of tests that note the order in which they run."""
    monkeypatch.setenv("ORDER", str(tmp_path / "order"))
    monkeypatch.setenv("BAD", "")
    file = tmp_path / "test_some.py"
    file.write_text(SUITE)
    return str(file)


def orders(tmp_path: Path, suite: str, *words: str) -> list[str]:
    """Run the tests and return in which order each run had them."""
    (tmp_path / "order").unlink(missing_ok=True)
    out = ("--neighbour", "never", "--out", str(tmp_path / "out"))
    assert certain.main([*words, *out, suite]) == 0
    numbers = (tmp_path / "order").read_text().split()
    return [" ".join(numbers[at : at + 8]) for at in range(0, len(numbers), 8)]


def test_a_seed_is_an_order(tmp_path: Path, suite: str) -> None:
    first, second = orders(tmp_path, suite, "--times", "2", "--seed", "4")
    assert first != second
    assert sorted(first.split()) == sorted(second.split()) == [str(n) for n in range(8)]
    assert orders(tmp_path, suite, "--times", "1", "--seed", "5") == [second]


def test_what_fails_is_named_and_its_output_is_kept(
    tmp_path: Path,
    suite: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("BAD", "yes")
    out = tmp_path / "out"
    (out / "run-09").mkdir(parents=True)  # of another day
    assert certain.main(["--times", "1", "--seed", "6", "--out", str(out), suite]) == 1
    text = capsys.readouterr().out
    assert "run 1 of 1, seed 7: 1 failed" in text
    assert "0 of 1 runs passed" in text
    assert text.rstrip().endswith("::test_bad")
    kept = (out / "run-01" / "output.txt").read_text()
    assert "on purpose" in kept
    assert "--randomly-seed=7" in kept
    assert not (out / "run-09").exists()


def test_tests_that_cannot_even_be_found_are_no_success(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--times", "1", "--out", str(tmp_path / "out"), str(tmp_path / "test_none.py")]
    assert certain.main(words) == 1
    assert "pytest: status" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("times", "neighbour", "alone", "beside"),
    [
        (10, "half", [1, 2, 3, 4, 5], [(6, 7), (8, 9), (10,)]),
        (5, "half", [1, 2, 3], [(4, 5)]),
        (3, "always", [], [(1, 2), (3,)]),
        (2, "never", [1, 2], []),
        (3, "stalls", [1, 2, 3], []),
    ],
)
def test_half_of_the_runs_have_a_neighbour_and_two_of_these_go_at_a_time(
    times: int, neighbour: str, alone: list[int], beside: list[tuple[int, ...]]
) -> None:
    rounds = certain.make_rounds(times, neighbour)
    assert [each.numbers for each in rounds if not each.beside] == [(n,) for n in alone]
    assert [each.numbers for each in rounds if each.beside] == beside


MEETING = """
import os, time
from pathlib import Path

def test_meets_the_other():
    house = Path(os.environ["HOUSE"])
    (house / str(os.getpid())).touch()
    while len(list(house.iterdir())) < 2:
        time.sleep(0.01)
"""


def test_two_runs_are_each_others_neighbour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "house").mkdir()
    monkeypatch.setenv("HOUSE", str(tmp_path / "house"))
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "test_meeting.py").write_text(MEETING)
    out = tmp_path / "out"
    words = ["--times", "2", "--neighbour", "always", "--out", str(out), str(tmp_path / "some")]
    assert certain.main(words) == 0
    text = capsys.readouterr().out
    assert all("-n 2 " in (out / run / "output.txt").read_text() for run in ("run-01", "run-02"))
    assert "run 1 of 2, seed 1, with a busy neighbour: passed" in text
    assert "run 2 of 2, seed 2, with a busy neighbour: passed" in text
    assert multiprocessing.active_children() == []


def test_a_run_alone_has_as_many_workers_as_make_test(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text("def test_some(): pass")
    out = tmp_path / "out"
    words = ["--times", "1", "--neighbour", "never", "--out", str(out), str(tmp_path)]
    assert certain.main(words) == 0
    command = (out / "run-01" / "output.txt").read_text()
    (usual,) = re.findall(r"^TESTERS \?= (\d+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert f"-n {usual} " in command


def test_a_run_that_is_left_over_has_processes_for_neighbours(
    tmp_path: Path, suite: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    @contextlib.contextmanager
    def note(_folder: Path, *, computing: bool) -> Iterator[None]:
        asked.append(computing)
        yield

    monkeypatch.setattr(certain, "busy", note)
    out = ("--out", str(tmp_path / "out"))
    monkeypatch.setattr(certain, "run", lambda *_: certain.Run(1.0, ()))
    assert certain.main(["--times", "3", "--neighbour", "always", *out, suite]) == 0
    assert asked == [False, True]


def test_a_neighbour_takes_every_processor_and_the_disk_until_it_leaves(tmp_path: Path) -> None:
    with busy(tmp_path / "house"):
        neighbours = multiprocessing.active_children()
        assert len(neighbours) == (os.cpu_count() or 1) + 1
        while not (tmp_path / "house" / "neighbour").exists():
            time.sleep(0.01)
        assert all(process.is_alive() for process in neighbours)
    assert multiprocessing.active_children() == []
    assert list((tmp_path / "house").iterdir()) == []
    with busy(tmp_path / "house", computing=False):
        assert len(multiprocessing.active_children()) == 1
