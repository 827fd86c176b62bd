"""Who wants a file that another is downloading waits while that one moves on, and no longer."""

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import filelock
import pytest
from faults.room import FAST, SHARD, Room, room

from worker import settings
from worker.errors import HubUnreachable, VolumeFull, WeightsUnavailable
from worker.weights import download, space, temporary
from worker.weights.download import fetch_snapshot
from worker.weights.hub import Hub
from worker.weights.proof import Digests, RemoteFile, digest_file
from worker.weights.retry import Missing
from worker.weights.snapshot import LocalSnapshot, find_file
from worlds.hub import Fault

ENDS_S = 60.0


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Room]:
    with room(tmp_path / "home", seed=1) as given:
        given.patience = replace(FAST, connect_s=30, stall_s=30)
        yield given


def lock_of(target: Path) -> Path:
    return target.with_name(f".{target.name}.lock")


@contextmanager
def locked(made: Room) -> Iterator[Path]:
    """Hold the lock of the shard as another process does; give the shard's final name."""
    target = made.into / SHARD
    target.parent.mkdir(parents=True)
    lock = filelock.FileLock(lock_of(target), is_singleton=False)
    with lock:
        yield target


def fetched(made: Room) -> threading.Thread:
    """Fetch the shard in a thread."""
    snapshot = made.snapshot()
    thread = threading.Thread(
        target=snapshot.fetch_file, args=(find_file(snapshot, SHARD), made.into), daemon=True
    )
    thread.start()
    return thread


def test_a_holder_that_moves_on_is_waited_for_and_its_file_taken(
    made: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer than a stall, as long as its part grows; then not a byte is asked for."""
    look, looks, now = download._read_activity, threading.Semaphore(0), [0.0]

    def look_and_tell(target: Path) -> list[tuple[str, int, int]]:
        found = look(target)
        looks.release()
        return found

    monkeypatch.setattr(download, "POLL_S", 0.02)
    monkeypatch.setattr(download, "_read_activity", look_and_tell)
    monkeypatch.setattr(download, "time", SimpleNamespace(monotonic=lambda: now[0]))
    made.patience = replace(made.patience, stall_s=1.0)
    with locked(made) as target:
        part = temporary.make_path(target, resumable=True)
        data = made.published[SHARD]
        thread = fetched(made)
        for end in range(1, 5):
            part.write_bytes(data[:end])
            while looks.acquire(blocking=False):
                pass
            # the first may have begun before the part grew
            assert looks.acquire(timeout=ENDS_S), "it did not wait"
            assert looks.acquire(timeout=ENDS_S), "it did not wait"
            now[0] += 0.9
        part.write_bytes(data)
        temporary.publish(part, target)
    thread.join(ENDS_S)
    assert not thread.is_alive()
    assert not made.hub.requests("bytes")


def test_a_holder_that_stands_still_is_not_waited_for(made: Room) -> None:
    made.patience = replace(made.patience, stall_s=0.2)
    with locked(made) as target:
        temporary.make_path(target, resumable=True).write_bytes(b"some")
        thread = fetched(made)
        thread.join(ENDS_S)
        assert not thread.is_alive(), "it waits for the dead"
        assert target.read_bytes() == made.published[SHARD]


def test_the_lock_is_given_back(made: Room) -> None:
    made.fetch()
    target = made.into / SHARD
    with filelock.FileLock(lock_of(target), timeout=0, is_singleton=False):
        pass


def test_the_lock_is_given_back_after_a_failure(made: Room) -> None:
    made.patience = replace(made.patience, attempts=1)
    made.hub.misbehave(Fault("status", path=SHARD, times=None))
    with pytest.raises(HubUnreachable):
        made.fetch()
    with filelock.FileLock(lock_of(made.into / SHARD), timeout=0, is_singleton=False):
        pass


@pytest.mark.parametrize("error", [OSError(38, "no locks"), NotImplementedError("no locks")])
def test_where_locks_do_not_work_files_come_all_the_same(
    made: Room, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    made.fetch()
    assert not made.wrong()
    assert not made.missing()


def test_a_part_that_is_waited_for_may_go_at_any_time(
    made: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its owner renames it between our look at the folder and our look at the part."""
    target = made.into / "x"
    gone = temporary.make_path(target)
    names = ["another's", "and more"]
    there = [target.with_name(name) for name in names]
    made.into.mkdir(parents=True)
    for part in there:
        part.touch()
    monkeypatch.setattr(temporary, "list_parts", lambda _target: [gone, *there])
    assert [name for name, *_ in download._read_activity(target)] == names


def test_a_resumed_part_needs_room_for_the_rest_only(made: Room) -> None:
    """What a dead process left counts as written."""
    snapshot = made.snapshot()
    shard = find_file(snapshot, SHARD)
    target = made.into / SHARD
    target.parent.mkdir(parents=True)
    have = shard.size - 1000
    part = target.with_name(f".{target.name}.hffffffff-1-1-1.resume.part")
    part.write_bytes(made.published[SHARD][:have])
    os.utime(part, (0, 0))
    made.environ |= {"VOLUME_SIZE_GB": str((shard.size + 100_000) / 1e9)}
    tight = replace(snapshot, settings=made.settings)
    tight.fetch_file(shard, made.into)
    assert target.read_bytes() == made.published[SHARD]
    assert [seen.span for seen in made.hub.requests("bytes", SHARD)] == [f"bytes={have}-"]


@pytest.mark.parametrize("more", [0, -1])
def test_a_file_needs_room_for_its_own_bytes_and_for_no_more(
    made: Room, monkeypatch: pytest.MonkeyPatch, more: int
) -> None:
    monkeypatch.setattr(space, "_find_volume", lambda _folder: Path("/"))
    snapshot = made.snapshot()
    shard = find_file(snapshot, SHARD)
    quota = space.count_used_bytes(made.home) + shard.size + more
    made.environ |= {"VOLUME_SIZE_GB": f"{(quota + 0.5) / 1e9:.10f}"}
    tight = replace(snapshot, settings=made.settings)
    if more < 0:
        with pytest.raises(VolumeFull):
            tight.fetch_file(shard, made.into)
    else:
        tight.fetch_file(shard, made.into)
        assert not made.wrong()


def test_the_whole_repository_needs_room_for_what_is_not_there_only(made: Room) -> None:
    made.fetch()
    total = sum(map(len, made.published.values()))
    made.environ |= {"VOLUME_SIZE_GB": str((total + 200_000) / 1e9)}
    made.fetch()
    (made.into / SHARD).unlink()
    made.fetch()
    assert not made.missing()
    (made.home / "neighbour").write_bytes(bytes(400_000))
    (made.into / SHARD).unlink()
    made.hub.seen.clear()
    with pytest.raises(VolumeFull):
        made.fetch()
    assert not made.hub.requests("bytes")


def test_what_can_be_tried_later_keeps_its_part_and_what_cannot_does_not(made: Room) -> None:
    made.patience = replace(made.patience, attempts=1)
    made.hub.misbehave(Fault("cut", path=SHARD, at=0.5))
    with pytest.raises(HubUnreachable):
        made.fetch()
    (part,) = made.parts()
    assert part.stat().st_size == len(made.published[SHARD]) // 2
    part.rename(part.with_name(f".{Path(SHARD).name}.hffffffff-1-1-1.resume.part"))
    (left,) = made.parts()
    os.utime(left, (0, 0))
    made.hub.misbehave(Fault("status", "resolve", path=SHARD, status=404))
    with pytest.raises(WeightsUnavailable):
        made.fetch()
    assert not made.parts()


def test_a_file_that_the_hub_has_no_more_makes_the_next_start_ask_again(made: Room) -> None:
    """Only that: a hub that is down says nothing of the commit."""
    snapshot = made.snapshot()
    assert snapshot.record is not None
    made.patience = replace(made.patience, attempts=1)
    tired = replace(snapshot, patience=made.patience)
    shard = find_file(snapshot, SHARD)
    made.hub.misbehave(Fault("status", "resolve", path=SHARD, status=503))
    with pytest.raises(HubUnreachable):
        tired.read_range(shard, 0, 10)
    assert snapshot.record.exists()
    made.hub.misbehave(Fault("status", "resolve", path=SHARD, status=404))
    with pytest.raises(WeightsUnavailable):
        tired.read_range(shard, 0, 10)
    assert not snapshot.record.exists()
    made.hub.misbehave(Fault("status", "resolve", path=SHARD, status=404))
    with pytest.raises(WeightsUnavailable):  # another thread was faster
        tired.read_range(shard, 0, 10)


def test_a_damaged_file_is_fetched_again_and_a_right_one_is_left_alone(made: Room) -> None:
    made.fetch()
    target = made.into / SHARD
    before = target.stat().st_mtime_ns
    made.fetch()
    assert target.stat().st_mtime_ns == before
    target.write_bytes(target.read_bytes()[:-1] + b"x")
    made.fetch()
    assert not made.wrong()


def test_a_damaged_file_does_not_stay_where_the_hub_is_away(made: Room) -> None:
    made.fetch()
    target = made.into / SHARD
    target.write_bytes(target.read_bytes()[:-1] + b"x")
    made.patience = replace(made.patience, attempts=1)
    made.hub.misbehave(Fault("status", path=SHARD, times=None))
    with pytest.raises(HubUnreachable):
        made.fetch()
    assert made.missing() == [SHARD]


def test_digests_are_the_ones_that_the_hub_recorded(made: Room) -> None:
    snapshot = made.snapshot()
    for file in snapshot.files:
        entry = made.hub.commits["acme/painter"][snapshot.commit][file.path]
        expected = f"sha256:{entry.sha256}" if entry.lfs else f"git:{entry.blob_id}"
        assert snapshot.digest(file) == expected


@pytest.mark.parametrize("span", [(-1, 5), (6, 5), (0, 10**9)])
def test_a_range_outside_the_file_is_a_mistake_of_ours(made: Room, span: tuple[int, int]) -> None:
    snapshot = made.snapshot()
    with pytest.raises(ValueError, match="of a file of"):
        snapshot.read_range(find_file(snapshot, SHARD), *span)
    assert not made.hub.requests("bytes")


def test_progress_comes_as_the_bytes_do(made: Room) -> None:
    """Before the end, when a body stands still in the middle."""
    made.hub.misbehave(Fault("stall-body", path=SHARD))
    snapshot = made.snapshot()
    reported: list[int] = []

    def progress(_file: RemoteFile, done: int) -> None:
        reported.append(done)
        if done >= len(made.published[SHARD]) // 2:
            made.hub.released.set()

    snapshot.fetch_file(find_file(snapshot, SHARD), made.into, progress)
    assert reported[0] < len(made.published[SHARD])
    assert reported == sorted(reported)
    assert reported[-1] == len(made.published[SHARD])


def test_a_little_more_than_before_is_no_progress(
    made: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What counts is what this attempt brought, and exactly as much is enough."""
    half = len(made.published[SHARD]) // 2
    for enough, comes in ((half, True), (half + 1, False)):
        monkeypatch.setattr(download, "PROGRESS_BYTES", enough)
        made.patience = replace(made.patience, attempts=1)
        made.hub.misbehave(Fault("cut", path=SHARD, at=0.5))
        snapshot = made.snapshot()
        shard = find_file(snapshot, SHARD)
        if comes:
            snapshot.fetch_file(shard, made.into)
            (made.into / SHARD).unlink()
        else:
            with pytest.raises(HubUnreachable):
                snapshot.fetch_file(shard, made.into)
    monkeypatch.setattr(download, "PROGRESS_BYTES", 1000)
    made.hub.misbehave(Fault("cut", path=SHARD, at=0.4), Fault("cut", path=SHARD, at=0.0))
    with pytest.raises(HubUnreachable):
        snapshot.fetch_file(shard, made.into)


def test_what_may_be_resumed_says_so_by_its_name(made: Room) -> None:
    made.patience = replace(made.patience, attempts=1)
    made.hub.misbehave(Fault("cut", path=SHARD, at=0.5))
    with pytest.raises(HubUnreachable):
        made.fetch()
    (part,) = made.parts()
    assert part.name.endswith(temporary.RESUMABLE)


def test_a_file_that_is_gone_is_told_as_that_on_the_parallel_way_too(made: Room) -> None:
    made.parallel = True
    made.hub.misbehave(Fault("status", "resolve", path=SHARD, status=404))
    with pytest.raises(Missing):
        made.fetch()


def test_a_record_that_cannot_be_deleted_does_not_hide_why(
    made: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = made.snapshot()

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "read-only")

    monkeypatch.setattr(Path, "unlink", refuse)
    made.hub.misbehave(Fault("status", "resolve", path=SHARD, status=404))
    with pytest.raises(Missing):
        snapshot.read_range(find_file(snapshot, SHARD), 0, 10)


def test_a_damaged_file_may_be_deleted_by_another_meanwhile(
    made: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.fetch()
    target = made.into / SHARD
    target.write_bytes(b"damaged")

    def measured(path: Path, *, blob_id: bool) -> Digests:
        found = digest_file(path, blob_id=blob_id)
        if found.size == len(b"damaged"):
            path.unlink()
        return found

    monkeypatch.setattr(download, "digest_file", measured)
    made.fetch()
    assert not made.wrong()
    assert not made.missing()


@pytest.mark.parametrize(
    ("endpoint", "times"), [("http://hub.example", 2), ("https://hub.example", 1)]
)
def test_a_range_is_read_twice_where_the_line_is_not_guarded(
    made: Room, monkeypatch: pytest.MonkeyPatch, endpoint: str, times: int
) -> None:
    read: list[int] = []

    def note(*_: object) -> bytes:
        read.append(1)
        return b"x"

    monkeypatch.setattr("worker.weights.sequential.read_range", note)
    snapshot = replace(made.snapshot(), hub=Hub(endpoint, None))
    assert snapshot.read_range(find_file(snapshot, SHARD), 0, 1) == b"x"
    assert len(read) == times


def test_small_files_come_first_and_each_once_wherever_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is on a disk already needs no more room there."""
    monkeypatch.setattr(download, "PARALLEL_FROM_BYTES", 100)
    for name, size in (("a", 101), ("b", 99), ("c", 100), ("d", 1)):
        (tmp_path / name).write_bytes(bytes(size))
    snapshot = LocalSnapshot(tmp_path, "mine")
    read = settings.read(
        {"MODEL_DIR": str(tmp_path), "VOLUME_SIZE_GB": "0.000001", "DOWNLOAD_WORKERS": "1"}
    )
    came: list[str] = []
    found = fetch_snapshot(
        snapshot, snapshot.files, tmp_path, read, lambda file, _: came.append(file.path)
    )
    assert came == list(found) == ["b", "d", "a", "c"]
