"""Parts: named by who makes them, taken over when that one is dead, swept, and published whole."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from worker.weights import temporary

MAKE = """
import sys
from pathlib import Path
from worker.weights import temporary
for words in sys.argv[2:]:
    size, way = words.split("-")
    part = temporary.make_path(Path(sys.argv[1]), resumable=way == "resumable")
    part.write_bytes(bytes(int(size)))
    print(part, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """The name that the parts are to have one day; brackets are read as they are."""
    return tmp_path / "model [1]*.safetensors"


def process(target: Path, *parts: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", MAKE, target, *parts],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def dead(target: Path, *parts: str) -> list[Path]:
    """Return the parts ("SIZE-resumable" or "SIZE-whole") of a process that is gone."""
    with process(target, *parts) as child:
        said, _ = child.communicate()
    assert child.returncode == 0
    return [Path(line) for line in said.splitlines()]


@pytest.fixture
def living(target: Path) -> Iterator[Path]:
    """A part of a process that runs."""
    with process(target, "70-resumable") as child:
        assert child.stdout is not None
        yield Path(child.stdout.readline().strip())
        child.communicate()


def foreign(target: Path, *, age_s: float, size: int = 50) -> Path:
    """Return a part of another machine that was last written to so long ago."""
    part = target.with_name(f".{target.name}.hffffffff-1-1-1.resume.part")
    part.write_bytes(bytes(size))
    then = time.time() - age_s
    os.utime(part, (then, then))
    return part


def test_the_largest_part_that_can_be_resumed_is_taken_over_and_nothing_is_left(
    target: Path,
) -> None:
    """A part that was written out of order says nothing by its size: it is larger, and goes."""
    dead(target, "10-resumable", "40-whole", "30-resumable", "20-resumable", "35-whole")
    mine = temporary.adopt(target)
    assert mine is not None
    assert mine.stat().st_size == 30
    assert temporary.list_parts(target) == [mine]
    assert list(target.parent.iterdir()) == [mine]


def test_what_was_taken_over_is_ours_and_can_be_taken_over_again(target: Path) -> None:
    dead(target, "10-resumable")
    mine = temporary.adopt(target)
    assert mine is not None
    assert not temporary.is_orphan(mine)
    assert temporary.adopt(target) is None, "it belongs to a process that runs: this one"
    assert mine.exists()
    assert mine.name.endswith(temporary.RESUMABLE)


def test_parts_that_cannot_be_resumed_are_not_taken_over_and_not_left(target: Path) -> None:
    dead(target, "40-whole", "0-whole")
    assert temporary.adopt(target) is None
    assert list(target.parent.iterdir()) == []


def test_where_nothing_lies_nothing_is_taken(target: Path) -> None:
    assert temporary.adopt(target) is None


def test_what_others_are_at_stays(target: Path, living: Path) -> None:
    """Parts of running processes, of other machines and of other files are not ours to take."""
    own = temporary.make_path(target, resumable=True)
    own.write_bytes(bytes(90))
    other = dead(target.with_name("other.safetensors"), "60-resumable")
    recent = foreign(target, age_s=temporary.FOREIGN_ORPHAN_S - 60)
    assert temporary.adopt(target) is None
    assert all(part.exists() for part in (own, living, recent, *other))
    assert set(temporary.list_parts(target)) == {own, living, recent}


def test_a_part_of_another_machine_is_taken_over_once_it_stands_still(target: Path) -> None:
    old = foreign(target, age_s=temporary.FOREIGN_ORPHAN_S + 60)
    mine = temporary.adopt(target)
    assert mine is not None
    assert mine.stat().st_size == 50
    assert not old.exists()


def test_a_sweep_frees_what_the_dead_left_and_tells_how_much(target: Path, living: Path) -> None:
    below = target.parent / "folder/deeper/x.bin"
    below.parent.mkdir(parents=True)
    dead(target, "10-resumable", "40-whole")
    dead(below, "7-whole")
    named_alike = target.with_name(".notes.part")
    named_alike.write_bytes(bytes(5))
    assert temporary.sweep(target.parent) == 57
    assert temporary.sweep(target.parent) == 0
    assert living.exists()
    assert named_alike.exists(), "it names no process"


def test_a_number_that_is_used_again_is_another_process(target: Path) -> None:
    """A container starts with the process ids of the last one; start times distinguish them."""
    mine = temporary.make_path(target)
    head, _, _ = mine.name.rpartition(f"-{os.getpid()}-")
    again = mine.with_name(f"{head}-{os.getpid()}-1-1.part")
    again.touch()
    mine.touch()
    assert temporary.is_orphan(again)
    assert not temporary.is_orphan(mine)


def test_a_zombie_is_dead(target: Path) -> None:
    """A process that ended and that nobody has waited for writes no more."""
    with process(target, "5-whole") as child:
        assert child.stdout is not None
        part = Path(child.stdout.readline().strip())
        assert not temporary.is_orphan(part)
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert temporary.is_orphan(part)


def test_publishing_leaves_the_final_name_alone(target: Path) -> None:
    target.write_bytes(b"old")
    part = temporary.make_path(target)
    part.write_bytes(b"new")
    temporary.publish(part, target)
    assert target.read_bytes() == b"new"
    assert list(target.parent.iterdir()) == [target]
