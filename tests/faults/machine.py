"""What processes, disks and neighbours do wrong."""

import errno
import io
import os
import signal
import subprocess
import time
from pathlib import Path

from faults.network import Case, Expected
from faults.room import SHARD, Room

from worker.errors import VolumeFull
from worker.weights import space, temporary
from worker.weights.proof import RemoteFile
from worlds.hub import Fault

ENDS_S = 30.0


class NotPermitted(Exception):
    """This machine does not let us mount."""


def disk(room: Room, size: int) -> None:
    """Put the room's home on a file system of `size` bytes in memory, until the room is left."""
    room.home.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(room.home)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotPermitted(done.stderr.strip() or "mount failed")
    room.leaving.callback(subprocess.run, ["umount", "-l", str(room.home)], check=True)


def _children(process: int) -> list[int]:
    return [
        int(word)
        for path in Path(f"/proc/{process}/task").glob("*/children")
        for word in path.read_text().split()
    ]


def _assert_gone(processes: list[int]) -> None:
    """Assert that they end by themselves, soon."""
    deadline = time.monotonic() + 5
    while any(_runs(process) for process in processes):
        assert time.monotonic() < deadline, "the transfer process outlived its parent"
        time.sleep(0.01)


def _runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _killed(share: float, how: signal.Signals) -> "Case":
    def run(room: Room) -> None:
        # the parallel way asks twice for one byte before it starts
        room.hub.misbehave(
            Fault("stall-body", path=SHARD, times=None, at=share, skip=2 * room.parallel)
        )
        process = room.process()
        assert room.hub.stalled.wait(ENDS_S), "the transfer never got there"
        # the bytes up to there are on their way: wait until its part has them, where one grows
        if not room.parallel:
            _wait_for_part(room, share)
        children = _children(process.pid)
        assert bool(children) == room.parallel
        process.signal(how)
        process.ended()
        _assert_gone(children)
        left = _part_sizes(room)
        room.hub.faults.clear()
        room.hub.seen.clear()
        room.fetch()
        if not room.parallel:
            spans = [s.span for s in room.hub.requests("bytes", SHARD)]
            assert spans == [f"bytes={left[0]}-"], f"asked for {spans} beside {left} bytes"
        assert not room.parts(), "parts of a dead process were left"

    name = f"{how.name} at {share:.0%}"
    return Case(name, "recovered", run, "process", fast=share == 0.5)


def _part_sizes(room: Room) -> list[int]:
    """Return the bytes in each part of the shard; the other files' parts grow beside it."""
    return [part.stat().st_size for part in temporary.list_parts(room.into / SHARD)]


def _wait_for_part(room: Room, share: float) -> None:
    # the last bytes may wait in the buffer of its file object for more
    wanted = int(len(room.published[SHARD]) * share) - io.DEFAULT_BUFFER_SIZE
    deadline = time.monotonic() + ENDS_S
    while not any(size >= wanted for size in _part_sizes(room)):
        assert time.monotonic() < deadline, "the part does not grow"
        time.sleep(0.005)


def _killed_at(stop: str, name: str) -> Case:
    def run(room: Room) -> None:
        process = room.process(stop=stop)
        process.await_line(f"at {stop}")
        process.kill()
        room.fetch()
        assert not room.parts()

    return Case(f"SIGKILL {name}", "recovered", run, "process")


def _full_at_start(room: Room) -> None:
    """No byte is asked for, and the message says how much is missing."""
    disk(room, 512 * 1024)
    room.snapshot()
    missing = sum(map(len, room.published.values())) - space.free_bytes(room.home, room.settings)
    message = ""
    try:
        room.fetch()
    except VolumeFull as error:
        message = error.message
        raise
    finally:
        said = float(message.split(" MB")[0])
        assert abs(said - missing / 1e6) < 0.02, message
        assert not room.hub.requests("bytes"), "bytes were asked for before there was room"


def _full_in_the_middle(room: Room) -> None:
    """A neighbour takes the rest of the disk; nothing is left behind, and the next start works."""
    disk(room, 8 * 1024 * 1024)
    neighbour = room.home / "neighbour"

    def fill(file: RemoteFile, done: int) -> None:
        if file.path != SHARD or not done:
            return
        with neighbour.open("ab", buffering=0) as opened:
            try:
                while opened.write(bytes(4096)):
                    pass
            except OSError as error:
                assert error.errno == errno.ENOSPC  # noqa: PT017 - the loop ends by it

    # ranges that fail once make hf_transfer come back to a disk that is full by then
    room.hub.misbehave(Fault("cut", path=SHARD, times=3, skip=int(room.parallel)))
    try:
        room.fetch(fill)
    finally:
        assert not room.parts(), "parts were left on a full disk"
        neighbour.unlink()
        room.fetch()


def _over_quota(room: Room) -> None:
    def refuse(file: RemoteFile, _done: int) -> None:
        if file.path == SHARD:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    room.fetch(refuse)


def _volume_size(room: Room) -> None:
    disk(room, 64 * 1024 * 1024)
    (room.home / "other").write_bytes(bytes(3_000_000))
    room.environ["VOLUME_SIZE_GB"] = "0.004"
    room.fetch()


def _read_only(room: Room) -> None:
    disk(room, 8 * 1024 * 1024)
    subprocess.run(["mount", "-o", "remount,ro", str(room.home)], check=True)
    room.fetch()


def _read_only_with_all_there(room: Room) -> None:
    disk(room, 8 * 1024 * 1024)
    room.fetch()
    subprocess.run(["mount", "-o", "remount,ro", str(room.home)], check=True)
    room.hub.stop()
    room.fetch()


def _at_rest(name: str, damage: str) -> Case:
    def run(room: Room) -> None:
        room.fetch()
        path = room.into / SHARD
        data = bytearray(path.read_bytes())
        spot = room.rng.randrange(len(data))
        if damage == "truncated":
            path.write_bytes(data[:spot])
        elif damage == "flipped":
            data[spot] ^= 1 << room.rng.randrange(8)
            path.write_bytes(data)
        else:
            path.unlink()
        room.hub.seen.clear()
        room.fetch()
        taken = {s.path for s in room.hub.requests("bytes")}
        assert taken == {SHARD}, f"downloaded again: {taken}"

    return Case(name, "recovered", run, "disk")


def _orphans(room: Room) -> None:
    """Parts of a dead process of this machine go at once, those of another when they are old."""
    room.into.mkdir(parents=True)
    target = room.into / "gone.safetensors"
    mine = temporary.make_path(target)
    process = subprocess.run(
        ["/bin/sh", "-c", "echo $$"], capture_output=True, text=True, check=True
    )
    words = mine.name.rpartition(".h")
    machine = words[2].split("-")[0]
    dead = mine.with_name(f"{words[0]}.h{machine}-{process.stdout.strip()}-12345-1.part")
    foreign = mine.with_name(f"{words[0]}.hffffffff-1-1-1.part")
    old = mine.with_name(f"{words[0]}.hffffffff-1-2-1.part")
    for part in (mine, dead, foreign, old):
        part.write_bytes(bytes(10))
    os.utime(old, (0, 0))
    assert temporary.sweep(room.home) == 20
    assert sorted(room.parts()) == sorted([mine, foreign])
    room.fetch()


def _stale_lock(room: Room) -> None:
    room.snapshot()
    (room.into / SHARD).parent.mkdir(parents=True)
    (room.into / SHARD).with_name(f".{Path(SHARD).name}.lock").touch()
    room.fetch()


def _stopped_neighbour(room: Room) -> None:
    """A process that holds the lock and sleeps for ever does not hold up another."""
    process = room.process(stop="before shard 1")
    process.await_line("at before shard 1")
    process.signal(signal.SIGSTOP)
    room.fetch()


def together(room: Room, count: int, *, locks: bool) -> None:
    """Have several processes do the same at once."""
    processes = [room.process(wait=True, locks=locks) for _ in range(count)]
    for process in processes:
        process.await_line("started")
    for process in processes:
        process.go()
    for process in processes:
        said = process.ended()
        assert said == "done", said


def _together(count: int, *, locks: bool) -> Case:
    def run(room: Room) -> None:
        together(room, count, locks=locks)
        assert not room.parts()
        starts = [s for s in room.hub.requests("bytes", SHARD) if s.span in (None, "bytes=0-0")]
        most = 2 if room.parallel else 1  # the parallel way asks twice for one byte first
        assert not locks or len(starts) <= most, f"downloaded {len(starts)} times"

    flock = "true" if locks else "a no-op"
    name = f"{count} processes, flock {flock}"
    return Case(name, "recovered", run, "process", fast=count == 2)


FULL: Expected = "VOLUME_FULL"
CASES: tuple[Case, ...] = (
    _killed(0.10, signal.SIGKILL),
    _killed(0.50, signal.SIGKILL),
    _killed(0.99, signal.SIGKILL),
    _killed(0.50, signal.SIGTERM),
    _killed_at("before shard 1", "after the hash, before the rename"),
    _killed_at("after shard 1", "between files"),
    Case("disk full at start", FULL, _full_at_start, "disk"),
    Case("disk full in the middle", FULL, _full_in_the_middle, "disk"),
    Case("quota used up (EDQUOT)", FULL, _over_quota, "disk"),
    Case("VOLUME_SIZE_GB used up", FULL, _volume_size, "disk"),
    Case("read-only volume", "WEIGHTS_UNAVAILABLE", _read_only, "disk"),
    Case("read-only volume, all files there", "recovered", _read_only_with_all_there, "disk"),
    _at_rest("file truncated at rest", "truncated"),
    _at_rest("file flipped at rest", "flipped"),
    _at_rest("missing shard", "missing"),
    Case("orphans of dead processes", "recovered", _orphans, "process"),
    Case("stale lock file", "recovered", _stale_lock, "process"),
    Case(
        "lock held by a stopped process",
        "recovered",
        _stopped_neighbour,
        "process",
        fast=False,
        stalls=True,
    ),
    _together(2, locks=True),
    _together(2, locks=False),
    _together(8, locks=True),
    _together(8, locks=False),
)
