"""The cache on the volume stays within its bound, keeps what is in use, and survives a kill."""

import errno
import fcntl
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import filelock
import pytest

from worker import settings
from worker.errors import LoraFetchFailed, VolumeFull
from worker.loras.kept import Fetched, KeptLoras, choose_folder, make_place_key
from worker.weights import space, temporary
from worker.weights.proof import digest_bytes
from worlds.adapters import lora_bytes

SIZE = 10_000


def opened(folder: Path, files: float = 3, **environ: str) -> KeptLoras:
    """Return a cache with room for so many files of SIZE bytes."""
    bounds = {"LORA_CACHE_GB": repr(files * SIZE / 1e9), "MAX_LORAS": "1"}
    given = {**bounds, "MAX_LORA_BYTES": str(SIZE), "MIN_STORAGE_FREE_GB": "0", **environ}
    return KeptLoras(folder, settings.read(given))


def put(kept: KeptLoras, seed: int, age: float = 0) -> str:
    """Keep one file of SIZE bytes, last used `age` seconds ago; return its sha256."""
    data = lora_bytes(seed).ljust(SIZE, b"x")
    fetched = Fetched(digest_bytes(data).sha256, SIZE)
    kept.make_room(SIZE)
    part = kept.make_part(make_place_key(str(seed)))
    part.write_bytes(data)
    kept.keep(part, make_place_key(str(seed)), fetched)
    path = kept.make_path(fetched.sha256)
    now = path.stat().st_mtime
    os.utime(path, (now - age, now - age))
    return fetched.sha256


def test_what_was_kept_is_found_by_its_place(tmp_path: Path) -> None:
    kept = opened(tmp_path)
    sha256 = put(kept, 1)
    found = kept.find(make_place_key("1"))
    assert found is not None
    assert (found.sha256, found.is_fresh) == (sha256, True)
    assert kept.find(make_place_key("2")) is None


def test_no_name_on_the_volume_repeats_a_place(tmp_path: Path) -> None:
    """A URL may contain a secret."""
    kept = opened(tmp_path)
    key = make_place_key("url", "https://a.test/x?token=topsecret")
    kept.make_room(1)
    part = kept.make_part(key)
    part.write_bytes(lora_bytes())
    kept.keep(part, key, Fetched(digest_bytes(lora_bytes()).sha256, len(lora_bytes())))
    written = [path.name.encode() for path in tmp_path.rglob("*")]
    written += [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(b"topsecret" in one for one in written)


def test_a_file_that_lost_bytes_is_not_found(tmp_path: Path) -> None:
    kept = opened(tmp_path)
    path = kept.make_path(put(kept, 1))
    path.write_bytes(path.read_bytes()[:-1])
    assert kept.find(make_place_key("1")) is None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"sha256": 5}', "\ud800".encode(errors="replace").decode()]
)
def test_a_broken_record_is_as_good_as_none(tmp_path: Path, text: str) -> None:
    kept = opened(tmp_path)
    put(kept, 1)
    next((tmp_path / "sources").iterdir()).write_text(text)
    assert kept.find(make_place_key("1")) is None


def test_the_least_recently_used_is_evicted_and_its_record_with_the_next_sweep(
    tmp_path: Path,
) -> None:
    kept = opened(tmp_path, files=3)
    first, second, third = (put(kept, seed, age=100 - seed) for seed in (1, 2, 3))
    file = kept.open(first)  # it is the oldest until it is used again
    assert file is not None
    file.close()
    fourth = put(kept, 4)
    names = {path.stem for path in tmp_path.glob("*.safetensors")}
    assert names == {first, third, fourth}
    assert second not in names
    kept.make_room(0)
    assert len(list((tmp_path / "sources").iterdir())) == 3


def test_as_many_are_evicted_as_give_room_and_no_more(tmp_path: Path) -> None:
    kept = opened(tmp_path, files=3)
    first, second, third = (put(kept, seed, age=100 - seed) for seed in (1, 2, 3))
    kept.make_room(2 * SIZE)
    assert [kept.has(sha256, SIZE) for sha256 in (first, second, third)] == [False, False, True]


def test_a_record_that_another_worker_deletes_meanwhile_is_no_fault(tmp_path: Path) -> None:
    """A FIFO is read while another worker has just taken its name away."""
    kept = opened(tmp_path)
    put(kept, 1)
    record = next((tmp_path / "sources").iterdir())
    record.unlink()
    os.mkfifo(record)

    def delete() -> None:
        with record.open("wb"):  # waits until it is read
            record.unlink()

    other = threading.Thread(target=delete)
    other.start()
    kept.make_room(0)
    other.join()
    assert not record.exists()


def test_what_is_in_use_stays_and_may_leave_afterwards(tmp_path: Path) -> None:
    kept = opened(tmp_path, files=1)
    sha256 = put(kept, 1)
    file = kept.open(sha256)
    assert file is not None
    with pytest.raises(LoraFetchFailed, match="LORA_CACHE_GB"):
        kept.make_room(SIZE)
    assert kept.has(sha256, SIZE)
    file.close()
    kept.make_room(SIZE)
    assert not kept.has(sha256, SIZE)
    assert kept.open(sha256) is None


def test_what_another_worker_uses_stays(tmp_path: Path) -> None:
    kept = opened(tmp_path, files=1)
    path = kept.make_path(put(kept, 1))
    code = (
        "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_SH);"
        "print(flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(LoraFetchFailed):
            kept.make_room(SIZE)
        other.kill()  # a killed worker's locks go with it
        other.wait()
    kept.make_room(SIZE)
    assert not path.exists()


def test_a_file_that_is_evicted_as_it_is_opened_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = opened(tmp_path)
    sha256 = put(kept, 1)
    opened_files = []

    def evict(file: Any, _kind: int) -> None:
        opened_files.append(file)
        kept.make_path(sha256).unlink()

    monkeypatch.setattr(fcntl, "flock", evict)
    assert kept.open(sha256) is None
    assert [file.closed for file in opened_files] == [True]


def test_a_file_that_another_worker_evicts_at_the_same_time_is_gone_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = opened(tmp_path, files=2)
    paths = [kept.make_path(put(kept, seed, age=9 - seed)) for seed in (1, 2)]
    monkeypatch.setattr(fcntl, "flock", lambda *_: paths[0].unlink(missing_ok=True))
    kept.make_room(SIZE)
    assert [path.exists() for path in paths] == [False, True]


def test_a_file_whose_date_cannot_be_set_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is another's: then it is evicted earlier, no more."""
    kept = opened(tmp_path)
    sha256 = put(kept, 1)

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "not yours")

    monkeypatch.setattr(os, "utime", refuse)
    file = kept.open(sha256)
    assert file is not None
    file.close()


def test_a_name_without_a_file_is_passed_over(tmp_path: Path) -> None:
    kept = opened(tmp_path, files=1)
    first = put(kept, 1)
    (tmp_path / "gone.safetensors").symlink_to(tmp_path / "nothing")
    kept.make_room(SIZE)
    assert not kept.has(first, SIZE)
    assert kept.find("gone") is None


def test_each_place_has_a_turn_of_its_own_and_leaves_no_lock(tmp_path: Path) -> None:
    """Callers choose the places, and would fill the volume with their locks."""
    kept = opened(tmp_path / "not" / "there")
    locks = [kept.make_lock(make_place_key(str(number))) for number in range(300)]
    for lock in locks:
        lock.acquire(blocking=False)
    same = kept.make_lock(make_place_key("7"))
    with pytest.raises(filelock.Timeout):
        same.acquire(blocking=False)
    for lock in locks:
        kept.release(lock)
        assert not lock.is_locked
    assert not list((tmp_path / "not" / "there" / "locks").iterdir())
    same.acquire(blocking=False)
    kept.release(same)
    kept.release(same)  # never taken: a file system without locks


def test_who_waits_for_a_lock_that_is_deleted_takes_turns_with_who_comes_after(
    tmp_path: Path,
) -> None:
    """Otherwise each would have a lock that the other does not know."""
    kept = opened(tmp_path)
    first, third = (kept.make_lock(make_place_key("1")) for _ in range(2))
    first.acquire(blocking=False)
    inode = Path(first.lock_file).stat().st_ino
    # taken in one thread and released in another
    second = filelock.FileLock(first.lock_file, thread_local=False)
    waits = threading.Thread(target=second.acquire, kwargs={"poll_interval": 0.01})
    waits.start()
    with Path(first.lock_file).open() as held:
        kept.release(first)
        waits.join(60)
        assert Path(second.lock_file).stat().st_ino != inode
        assert os.fstat(held.fileno()).st_nlink == 0
    with pytest.raises(filelock.Timeout):
        third.acquire(blocking=False)
    kept.release(second)
    third.acquire(blocking=False)
    kept.release(third)


def test_a_lock_is_deleted_before_the_next_can_have_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = opened(tmp_path)
    lock = kept.make_lock(make_place_key("1"))
    lock.acquire(blocking=False)
    release, there = lock.release, list[bool]()

    def look() -> None:
        there.append(Path(lock.lock_file).exists())
        release()

    monkeypatch.setattr(lock, "release", look)
    kept.release(lock)
    assert (there, lock.is_locked) == ([False], False)


def test_a_killed_workers_lock_is_deleted_and_a_living_ones_is_not(tmp_path: Path) -> None:
    kept = opened(tmp_path)
    dead, living = (kept.make_lock(make_place_key(word)) for word in ("dead", "living"))
    Path(dead.lock_file).touch()
    living.acquire(blocking=False)
    opened(tmp_path).make_room(SIZE)
    assert [path.name for path in (tmp_path / "locks").iterdir()] == [Path(living.lock_file).name]
    kept.release(living)


def test_the_bound_and_what_stays_free_hold_to_the_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gigabyte has a thousand million bytes."""
    place = tmp_path / "not" / "there"
    kept = opened(place, MIN_STORAGE_FREE_GB="1", LORA_CACHE_GB="2")
    monkeypatch.setattr(space, "free_bytes", lambda *_: 9_000_000_000)
    kept.make_room(2_000_000_000)
    with pytest.raises(LoraFetchFailed):
        kept.make_room(2_000_000_001)
    monkeypatch.setattr(space, "free_bytes", lambda *_: 2_500_000_000)
    kept.make_room(1_500_000_000)
    with pytest.raises(VolumeFull):
        kept.make_room(1_500_000_001)


def test_the_records_of_all_that_left_are_deleted(tmp_path: Path) -> None:
    kept = opened(tmp_path, files=5)
    sums = [put(kept, seed) for seed in range(5)]
    for sha256 in sums[:4]:
        kept.make_path(sha256).unlink()
    kept.make_room(0)
    assert len(list((tmp_path / "sources").iterdir())) == 1
    assert kept.find(make_place_key("4")) is not None


def test_where_locks_do_not_work_files_are_kept_and_evicted_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    kept = opened(tmp_path, files=1)
    file = kept.open(put(kept, 1))
    assert file is not None
    file.close()
    second = put(kept, 2)
    assert [path.stem for path in tmp_path.glob("*.safetensors")] == [second]


def test_what_is_being_fetched_counts(tmp_path: Path) -> None:
    kept = opened(tmp_path, files=2)
    first = put(kept, 1)
    part = kept.make_part(make_place_key("2"))
    part.mkdir()
    temporary.make_path(part / "x.safetensors").write_bytes(bytes(SIZE))
    put(kept, 3)
    assert not kept.has(first, SIZE)
    temporary.make_path(part / "y.safetensors").write_bytes(b"x")
    with pytest.raises(LoraFetchFailed):
        kept.make_room(SIZE)


def test_all_that_is_being_fetched_counts(tmp_path: Path) -> None:
    kept = opened(tmp_path, files=3)
    for number in range(2):
        kept.make_part(make_place_key(str(number))).write_bytes(bytes(SIZE))
    kept.make_room(SIZE)
    with pytest.raises(LoraFetchFailed):
        kept.make_room(SIZE + 1)


def test_what_a_killed_worker_left_is_deleted(tmp_path: Path) -> None:
    """A part, and a folder with one, of a process that is gone; not those of one that lives."""
    kept = opened(tmp_path)
    living = kept.make_part(make_place_key("1"))
    living.mkdir()
    code = (
        "import sys; from pathlib import Path; from worker.weights import temporary as t;"
        "p, q = (t.make_path(Path(sys.argv[1]) / name) for name in 'ac'); p.mkdir(); q.mkdir();"
        "t.make_path(p / 'x', resumable=True).write_bytes(b'1' * 999);"
        "t.make_path(Path(sys.argv[1]) / 'b').write_bytes(b'1' * 999)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert len(list(tmp_path.glob(".*.part"))) == 4
    kept.make_room(0)
    assert list(tmp_path.glob(".*.part")) == [living]


def test_of_a_link_that_was_left_only_the_link_is_deleted(tmp_path: Path) -> None:
    """It is no folder that could be deleted, which must not fail the job that makes room."""
    kept = opened(tmp_path / "kept")
    put(kept, 1)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    os.utime(elsewhere, (0, 0))
    left = tmp_path / "kept" / f".x.h{'0' * 8}-1-1-0.part"
    left.symlink_to(elsewhere)
    kept.make_room(SIZE)
    assert not left.is_symlink()
    assert elsewhere.is_dir()


def test_a_full_disk_is_made_room_on_and_then_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = opened(tmp_path, files=3, MIN_STORAGE_FREE_GB="1")
    old, young = put(kept, 1, age=9), put(kept, 2)
    monkeypatch.setattr(space, "free_bytes", lambda *_: 1_000_000_000)
    kept.make_room(SIZE)
    assert not kept.has(old, SIZE)
    assert kept.has(young, SIZE)
    with pytest.raises(VolumeFull):
        kept.make_room(2 * SIZE)
    assert not kept.has(young, SIZE)


def test_a_read_only_volume_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = settings.read({"MODEL_DIR": str(tmp_path)})
    assert choose_folder(chosen) == tmp_path / "loras"
    monkeypatch.setattr(space, "is_writable", lambda _: False)
    assert not choose_folder(chosen).is_relative_to(tmp_path)


def test_places_share_no_key() -> None:
    keys = [("a", "b"), ("ab",), ("a", "b", "c"), ("a", "bc"), ("a", None, "b"), ("a", "_", "b")]
    assert len({make_place_key(*words) for words in keys}) == len(keys)
    assert make_place_key("a", None) == make_place_key("a", None)


def test_an_hour_later_a_place_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 10_000.0)
    assert Fetched("", 1, asked=10_000).is_fresh
    assert Fetched("", 1, asked=10_000 - 3599).is_fresh
    assert not Fetched("", 1, asked=10_000 - 3600).is_fresh
    assert not Fetched("", 1, asked=10_001).is_fresh
