"""Parts: named by who makes them, taken over when that one is dead, swept, and published whole."""

import errno
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
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


def test_a_link_to_nothing_is_deleted_and_frees_nothing(target: Path) -> None:
    (part,) = dead(target, "10-whole")
    part.unlink()
    part.symlink_to(target.with_name("nothing"))
    assert temporary.sweep(target.parent) == 0
    assert not part.is_symlink()


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
    assert not temporary.make_path(target).name.endswith(temporary.RESUMABLE)


def test_a_part_that_another_process_takes_first_is_left_to_it(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next in size is taken; nothing fails, and nothing is counted as freed."""
    largest, _, whole = dead(target, "30-resumable", "20-resumable", "10-whole")
    is_orphan = temporary.is_orphan

    def took(part: Path) -> bool:
        if part in (largest, whole):
            part.unlink(missing_ok=True)
            return True
        return is_orphan(part)

    monkeypatch.setattr(temporary, "is_orphan", took)
    mine = temporary.adopt(target)
    assert mine is not None
    assert mine.stat().st_size == 20
    largest.touch()
    assert temporary.sweep(target.parent) == 0


@pytest.mark.parametrize(("later", "is_orphan"), [(0, False), (0.5, True)])
def test_a_part_of_another_machine_is_left_for_a_while(
    target: Path, monkeypatch: pytest.MonkeyPatch, later: float, *, is_orphan: bool
) -> None:
    part = foreign(target, age_s=0)
    os.utime(part, (1000, 1000))
    monkeypatch.setattr(time, "time", lambda: 1000 + temporary.FOREIGN_ORPHAN_S + later)
    assert temporary.is_orphan(part) == is_orphan
    part.unlink()
    assert not temporary.is_orphan(part), "it was published"


def test_what_is_published_is_on_the_disk_first(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes before the name, the name before the caller goes on; no file stays open."""
    synced: list[tuple[str, bool]] = []

    def note(number: int) -> None:
        synced.append((Path(f"/proc/self/fd/{number}").readlink().name, target.exists()))

    monkeypatch.setattr(os, "fsync", note)
    part = temporary.make_path(target)
    part.write_bytes(b"new")
    before = len(list(Path("/proc/self/fd").iterdir()))
    temporary.publish(part, target)
    assert synced == [(part.name, False), (target.parent.name, True)]
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], str]]:
    """Tell the id of a machine by its name and its namespace of processes ("": it has none)."""

    def identify(name: str, namespace: str) -> str:
        monkeypatch.setattr("socket.gethostname", lambda: name)
        shown = [Path("/proc/self/ns/pid")] if namespace else []
        monkeypatch.setattr(Path, "exists", lambda path: path in shown)
        monkeypatch.setattr(Path, "readlink", lambda _: Path(namespace))
        temporary._identify_machine.cache_clear()
        return temporary._identify_machine()

    yield identify
    temporary._identify_machine.cache_clear()


def test_a_container_is_a_machine_of_its_own(machine: Callable[[str, str], str]) -> None:
    """Two of one name are told apart by their processes, where the system shows them."""
    ids = [
        machine(name, namespace)
        for name in ("pod", "other")
        for namespace in ("pid:[1]", "pid:[2]", "")
    ]
    assert len(set(ids)) == 6
    assert machine("pod", "pid:[1]") == ids[0]


def test_a_part_without_a_time_of_its_own_is_no_living_process_s(target: Path) -> None:
    """However much memory its process takes meanwhile."""
    mine = temporary.make_path(target)
    started = mine.name.split("-")[-2]
    mine.touch()
    never = mine.with_name(mine.name.replace(f"-{started}-", "-0-"))
    with mmap.mmap(-1, 64 << 20):
        assert not temporary.is_orphan(mine)
        assert temporary.is_orphan(never)


def test_what_proc_does_not_show_is_gone(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is one: a number alone, such as this process's, says nothing there."""
    head = temporary.make_path(target).name.rpartition(f"-{os.getpid()}-")[0]
    part = target.with_name(f"{head}-{os.getpid()}-1-1.part")

    def refuse(*_: object) -> str:
        raise FileNotFoundError(errno.ENOENT, "no such process")

    monkeypatch.setattr(Path, "read_text", refuse)
    assert temporary.is_orphan(part)


def test_without_proc_a_process_is_known_by_its_number_alone(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (gone,) = dead(target, "5-whole")
    assert temporary.is_orphan(gone)  # the machine's id, which is of /proc, is read once
    with process(target) as child:
        child.communicate()

    def refuse(*_: object) -> str:
        raise FileNotFoundError(errno.ENOENT, "no /proc")

    monkeypatch.setattr(Path, "read_text", refuse)
    monkeypatch.setattr(Path, "exists", lambda _: False)
    mine = temporary.make_path(target)
    assert not temporary.is_orphan(mine)
    head = mine.name.rpartition(f"-{os.getpid()}-")[0]
    other = mine.with_name(f"{head}-{child.pid}-1-1.part")
    assert temporary.is_orphan(other)
    assert temporary.is_orphan(gone)

    def forbid(process: int, number: int) -> None:
        assert number == 0
        raise PermissionError(errno.EPERM, f"{process} is another user's")

    monkeypatch.setattr(os, "kill", forbid)
    assert not temporary.is_orphan(other)
