"""A revision is resolved once and recorded; what a hub says of its files is checked first."""

import errno
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from worker import log, settings
from worker.errors import HubUnreachable, WeightsUnavailable
from worker.settings import Settings
from worker.weights import metadata
from worker.weights.retry import Patience
from worlds.hub import Entry, Fault, Hub, _Handler, running

NAME = "org/name"
QUICK = Patience(attempts=2, first_wait_s=0.001, longest_asked_wait_s=0.001, stall_s=30)


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running() as given:
        given.add(NAME, {"a.json": b"{}", "b.safetensors": b"x" * 100})
        yield given


def configured(hub: Hub, home: Path, **environ: str) -> Settings:
    return settings.read({"HF_ENDPOINT": hub.endpoint, "MODEL_DIR": str(home), **environ})


def resolve(hub: Hub, home: Path, revision: str | None = None, **environ: str) -> Any:
    return metadata.resolve(NAME, revision, configured(hub, home, **environ), patience=QUICK)


def records(home: Path) -> list[Path]:
    return sorted((home / metadata.KEPT).iterdir())


def test_each_revision_is_asked_for_once_and_found_by_its_name(hub: Hub, tmp_path: Path) -> None:
    hub.add(NAME, {"a.json": b"[]"}, branch="v2")
    home = tmp_path / "not/there/yet"
    found = {revision: resolve(hub, home, revision) for revision in (None, "v2")}
    assert found[None].commit != found["v2"].commit
    assert [path.name for path in records(home)] == ["org--name.json", "org--name@v2.json"]
    hub.seen.clear()
    for revision, first in found.items():
        again = resolve(hub, home, revision)
        assert (again.commit, again.files) == (first.commit, first.files)
        assert again.record == first.record
        known = metadata.find_known_commit(NAME, revision, configured(hub, home))
        assert known == first.commit
    assert metadata.find_known_commit(NAME, "v3", configured(hub, home)) is None
    assert not hub.requests()


def test_a_file_has_the_size_and_the_digest_that_the_hub_says(hub: Hub, tmp_path: Path) -> None:
    commit = hub.branches[NAME]["main"]
    for file in resolve(hub, tmp_path).files:
        entry = hub.commits[NAME][commit][file.path]
        assert (file.size, file.blob_id) == (len(entry.data), entry.blob_id)
        assert file.sha256 == (entry.sha256 if entry.lfs else None)


@pytest.mark.parametrize(
    "broken",
    [
        "{",
        "[]",
        "3",
        '{"repository": "org/name", "revision": "main"}',
        '{"repository": "org/name", "revision": "main", "commit": "0", "files": 3}',
        '{"repository": "org/name", "revision": "main", "commit": "0", "files": [{"path": "x"}]}',
        '{"repository": "org/name", "revision": "v2", "commit": "0", "files": []}',
        '{"repository": "org/other", "revision": "main", "commit": "0", "files": []}',
        '{"repository": 3, "revision": "main", "commit": "0", "files": []}',
    ],
)
def test_a_record_that_is_broken_or_another_s_is_written_anew(
    hub: Hub, tmp_path: Path, broken: str
) -> None:
    first = resolve(hub, tmp_path)
    (path,) = records(tmp_path)
    path.write_text(broken)
    assert resolve(hub, tmp_path).commit == first.commit
    assert len(hub.requests("info")) == 2
    assert resolve(hub, tmp_path).commit == first.commit
    assert len(hub.requests("info")) == 2


@pytest.mark.parametrize(
    ("name", "revision", "more", "taken"),
    [
        ("org--name_main.json", None, {}, True),
        ("org--name_v2.json", "v2", {}, True),
        ("org--name_v2.json", "v2", {"revision": "v2"}, False),
        ("org--name_v_2.json", "v/2", {}, False),
        ("org--name_v_2.json", "v_2", {}, False),
        ("org--name_v/2.json", "v/2", {}, False),
    ],
)
def test_a_record_of_the_first_version_is_used(
    hub: Hub,
    tmp_path: Path,
    name: str,
    revision: str | None,
    more: dict[str, str],
    *,
    taken: bool,
) -> None:
    """It says nothing of its revision, whose name is in its own where that is plain."""
    if revision is not None:
        hub.add(NAME, {"a.json": b"{}"}, branch=revision)
    path = tmp_path / metadata.KEPT / name
    path.parent.mkdir(parents=True)
    if path.parent.is_dir() and "/" not in name:
        path.write_text(json.dumps({"repository": NAME, "commit": "old", "files": [], **more}))
    known = metadata.find_known_commit(NAME, revision, configured(hub, tmp_path))
    assert known == ("old" if taken else None)


def test_a_home_that_cannot_be_written_keeps_no_record_and_says_so(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, "read-only")

    log.configure("INFO")
    monkeypatch.setattr(Path, "replace", refuse)
    assert resolve(hub, tmp_path).files
    assert records(tmp_path) == []
    assert "revision not kept" in capsys.readouterr().err
    (tmp_path / metadata.KEPT).rmdir()
    (tmp_path / metadata.KEPT).touch()
    assert resolve(hub, tmp_path).files


def test_the_digests_are_asked_for(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    answer = _Handler._api

    def noted(handler: _Handler, repository: str, words: list[str]) -> None:
        asked.append(handler.path)
        answer(handler, repository, words)

    monkeypatch.setattr(_Handler, "_api", noted)
    resolve(hub, tmp_path)
    assert parse_qs(urlsplit(asked[0]).query)["blobs"][0].lower() == "true"


def test_only_the_token_of_the_settings_is_sent_and_it_is_hidden(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not one that the machine has for its user."""
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_machine")
    resolve(hub, tmp_path / "a")
    resolve(hub, tmp_path / "b", HF_TOKEN="of-no-known-form-0123")
    seen = [request.authorization for request in hub.requests("info")]
    assert seen == [None, "Bearer of-no-known-form-0123"]
    assert "of-no-known-form-0123" not in str(log.redact("it said of-no-known-form-0123"))


def test_the_operators_patience_is_used_where_none_is_given(hub: Hub, tmp_path: Path) -> None:
    hub.misbehave(Fault("status", "info", times=None))
    read = configured(hub, tmp_path, DOWNLOAD_RETRIES="0")
    with pytest.raises(HubUnreachable):
        metadata.resolve(NAME, None, read)
    assert len(hub.requests("info")) == 1


def test_a_hub_that_does_not_answer_is_asked_again_after_its_time(hub: Hub, tmp_path: Path) -> None:
    hub.misbehave(Fault("stall-before", "info"))
    patience = Patience(attempts=2, first_wait_s=0.001, stall_s=0.5)
    found = metadata.resolve(NAME, None, configured(hub, tmp_path), patience=patience)
    assert found.files
    assert len(hub.requests("info")) == 2


def test_a_busy_hub_is_waited_for_as_long_as_it_says(hub: Hub, tmp_path: Path) -> None:
    hub.misbehave(Fault("status", "info", status=429, headers={"Retry-After": "0"}))
    patience = Patience(attempts=2, first_wait_s=600)
    start = time.monotonic()
    metadata.resolve(NAME, None, configured(hub, tmp_path), patience=patience)
    assert time.monotonic() - start < 300


@pytest.mark.parametrize(
    "path", ["../x.json", "/etc/x.json", "a/../../x.json", "a\\b.json", "a\0b.json"]
)
def test_a_path_that_leads_elsewhere_is_refused(hub: Hub, tmp_path: Path, path: str) -> None:
    hub.add(NAME, {"a.json": b"{}", path: b"{}"})
    with pytest.raises(WeightsUnavailable, match="outside its folder"):
        resolve(hub, tmp_path)


@pytest.mark.parametrize("lacking", ["size", "blobId", "sha256"])
def test_a_file_without_a_size_or_a_digest_is_asked_for_again(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacking: str
) -> None:
    sibling = Entry.sibling

    def told(entry: Entry) -> dict[str, Any]:
        found = {key: value for key, value in sibling(entry).items() if key != lacking}
        if lacking == "sha256":
            found.pop("lfs", None)
        return found

    monkeypatch.setattr(Entry, "sibling", told)
    if lacking == "sha256":
        (weights,) = [f for f in resolve(hub, tmp_path).files if f.path == "b.safetensors"]
        assert weights.sha256 is None
    else:
        with pytest.raises(HubUnreachable, match="lacks the size or the digest"):
            resolve(hub, tmp_path)
        assert len(hub.requests("info")) == 2


@pytest.mark.parametrize("lacking", ["sha", "siblings"])
def test_an_answer_without_a_commit_or_without_files_is_none(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacking: str
) -> None:
    answer = _Handler._send

    def cut(handler: _Handler, status: int, body: bytes, headers: Any) -> None:
        found = {key: value for key, value in json.loads(body).items() if key != lacking}
        answer(handler, status, json.dumps(found).encode(), headers)

    monkeypatch.setattr(_Handler, "_send", cut)
    with pytest.raises(WeightsUnavailable, match="names no commit"):
        resolve(hub, tmp_path)
    assert len(hub.requests("info")) == 1
