"""The transfer process may die, stand still or fail: the download notices and goes on."""

import errno
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from faults.room import FAST, REPOSITORY, SHARD, Room, room

from worker.errors import HubUnreachable
from worker.weights import metadata, parallel
from worker.weights.download import HubSnapshot
from worker.weights.proof import RemoteFile
from worker.weights.retry import AttemptFailed
from worker.weights.snapshot import ReportProgress, find_file, ignore_progress
from worlds.hub import Fault

# nothing here is to end because the time of a stall has passed
PATIENT = replace(FAST, connect_s=60, stall_s=600)
ENDS_S = 60.0
PROBE = "bytes=0-0"
BLOCK = 4096
RANGE = 150 * BLOCK


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Room]:
    with room(tmp_path / "home", seed=0) as given:
        assert given.parallel
        given.patience = PATIENT
        yield given


def in_time(action: Callable[[], object]) -> None:
    """Do it in a thread, so that what never ends fails the test and does not hold it."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            action()
        except BaseException as error:  # noqa: BLE001 - raised in the test's own thread
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(ENDS_S)
    assert not thread.is_alive(), "still waiting"
    if raised:
        raise raised[0]


@pytest.fixture
def transfers(monkeypatch: pytest.MonkeyPatch) -> list["subprocess.Popen[bytes]"]:
    """The transfer processes of this test, in the order in which they start."""
    started: list[subprocess.Popen[bytes]] = []

    class Noted(subprocess.Popen[bytes]):
        def __init__(self, *args: Any, **named: Any) -> None:
            super().__init__(*args, **named)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Noted)
    return started


def spans(made: Room, path: str = SHARD) -> list[str | None]:
    return [seen.span for seen in made.hub.requests("bytes", path)]


def fetch(
    made: Room, snapshot: HubSnapshot | None = None, progress: ReportProgress = ignore_progress
) -> None:
    """Fetch the first shard alone, and find it whole, with nothing left beside it."""
    snapshot = snapshot or made.snapshot()
    in_time(lambda: snapshot.fetch_file(find_file(snapshot, SHARD), made.into, progress))
    assert (made.into / SHARD).read_bytes() == made.published[SHARD]
    assert not made.parts()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_a_transfer_process_that_dies_alone_ends_the_transfer_and_not_the_download(
    made: Room, how: signal.Signals, transfers: list["subprocess.Popen[bytes]"]
) -> None:
    """Its end is noticed at once, not by the watchdog, and what it wrote is thrown away."""
    made.hub.misbehave(Fault("stall-body", path=SHARD, times=None, skip=2))

    def end() -> None:
        assert made.hub.stalled.wait(ENDS_S)
        made.hub.faults.clear()
        transfers[0].send_signal(how)

    killer = threading.Thread(target=end)
    killer.start()
    fetch(made)
    killer.join()
    assert transfers[0].returncode == -how


@pytest.mark.parametrize("program", ["exit 0", "exit 1", "echo a panic >&2", "cat >/dev/null"])
def test_a_transfer_process_that_does_nothing_leaves_the_work_to_the_sure_way(
    made: Room,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    program: str,
) -> None:
    """What it says beside its reports is not the log's."""
    script = tmp_path / "program"
    script.write_text(f"#!/bin/sh\n{program}\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    fetch(made)
    assert spans(made) == [PROBE, PROBE, None]
    assert "a panic" not in capfd.readouterr().err


def test_progress_is_told_while_the_transfer_runs(made: Room) -> None:
    """Bytes are counted as they come, never more than the file has, and all of them at the end."""
    made.hub.misbehave(Fault("stall-body", path=SHARD, skip=3))
    reported: list[int] = []
    early: list[int] = []

    def progress(file: RemoteFile, done: int) -> None:
        assert file.path == SHARD
        reported.append(done)
        if done and not early:
            early.append(done)
            made.hub.released.set()

    fetch(made, progress=progress)
    size = len(made.published[SHARD])
    assert 0 < early[0] < size
    assert reported == sorted(reported)
    assert reported[-1] == size


def test_a_range_that_fails_is_asked_for_again_by_the_transfer_itself(made: Room) -> None:
    """Losing a shard of gigabytes to one of its ranges would cost more than all retries of it."""
    made.hub.misbehave(Fault("status", path=SHARD, times=parallel.RANGE_RETRIES, skip=2))
    fetch(made)
    assert spans(made).count(PROBE) == 2, "ours and hf_transfer's own: a single transfer"
    assert None not in spans(made)


@pytest.mark.parametrize("workers", ["1", "2", "4"])
def test_every_number_of_workers_takes_the_parallel_way(made: Room, workers: str) -> None:
    made.environ["DOWNLOAD_WORKERS"] = workers
    fetch(made)
    asked = spans(made)
    assert asked[:2] == [PROBE, PROBE]
    assert None not in asked
    starts = [int(str(span).removeprefix("bytes=").partition("-")[0]) for span in asked[2:]]
    assert sorted(starts) == list(range(0, len(made.published[SHARD]), 200_000))


def test_every_range_goes_straight_to_the_storage_and_without_the_token(made: Room) -> None:
    """The hub is asked once; the signed address is what the transfer process works with."""
    fetch(made)
    assert len(made.hub.requests("resolve", SHARD)) == 1
    asked = made.hub.requests("bytes", SHARD)
    assert len(asked) > 4
    assert {seen.host for seen in asked} == {made.hub.storage}
    assert {seen.authorization for seen in asked} == {None}


def transfer(made: Room, part: Path, report: Callable[[int], None] = lambda _done: None) -> None:
    """Have one transfer write to `part`."""
    snapshot = made.snapshot()
    shard = find_file(snapshot, SHARD)
    parallel.download(
        snapshot.hub,
        snapshot.hub.make_address(snapshot.repository, snapshot.commit, shard.path),
        shard,
        part,
        made.patience,
        report,
        workers=1,
        range_bytes=200_000,
    )


def test_reports_that_come_at_once_are_told_one_after_the_other(
    made: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None is of more than the file has, the last one of all of it."""
    script = tmp_path / "program"
    script.write_text("#!/bin/sh\ncat >/dev/null\nprintf '7\\n99999999999\\ndone\\n'\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    reported: list[int] = []
    transfer(made, tmp_path / "part", reported.append)
    size = len(made.published[SHARD])
    assert reported == [7, size, size]


def test_every_report_gives_the_transfer_its_whole_time_again(
    made: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the transfer takes as a whole."""
    made.hub.misbehave(Fault("stall-body", path=SHARD, skip=3))
    now, waits = [0.0], list[float]()

    def wait(*given: Any) -> Any:
        waits.append(given[3])
        ready = select.select(*given)
        now[0] += 500
        return ready

    monkeypatch.setattr(parallel, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(parallel, "select", SimpleNamespace(select=wait))
    fetch(made, progress=lambda _file, _done: made.hub.released.set())
    assert len(waits) > 1, "the body stood still until the first report"
    assert set(waits) == {PATIENT.stall_s}


def test_a_disk_that_refuses_is_told_with_its_own_number(made: Room) -> None:
    with pytest.raises(OSError) as refused:  # noqa: PT011 - its number is what is tested
        transfer(made, Path("/sys/part"))
    assert refused.value.errno in (errno.EACCES, errno.EROFS, errno.EPERM)


def test_another_error_of_the_system_is_a_failed_transfer(made: Room) -> None:
    """A connection's number must not be taken for the disk's."""
    with pytest.raises(AttemptFailed, match="failed"):
        transfer(made, made.home / "no such folder" / "part")


def aligned(made: Room) -> HubSnapshot:
    """Publish a shard of whole blocks, in ranges of whole blocks."""
    made.published[SHARD] = made.rng.randbytes(4 * RANGE)
    made.hub.add("acme/painter", made.published)
    return replace(made.snapshot(), range_bytes=RANGE)


@pytest.mark.parametrize("blocks", [1, 20, 150])
def test_a_range_that_was_not_written_whole_is_left_to_the_sure_way_at_once(
    made: Room, blocks: int
) -> None:
    """One missing block is a hole already: hf_transfer would not notice the next time either."""
    snapshot = aligned(made)
    kept = (RANGE // BLOCK - blocks) * BLOCK / RANGE
    made.hub.misbehave(Fault("short", path=SHARD, at=kept, skip=2))
    fetch(made, snapshot)
    assert spans(made).count(PROBE) == 2
    assert spans(made).count(None) == 1


def test_a_transfer_that_left_a_hole_was_an_attempt(made: Room) -> None:
    """Where it is the only one, the sure way is not taken."""
    made.patience = replace(PATIENT, attempts=1)
    snapshot = aligned(made)
    made.hub.misbehave(Fault("short", path=SHARD, at=0.5, skip=2))
    with pytest.raises(HubUnreachable, match="left holes in the file"):
        fetch(made, snapshot)
    assert None not in spans(made)


def test_wrong_bytes_without_a_hole_are_the_hubs(made: Room) -> None:
    """A file with every block in its place is not one that the disk refused to take."""
    snapshot = aligned(made)
    made.hub.misbehave(Fault("flip", path=SHARD, times=None, skip=2))
    with pytest.raises(HubUnreachable, match="not the ones that it recorded"):
        fetch(made, snapshot)
    assert None not in spans(made), "the sure way would get the same bytes"
    assert not made.parts()


def test_where_no_process_can_be_started_the_sure_way_is_taken(
    made: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nothing"))
    fetch(made)
    assert spans(made) == [PROBE, PROBE, None]


def test_a_transfer_process_that_reads_no_request_has_ended(
    made: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Deaf(subprocess.Popen[bytes]):
        def __init__(self, *args: Any, **named: Any) -> None:
            super().__init__(*args, **named)
            assert self.stdin is not None
            self.stdin.close()
            reader, writer = os.pipe()
            os.close(reader)
            self.stdin = os.fdopen(writer, "wb", buffering=0)

    monkeypatch.setattr(subprocess, "Popen", Deaf)
    fetch(made)
    assert spans(made) == [PROBE, PROBE, None]


def test_a_time_that_is_over_is_not_waited_for(
    made: Room,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    transfers: list["subprocess.Popen[bytes]"],
) -> None:
    """The machine itself may have stood still; the transfer is ended, and its end not awaited."""
    hours = iter(range(0, 3600 * 1000, 3600))
    monkeypatch.setattr(parallel, "time", SimpleNamespace(monotonic=lambda: next(hours)))
    with pytest.raises(AttemptFailed, match="the transfer stalled"):
        transfer(made, tmp_path / "part")
    assert transfers[0].returncode == -signal.SIGKILL


@pytest.mark.parametrize(("workers", "transfers"), [("1", 2), ("2", 1)])
def test_one_of_several_workers_may_ask_for_a_range_again(
    made: Room, workers: str, transfers: int
) -> None:
    """A single one would leave nobody to go on with the other ranges meanwhile."""
    made.environ["DOWNLOAD_WORKERS"] = workers
    made.hub.misbehave(Fault("status", path=SHARD, skip=2))
    fetch(made)
    assert spans(made).count(PROBE) == 2 * transfers


@pytest.mark.parametrize("less", [0, 1])
def test_a_file_of_16_mebibytes_or_more_comes_in_ranges_of_8(made: Room, less: int) -> None:
    made.published = {"model_index.json": b"{}", SHARD: bytes((16 << 20) - less)}
    made.hub.add(REPOSITORY, made.published)
    snapshot = metadata.resolve(REPOSITORY, None, made.settings, patience=made.patience)
    snapshot.fetch_file(find_file(snapshot, SHARD), made.into)
    assert not made.wrong()
    ranges = {PROBE, "bytes=0-8388607", "bytes=8388608-16777215"}
    assert set(spans(made)) == ({None} if less else ranges)
