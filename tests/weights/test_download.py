"""Files come from a hub whole, proven and once; waiting, secrets and room are kept in bounds."""

import email.utils
import json
import os
import random
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from faults.room import FAST, REPOSITORY, SHARD, TOKEN, Room, room

from worker import settings
from worker.errors import HubUnreachable, VolumeFull, WeightsUnavailable
from worker.weights import download, metadata, retry, space, temporary
from worker.weights.download import fetch_snapshot
from worker.weights.proof import RemoteFile, digest_file, find_difference
from worker.weights.retry import AttemptFailed, Patience, WrongBytes
from worker.weights.snapshot import find_file
from worlds.hub import Entry, Fault

# where requests are counted, a busy machine must not look like a hub that stands still
UNHURRIED = replace(FAST, connect_s=30, stall_s=30)


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Room]:
    with room(tmp_path / "home", seed=1) as given:
        given.patience = UNHURRIED
        yield given


@pytest.fixture(params=[0, 1], ids=["hf_transfer", "one connection"])
def both(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Room]:
    with room(tmp_path / "home", seed=request.param) as given:
        given.patience = UNHURRIED
        yield given


def test_a_snapshot_arrives_whole_with_our_own_sha256(both: Room) -> None:
    snapshot = both.snapshot()
    found = fetch_snapshot(snapshot, snapshot.files, both.into, both.settings)
    assert {name: p.path.read_bytes() for name, p in found.items()} == both.published
    assert all(
        p.sha256 == digest_file(p.path, blob_id=False).sha256 and p.disposable
        for p in found.values()
    )


def test_progress_ends_at_every_files_size(both: Room) -> None:
    reported: dict[str, list[int]] = {}
    both.fetch(lambda file, done: reported.setdefault(file.path, []).append(done))
    assert {name: done[-1] for name, done in reported.items()} == {
        name: len(data) for name, data in both.published.items()
    }
    assert all(done == sorted(done) for done in reported.values())


def test_what_is_there_and_right_is_not_fetched_again(made: Room) -> None:
    made.fetch()
    made.hub.seen.clear()
    made.fetch()
    assert not made.hub.requests()


def test_the_token_goes_to_the_hub_alone(both: Room) -> None:
    both.fetch()
    at_hub = [s for s in both.hub.requests() if s.host == both.hub.endpoint]
    elsewhere = [s for s in both.hub.requests() if s.host != both.hub.endpoint]
    assert {s.authorization for s in at_hub} == {f"Bearer {TOKEN}"}
    assert elsewhere
    assert {s.authorization for s in elsewhere} == {None}


def test_a_netrc_password_is_not_sent(
    made: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.2 login someone password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    made.fetch()
    storage = [s for s in made.hub.requests() if s.host == made.hub.storage]
    assert {s.authorization for s in storage} == {None}


def test_no_token_and_no_address_are_in_the_log(
    made: Room, capfd: pytest.CaptureFixture[str]
) -> None:
    made.hub.misbehave(Fault("reset", path=SHARD, times=None, at=0.1))
    with pytest.raises(HubUnreachable):
        made.fetch()
    said = "".join(capfd.readouterr())
    assert "retry" in said
    assert TOKEN not in said
    assert "signature" not in said
    assert "127.0.0" not in said


def test_a_range_is_read_exactly(made: Room) -> None:
    snapshot = made.snapshot()
    shard = find_file(snapshot, SHARD)
    assert snapshot.read_range(shard, 8, 1000) == made.published[SHARD][8:1000]
    assert snapshot.read_range(shard, 0, shard.size) == made.published[SHARD]
    assert snapshot.read_range(shard, 5, 5) == b""


def test_ranges_share_a_connection_to_each_host(made: Room) -> None:
    snapshot = made.snapshot()
    shard = find_file(snapshot, SHARD)
    before = len(made.hub.connections)
    for start in range(0, 100, 10):
        snapshot.read_range(shard, start, start + 10)
    assert len(made.hub.connections) - before <= 2


@pytest.mark.parametrize("act", ["no-range", "wrong-range", "cut", "short", "long", "gzip"])
def test_a_range_that_is_not_the_one_asked_for_is_asked_for_again(made: Room, act: str) -> None:
    snapshot = made.snapshot()
    made.hub.misbehave(Fault(act, path=SHARD))  # type: ignore[arg-type]
    shard = find_file(snapshot, SHARD)
    assert snapshot.read_range(shard, 100, 9000) == made.published[SHARD][100:9000]
    assert len(made.hub.requests("bytes", SHARD)) == 3, "one more, as http is read twice"


def test_a_flipped_byte_in_a_range_is_noticed_over_http(made: Room) -> None:
    snapshot = made.snapshot()
    shard = find_file(snapshot, SHARD)
    made.hub.misbehave(Fault("flip", path=SHARD))
    assert snapshot.read_range(shard, 100, 9000) == made.published[SHARD][100:9000]
    assert len(made.hub.requests("bytes", SHARD)) == 4


def test_a_small_file_is_read_with_proof(made: Room) -> None:
    snapshot = made.snapshot()
    index = find_file(snapshot, "model_index.json")
    made.hub.misbehave(Fault("flip", path="model_index.json"))
    assert json.loads(snapshot.read_file(index)) == {"_class_name": "QwenImagePipeline"}
    assert len(made.hub.requests("bytes", "model_index.json")) == 2


def test_a_resumed_download_asks_for_the_rest_only(made: Room) -> None:
    made.hub.misbehave(Fault("cut", path=SHARD, at=0.4))
    made.fetch()
    first, second = made.hub.requests("bytes", SHARD)
    assert first.span is None
    assert second.span == f"bytes={int(len(made.published[SHARD]) * 0.4)}-"
    assert len({s.path for s in made.hub.requests("resolve", SHARD)}) == 1
    assert len(made.hub.requests("resolve", SHARD)) == 2, "a signed address was used twice"


def test_an_attempt_that_moves_on_does_not_count(
    made: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "PROGRESS_BYTES", 1000)
    made.patience = replace(made.patience, attempts=1)
    made.hub.misbehave(Fault("cut", path=SHARD, times=5, at=0.3))
    made.fetch()
    assert not made.wrong()
    assert not made.missing()


def test_a_flipped_byte_is_downloaded_twice_at_most(made: Room) -> None:
    made.hub.misbehave(Fault("flip", path=SHARD, times=None))
    with pytest.raises(HubUnreachable, match="not the ones that it recorded"):
        made.fetch()
    assert len(made.hub.requests("bytes", SHARD)) == 2


@pytest.mark.parametrize(
    ("status", "advice"), [(401, "HF_TOKEN"), (403, "licence"), (404, "MODEL_REVISION")]
)
def test_what_will_not_change_is_asked_once_and_says_what_to_do(
    made: Room, status: int, advice: str
) -> None:
    made.hub.misbehave(Fault("status", "info", times=None, status=status))
    with pytest.raises(WeightsUnavailable, match=advice) as refused:
        made.snapshot()
    assert not refused.value.retryable
    assert len(made.hub.requests("info")) == 1


def test_a_revision_keeps_its_commit(made: Room) -> None:
    first = made.snapshot().commit
    made.hub.add(REPOSITORY, {"model_index.json": b"{}"})
    assert made.snapshot().commit == first
    assert len(made.hub.requests("info")) == 1


def test_a_commit_that_is_gone_is_forgotten(made: Room) -> None:
    """A history that was rewritten does not fail forever."""
    first = made.snapshot()
    newer = made.hub.add(REPOSITORY, {"model_index.json": b"{}"})
    made.hub.commits[REPOSITORY][first.commit].clear()
    with pytest.raises(WeightsUnavailable, match="MODEL_REVISION"):
        made.fetch()
    assert made.snapshot().commit == newer


def test_another_revision_is_another_commit(made: Room) -> None:
    other = made.hub.add(REPOSITORY, {"model_index.json": b"{}"}, branch="v2")
    found = metadata.resolve(REPOSITORY, "v2", made.settings, patience=made.patience)
    assert found.commit == other != made.snapshot().commit


def test_a_file_that_would_leave_its_folder_is_refused(made: Room) -> None:
    made.hub.add(REPOSITORY, {"../outside.json": b"{}"})
    with pytest.raises(WeightsUnavailable, match="outside its folder"):
        made.snapshot()


def test_a_hub_that_gives_no_digest_proves_nothing(
    made: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    sibling = Entry.sibling
    monkeypatch.setattr(
        Entry, "sibling", lambda self: {k: v for k, v in sibling(self).items() if k != "blobId"}
    )
    with pytest.raises(HubUnreachable, match="digest"):
        made.snapshot()


@pytest.mark.parametrize("name", ["no-owner", "a b/c", "a/b--c..d"])
def test_what_is_no_repository_name_is_refused(made: Room, name: str) -> None:
    with pytest.raises(WeightsUnavailable):
        metadata.resolve(name, None, made.settings, patience=made.patience)


def test_retry_after_is_read_as_seconds_and_as_a_date() -> None:
    soon = email.utils.format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    waits = []
    for header in ("7", soon, "nonsense", None):
        error = retry.classify_status(429, header, "x")
        assert isinstance(error, AttemptFailed)
        waits.append(error.wait_s)
    assert waits[0] == 7
    assert waits[1] is not None
    assert 90 < waits[1] <= 100
    assert waits[2:] == [None, None]


def test_the_hub_may_not_make_us_wait_longer_than_the_cap() -> None:
    patience = Patience(attempts=2, longest_asked_wait_s=0.05)
    start = time.monotonic()
    with pytest.raises(AttemptFailed):  # noqa: PT012 - the loop is what is tested
        for attempt in patience.iterate_attempts():
            with attempt:
                raise AttemptFailed("busy", wait_s=3600)
    assert time.monotonic() - start < 3600 / 2


def test_only_again_is_tried_again() -> None:
    calls = []
    with pytest.raises(ValueError, match="a bug"):  # noqa: PT012 - the loop is what is tested
        for attempt in Patience().iterate_attempts():
            with attempt:
                calls.append(1)
                raise ValueError("a bug")
    assert len(calls) == 1


def test_wrong_bytes_end_before_the_attempts_do() -> None:
    calls = []
    with pytest.raises(WrongBytes):  # noqa: PT012 - the loop is what is tested
        for attempt in Patience(attempts=9, first_wait_s=0.001).iterate_attempts():
            with attempt:
                calls.append(1)
                raise WrongBytes("no")
    assert len(calls) == 2


def test_room_is_asked_for_with_the_reserve(tmp_path: Path) -> None:
    free = space.free_bytes(tmp_path, settings.read({}))
    read = settings.read({"MIN_STORAGE_FREE_GB": str(free / 1e9 - 1)})
    space.require_space(500_000_000, tmp_path, read)
    with pytest.raises(VolumeFull, match=r"more disk space is needed: 3\.00 GB to write"):
        space.require_space(3_000_000_000, tmp_path, read)


def test_the_quota_counts_all_that_the_home_holds_and_links_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(space, "_find_volume", lambda _folder: Path("/"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").write_bytes(bytes(3_000_000))
    (tmp_path / "link").hardlink_to(tmp_path / "other/file")
    used = space.count_used_bytes(tmp_path)
    assert 3_000_000 <= used < 3_100_000
    read = settings.read({"VOLUME_SIZE_GB": "0.01", "MODEL_DIR": str(tmp_path)})
    assert space.free_bytes(tmp_path, read) == 10_000_000 - used


def test_a_proof_names_the_difference(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"hello")
    found = digest_file(path, blob_id=True)
    # git hash-object gives this for "hello" without a line end
    assert found.blob_id == "b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0"
    assert find_difference(found, RemoteFile("file", 5, blob_id=found.blob_id)) is None
    assert find_difference(found, RemoteFile("file", 6)) == "5 bytes instead of 6"
    assert find_difference(found, RemoteFile("file", 5, sha256="0" * 64)) is not None
    assert find_difference(found, RemoteFile("file", 5, blob_id="0" * 40)) is not None


def test_a_part_is_never_an_orphan_while_its_process_runs(tmp_path: Path) -> None:
    part = temporary.make_path(tmp_path / "model.safetensors")
    part.touch()
    os.utime(part, (0, 0))
    assert not temporary.is_orphan(part)
    assert temporary.sweep(tmp_path) == 0
    assert part.exists()


def test_unique_names_are_unique(tmp_path: Path) -> None:
    names = {temporary.make_path(tmp_path / "a") for _ in range(100)}
    assert len(names) == 100


def test_a_random_snapshot_equals_itself(tmp_path: Path) -> None:
    """Whatever the sizes, on either way, around the border between them."""
    rng = random.Random(7)
    with room(tmp_path / "home", seed=0) as made:
        sizes = [0, 1, 299_999, 300_000, 300_001, 400_000, 599_999, rng.randrange(10**6)]
        made.published = {f"vae/{n}.bin": rng.randbytes(size) for n, size in enumerate(sizes)}
        made.hub.add(REPOSITORY, made.published)
        made.fetch()
        assert not made.wrong()
        assert not made.missing()
