"""Digests of local files are remembered for as long as the files are what they were."""

import errno
import hashlib
import json
import os
import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import WeightsUnavailable
from worker.weights import digest_cache
from worker.weights.digest_cache import DigestCache, read_state
from worker.weights.names import LONGEST_FILE_NAME, make_file_name
from worker.weights.proof import Digests, digest_file
from worker.weights.snapshot import LocalSnapshot, find_file

HOUR_NS = 3_600_000_000_000
WORDS = st.text("abAB.-_%@/~ é", min_size=1, max_size=6)
NAMES = st.from_regex(re.compile(r"[a-z0-9](-?[a-z0-9._])*", re.ASCII), fullmatch=True)
REPOSITORIES = st.builds("{}/{}".format, NAMES, NAMES)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one file that was written an hour ago, as far as a date can be set."""
    at = tmp_path / "mine"
    at.mkdir()
    (at / "a.bin").write_bytes(b"one")
    past = time.time_ns() - HOUR_NS
    os.utime(at / "a.bin", ns=(past, past))
    return at


def settled(path: Path) -> None:
    """Wait until the file's last change is no longer of this tick of the clock."""
    while max(read_state(path)[1:]) + digest_cache.TICK_NS > time.time_ns():
        time.sleep(0)


def digest(folder: Path, home: Path) -> str:
    """Return a file's digest as a new start would."""
    snapshot = LocalSnapshot(folder, "mine", remembered=DigestCache(folder, home))
    return snapshot.digest(find_file(snapshot, "a.bin"))


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def record(home: Path) -> Path:
    (only,) = (home / digest_cache.DIGESTS_FOLDER).iterdir()
    return only


def test_what_was_read_is_believed_until_it_changes(folder: Path, tmp_path: Path) -> None:
    """The record itself is used: a wrong one is returned for as long as the file stays."""
    settled(folder / "a.bin")
    assert digest(folder, tmp_path) == sha256(b"one")
    kept = json.loads(record(tmp_path).read_bytes())
    kept["files"]["a.bin"]["sha256"] = "0" * 64
    record(tmp_path).write_text(json.dumps(kept))
    assert digest(folder, tmp_path) == f"sha256:{'0' * 64}"
    dates = (folder / "a.bin").stat()
    (folder / "a.bin").write_bytes(b"two")
    os.utime(folder / "a.bin", ns=(dates.st_atime_ns, dates.st_mtime_ns))
    assert digest(folder, tmp_path) == sha256(b"two")


def test_a_digest_is_kept_where_nothing_was_kept_before(folder: Path, tmp_path: Path) -> None:
    settled(folder / "a.bin")
    assert digest(folder, tmp_path / "not/yet") == sha256(b"one")
    assert re.fullmatch(r"[0-9a-f]{20}\.json", record(tmp_path / "not/yet").name)


def test_a_folder_may_have_a_name_that_is_no_text(folder: Path, tmp_path: Path) -> None:
    named = folder.rename(folder.with_name(os.fsdecode(b"mine-\xff")))
    settled(named / "a.bin")
    assert digest(named, tmp_path) == sha256(b"one")
    kept = json.loads(record(tmp_path).read_bytes())
    assert kept["folder"] == named.name


@pytest.mark.parametrize("broken", ["{", "[]", '{"folder": "mine"}', '{"folder": 1, "files": 2}'])
def test_a_broken_record_is_none(broken: str, folder: Path, tmp_path: Path) -> None:
    settled(folder / "a.bin")
    digest(folder, tmp_path)
    record(tmp_path).write_text(broken)
    assert digest(folder, tmp_path) == sha256(b"one")
    assert json.loads(record(tmp_path).read_bytes())["folder"] == "mine"


@pytest.mark.parametrize("value", [None, 3])
@pytest.mark.parametrize("field", ["state", "sha256"])
def test_half_an_entry_is_none(field: str, value: object, folder: Path, tmp_path: Path) -> None:
    settled(folder / "a.bin")
    digest(folder, tmp_path)
    kept = json.loads(record(tmp_path).read_bytes())
    kept["files"]["a.bin"][field] = value
    record(tmp_path).write_text(json.dumps(kept))
    assert digest(folder, tmp_path) == sha256(b"one")


def test_what_is_remembered_of_a_file_proves_it(folder: Path, tmp_path: Path) -> None:
    settled(folder / "a.bin")
    for _ in range(2):
        snapshot = LocalSnapshot(folder, "mine", remembered=DigestCache(folder, tmp_path))
        proven = snapshot.fetch_file(find_file(snapshot, "a.bin"), tmp_path)
        assert f"sha256:{proven.sha256}" == sha256(b"one")
    assert record(tmp_path).exists()


def test_what_a_link_says_of_a_file_is_not_remembered(folder: Path, tmp_path: Path) -> None:
    """It is read at every start, and compared."""
    name = digest_file(folder / "a.bin", blob_id=True).blob_id
    assert name is not None
    (tmp_path / name).write_bytes(b"one")
    (folder / "linked.json").symlink_to(tmp_path / name)
    settled(tmp_path / name)
    for _ in range(2):
        snapshot = LocalSnapshot(folder, "mine", remembered=DigestCache(folder, tmp_path))
        proven = snapshot.fetch_file(find_file(snapshot, "linked.json"), tmp_path)
        assert f"sha256:{proven.sha256}" == sha256(b"one")
    assert not (tmp_path / digest_cache.DIGESTS_FOLDER).exists()


def test_what_may_change_under_the_same_date_is_not_kept(folder: Path, tmp_path: Path) -> None:
    """A file of this tick, or of the future, could be written once more unseen."""
    ahead = time.time_ns() + HOUR_NS
    os.utime(folder / "a.bin", ns=(ahead, ahead))
    assert digest(folder, tmp_path) == sha256(b"one")
    assert not (tmp_path / digest_cache.DIGESTS_FOLDER).exists()


def test_folders_have_records_of_their_own(folder: Path, tmp_path: Path) -> None:
    """Each by its way from MODEL_DIR, a link by what it leads to."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.bin").write_bytes(b"two")
    settled(other / "a.bin")
    link = tmp_path / "link"
    link.symlink_to(folder)
    found = [digest(at, tmp_path) for at in (folder, other, link)]
    assert found == [sha256(b"one"), sha256(b"two"), sha256(b"one")]
    assert len(list((tmp_path / digest_cache.DIGESTS_FOLDER).iterdir())) == 2


def test_a_file_that_changes_while_it_is_used_is_refused(folder: Path, tmp_path: Path) -> None:
    """Its digest would name other bytes than those that are taken."""
    snapshot = LocalSnapshot(folder, "mine")
    file = find_file(snapshot, "a.bin")
    assert snapshot.digest(file) == sha256(b"one")
    (folder / "a.bin").write_bytes(b"two")
    with pytest.raises(WeightsUnavailable, match="changed while it was read"):
        snapshot.fetch_file(file, tmp_path)


@given(REPOSITORIES, WORDS, REPOSITORIES, WORDS)
def test_what_differs_never_shares_a_name(a: str, at: str, b: str, bt: str) -> None:
    """Whatever signs a revision has; a repository differs in more than its case."""
    is_one = (a, at) == (b, bt)
    assert (make_file_name(a, at) == make_file_name(b, bt)) == is_one
    assert make_file_name(a.upper(), at) == make_file_name(a, at)


@given(REPOSITORIES, st.text(min_size=1, max_size=300))
def test_every_name_is_a_files_name(repository: str, revision: str) -> None:
    """One part of a path, without what a file system or a shell reads as more, and not too long."""
    assert re.fullmatch(r"[A-Za-z0-9_.~@%-]+", make_file_name(repository, revision))
    assert len(make_file_name(repository, revision)) <= LONGEST_FILE_NAME


def test_long_revisions_of_one_beginning_differ() -> None:
    assert make_file_name("a/b", "x" * 200 + "1") != make_file_name("a/b", "x" * 200 + "2")
    assert make_file_name("a/b") == make_file_name("a/b", "main") == "a--b"
    assert make_file_name("Org/Name", "Feat/x") == "org--name@Feat%2Fx"


def test_a_name_stays_what_it_was_on_a_volume() -> None:
    """What an earlier version recorded there is found by its name."""
    digest = hashlib.sha256(b"org--name@" + b"x" * 200).hexdigest()[:16]
    assert make_file_name("org/name", "x" * 200) == f"org--name@{'x' * 93}~{digest}"
    for length, is_cut in ((110, False), (111, True)):
        assert ("~" in make_file_name("org/name", "x" * length)) == is_cut
    digest = hashlib.sha256(b"mine").hexdigest()[:20]
    assert DigestCache(Path("/home/mine"), Path("/home"))._record.name == f"{digest}.json"


@pytest.mark.parametrize(
    ("changed", "linked", "past", "kept"),
    [(1000, 5, 0, True), (1000, 5, -1, False), (5, 1000, 0, True), (5, 1000, -1, False)],
)
def test_a_state_is_kept_from_a_tick_after_its_last_change(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changed: int,
    linked: int,
    past: int,
    *,
    kept: bool,
) -> None:
    """Of its bytes or of its inode; how large a file is does not matter."""
    monkeypatch.setattr(time, "time_ns", lambda: 1000 + digest_cache.TICK_NS + past)
    state = (1 << 62, changed, linked)
    DigestCache(tmp_path / "mine", tmp_path).keep("a", state, "0")
    found = DigestCache(tmp_path / "mine", tmp_path).read_sha256("a", state)
    assert found == ("0" if kept else None)


def test_every_file_of_a_folder_is_kept_whatever_its_name(tmp_path: Path) -> None:
    """The folder's may be no text in any encoding."""
    folder, home = Path(os.fsdecode(bytes(tmp_path / "mine") + b"\xff")), tmp_path / "not/there"
    for name in ("a", "b"):
        DigestCache(folder, home).keep(name, (1, 2, 3), f"of {name}")
    found = [DigestCache(folder, home).read_sha256(name, (1, 2, 3)) for name in ("a", "b")]
    assert found == ["of a", "of b"]


def test_a_record_of_another_folder_is_none_of_this_one(tmp_path: Path) -> None:
    DigestCache(tmp_path / "mine", tmp_path).keep("a", (1, 2, 3), "0")
    made = json.loads(record(tmp_path).read_bytes())
    record(tmp_path).write_text(json.dumps({**made, "folder": "other"}))
    assert DigestCache(tmp_path / "mine", tmp_path).read_sha256("a", (1, 2, 3)) is None


def test_a_place_that_cannot_be_written_keeps_nothing_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "digests").touch()
    DigestCache(tmp_path / "mine", tmp_path).keep("a", (1, 2, 3), "0")
    (tmp_path / "digests").unlink()
    monkeypatch.setattr(Path, "replace", refuse)
    DigestCache(tmp_path / "mine", tmp_path).keep("a", (1, 2, 3), "0")
    assert list((tmp_path / "digests").iterdir()) == []


def refuse(*_: object) -> None:
    raise OSError(errno.EROFS, "read-only")


def test_a_file_that_changes_while_it_is_read_is_refused_and_not_kept(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settled(folder / "a.bin")

    def changed(path: Path, *, blob_id: bool) -> Digests:
        found = digest_file(path, blob_id=blob_id)
        path.write_bytes(b"another")
        return found

    monkeypatch.setattr("worker.weights.snapshot.digest_file", changed)
    with pytest.raises(WeightsUnavailable, match="changed while it was read"):
        digest(folder, tmp_path)
    assert not (tmp_path / digest_cache.DIGESTS_FOLDER).exists()


def test_a_snapshot_reads_a_file_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []

    def counted(path: Path, *, blob_id: bool) -> Digests:
        read.append(path)
        return digest_file(path, blob_id=blob_id)

    monkeypatch.setattr("worker.weights.snapshot.digest_file", counted)
    snapshot = LocalSnapshot(folder, "mine")
    file = find_file(snapshot, "a.bin")
    assert snapshot.digest(file) == snapshot.digest(file) == sha256(b"one")
    assert len(read) == 1
