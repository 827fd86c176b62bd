"""What was pushed is what comes back; without permission, the error says what is needed."""

import io
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, enable_progress_bars

from worker import log, settings
from worker.errors import HubUnreachable, WeightsUnavailable
from worker.weights import metadata
from worker.weights.download import fetch_snapshot
from worker.weights.push import push
from worlds.hub import Hub, _Handler, running

# huggingface_hub 2.4 hands httpx2 its file in a way that httpx2 warns about
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=")

TOKEN = "hf_loopback_token"
CONTENT = {"manifest.json": b'{"format": 1}', "components/vae-1/weights.safetensors": bytes(5000)}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    # Xet is a storage of its own; the loopback hub speaks LFS, as mirrors do
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    with running() as given:
        given.tokens[TOKEN] = set()
        yield given


@pytest.fixture
def files(tmp_path: Path) -> Mapping[str, Path]:
    made = {path: tmp_path / f"file-{n}" for n, path in enumerate(CONTENT)}
    for path, local in made.items():
        local.write_bytes(CONTENT[path])
    return made


def configured(hub: Hub, home: Path, token: str = TOKEN) -> settings.Settings:
    return settings.read(
        {
            "HF_ENDPOINT": hub.endpoint,
            "HF_TOKEN": token,
            "MODEL_DIR": str(home),
            "MIN_STORAGE_FREE_GB": "0",
        }
    )


def test_what_was_pushed_comes_back(hub: Hub, files: Mapping[str, Path], tmp_path: Path) -> None:
    read = configured(hub, tmp_path / "home")
    commit = push(files, "acme/bundle", read)
    assert "acme/bundle" in hub.private
    snapshot = metadata.resolve("acme/bundle", None, read)
    assert snapshot.commit == commit
    found = fetch_snapshot(snapshot, snapshot.files, tmp_path / "back", read)
    assert {path: proven.path.read_bytes() for path, proven in found.items()} == CONTENT


def test_a_second_push_uploads_nothing_that_is_there(
    hub: Hub, files: Mapping[str, Path], tmp_path: Path
) -> None:
    read = configured(hub, tmp_path)
    push(files, "acme/bundle", read)
    hub.seen.clear()
    push(files, "acme/bundle", read)
    assert not [seen for seen in hub.requests() if seen.method == "PUT"]


def test_the_token_does_not_reach_the_storage(
    hub: Hub, files: Mapping[str, Path], tmp_path: Path
) -> None:
    push(files, "acme/bundle", configured(hub, tmp_path))
    puts = [seen for seen in hub.requests() if seen.method == "PUT"]
    assert puts
    assert {seen.authorization for seen in puts} == {None}


@pytest.mark.parametrize("token", ["", "hf_of_a_reader"])
def test_a_push_needs_a_token_that_may_write(
    hub: Hub, files: Mapping[str, Path], tmp_path: Path, token: str
) -> None:
    with pytest.raises(WeightsUnavailable, match="HF_TOKEN") as refused:
        push(files, "acme/bundle", configured(hub, tmp_path, token))
    assert "may write" in refused.value.message
    assert not hub.uploaded


def test_the_token_is_hidden_before_anything_is_asked(
    hub: Hub, files: Mapping[str, Path], tmp_path: Path
) -> None:
    token = "of-no-known-form-0123"
    with pytest.raises(WeightsUnavailable):
        push(files, "acme/bundle", configured(hub, tmp_path, token))
    assert token not in str(log.redact(f"it said {token}"))


@pytest.mark.parametrize("name", ["a b/c", "acme/x--y", "acme/painter/deeper", "acme/.git"])
def test_what_is_no_repository_name_is_told(
    hub: Hub, files: Mapping[str, Path], tmp_path: Path, name: str
) -> None:
    with pytest.raises(WeightsUnavailable, match="not a repository name: org/name") as refused:
        push(files, name, configured(hub, tmp_path))
    assert not isinstance(refused.value, HubUnreachable)


@pytest.mark.parametrize("status", [500, 503, 429, 408])
def test_a_hub_that_is_busy_is_for_later(
    hub: Hub,
    files: Mapping[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
) -> None:
    monkeypatch.setattr(_Handler, "_push", lambda handler: handler._send(status, b"{}"))
    with pytest.raises(HubUnreachable, match=f"the hub answered {status}; push again") as refused:
        push(files, "acme/bundle", configured(hub, tmp_path))
    assert refused.value.retryable


def test_a_hub_that_is_gone_is_for_later(
    hub: Hub, files: Mapping[str, Path], tmp_path: Path
) -> None:
    read = configured(hub, tmp_path)
    hub.stop()
    with pytest.raises(HubUnreachable, match="the upload broke off"):
        push(files, "acme/bundle", read)


def test_the_commit_says_what_it_is(
    hub: Hub, files: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bodies: list[bytes] = []
    commit = _Handler._commit

    def noted(handler: _Handler, repository: str, branch: str, body: bytes) -> None:
        bodies.append(body)
        commit(handler, repository, branch, body)

    monkeypatch.setattr(_Handler, "_commit", noted)
    push(files, "acme/bundle", configured(hub, tmp_path))
    (header,) = (json.loads(line) for line in bodies[0].splitlines() if b'"header"' in line)
    assert header["value"]["summary"] == "Upload"


def test_what_is_there_is_pushed_to_again(
    hub: Hub, files: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub refuses to create a repository twice; a bundle may be pushed twice."""
    answer = _Handler._json

    def refused(handler: _Handler, found: Any) -> None:
        if handler.path.endswith("repos/create"):
            handler._send(409, json.dumps(found).encode())
        else:
            answer(handler, found)

    hub.commits["acme/bundle"] = {}
    monkeypatch.setattr(_Handler, "_json", refused)
    push(files, "acme/bundle", configured(hub, tmp_path))
    assert hub.branches["acme/bundle"]["main"]


class Terminal(io.StringIO):
    """What a terminal is to who writes to it."""

    def isatty(self) -> bool:
        """Say so."""
        return True


@pytest.mark.parametrize("is_terminal", [False, True])
def test_bars_are_for_a_terminal(
    hub: Hub,
    files: Mapping[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    is_terminal: bool,
) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal() if is_terminal else io.StringIO())
    enable_progress_bars()
    push(files, "acme/bundle", configured(hub, tmp_path))
    assert are_progress_bars_disabled() == (not is_terminal)
    enable_progress_bars()
