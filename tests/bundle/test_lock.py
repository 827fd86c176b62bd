"""Which worker prepares and which waits: by a lock where locks work, never for a stopped one."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import filelock
import pytest

from worker import log
from worker.bundle import lock

NEVER_S = 3600.0


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "LOCK_POLL_S", 0.01)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The lock's file, in a folder that is not there yet, nor the one above it."""
    return tmp_path / "home/locks/part.lock"


@pytest.fixture
def watched(tmp_path: Path) -> Path:
    """The folder that a holder writes to; its last change is an hour ago."""
    folder = tmp_path / "transformer-1"
    (folder / "deeper").mkdir(parents=True)
    (folder / "deeper/file").touch()
    for each in (folder / "deeper/file", folder / "deeper", folder):
        age(each, NEVER_S)
    return folder


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def is_free(path: Path) -> bool:
    other = filelock.FileLock(path, is_singleton=False)
    try:
        other.acquire(timeout=0)
    except filelock.Timeout:
        return False
    other.release()
    return True


@pytest.fixture
def holder(path: Path) -> Iterator[filelock.BaseFileLock]:
    """Another worker that holds the lock."""
    path.parent.mkdir(parents=True)
    with filelock.FileLock(path, is_singleton=False) as lock:
        yield lock


def test_the_lock_is_held_inside_and_given_back(path: Path, watched: Path) -> None:
    with lock.take_turn(path, lambda: False, (watched,)):
        assert not is_free(path)
    assert is_free(path)


def test_the_lock_is_given_back_after_a_failure(path: Path, watched: Path) -> None:
    with (
        pytest.raises(ValueError, match="no"),
        lock.take_turn(path, lambda: False, (watched,)),
    ):
        raise ValueError("no")
    assert is_free(path)


def test_what_is_done_needs_no_lock(path: Path, watched: Path) -> None:
    with lock.take_turn(path, lambda: True, (watched,)):
        assert is_free(path)


def test_a_holder_that_still_writes_is_waited_for(
    path: Path, watched: Path, holder: filelock.BaseFileLock
) -> None:
    """Anything that changes below its folders counts, however deep."""
    age(watched / "deeper/file", 1)
    asked = 0

    def done() -> bool:
        nonlocal asked
        asked += 1
        if asked == 20:
            holder.release()
        return False

    with lock.take_turn(path, done, (watched,), still_s=60):
        assert asked >= 20
        assert not is_free(path), "now it is ours"


def test_the_newest_of_all_folders_counts(
    path: Path, watched: Path, tmp_path: Path, holder: filelock.BaseFileLock
) -> None:
    other = tmp_path / "vae-1"
    other.mkdir()
    age(other, 1)
    answers = iter([False] * 10 + [True])
    for folders in ((watched, other), (other, watched)):
        answers = iter([False] * 10 + [True])
        with lock.take_turn(path, lambda: next(answers), folders, still_s=60):  # noqa: B023 - at once
            pass
        assert next(answers, "all asked") == "all asked"
    assert holder.is_locked


def test_a_holder_that_stands_still_is_passed_by_and_named(
    path: Path,
    watched: Path,
    holder: filelock.BaseFileLock,
    capsys: pytest.CaptureFixture[str],
) -> None:
    log.configure("INFO")
    with lock.take_turn(path, lambda: False, (watched,), still_s=NEVER_S - 60):
        assert holder.is_locked
    assert holder.is_locked, "the lock is the other's and stays so"
    said = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(line["level"], line.get("part")) for line in said] == [
        ("info", "transformer-1"),
        ("warning", None),
    ]


def test_waiting_is_told_once(
    path: Path,
    watched: Path,
    holder: filelock.BaseFileLock,
    capsys: pytest.CaptureFixture[str],
) -> None:
    log.configure("INFO")
    answers = iter([False] * 8 + [True])
    with lock.take_turn(path, lambda: next(answers), (watched,), still_s=2 * NEVER_S):
        assert holder.is_locked
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_folder_that_is_not_there_is_one_where_nothing_changes(
    path: Path, tmp_path: Path, holder: filelock.BaseFileLock
) -> None:
    with lock.take_turn(path, lambda: False, (tmp_path / "nothing",), still_s=NEVER_S):
        assert holder.is_locked


@pytest.mark.parametrize("error", [OSError(38, "no locks"), NotImplementedError("no locks")])
def test_where_locks_do_not_work_the_work_is_done_all_the_same(
    path: Path, watched: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    went_on = False
    with lock.take_turn(path, lambda: False, (watched,)):
        went_on = True
    assert went_on


def test_what_vanishes_while_it_is_looked_at_hides_nothing_behind_it(
    path: Path, watched: Path, holder: filelock.BaseFileLock
) -> None:
    """Another worker renames its files all the time."""
    for number in range(9):
        (watched / f"gone-{number}").symlink_to(watched / "nowhere")
        (watched / "deeper" / f"gone-{number}").symlink_to(watched / "nowhere")
    for each in (watched / "deeper", watched):
        age(each, NEVER_S)
    age(watched / "deeper/file", 1)
    answers = iter([False] * 5 + [True])
    with lock.take_turn(path, lambda: next(answers), (watched,), still_s=60):
        assert next(answers, "all asked") == "all asked"
    assert holder.is_locked


@pytest.mark.parametrize(("since", "waits"), [(99.0, True), (100.0, True), (100.5, False)])
def test_a_holder_is_passed_by_once_it_stood_still_for_longer(
    since: float,
    waits: bool,
    path: Path,
    watched: Path,
    holder: filelock.BaseFileLock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    newest = max(each.stat().st_mtime for each in (watched, *watched.rglob("*")))
    monkeypatch.setattr("worker.bundle.lock.time.time", lambda: newest + since)
    answers = iter([False] * 3 + [True])
    with lock.take_turn(path, lambda: next(answers), (watched,), still_s=100.0):
        assert (next(answers, None) is None) == waits
    assert holder.is_locked


def test_a_folder_of_locks_that_is_there_is_used(path: Path, watched: Path) -> None:
    for _ in range(2):
        with lock.take_turn(path, lambda: False, (watched,)):
            assert not is_free(path)
