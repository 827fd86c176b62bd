"""What each command passes on to what does its work, and what it prints."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from worker import boot, entrance, log
from worker.__main__ import main
from worker.bundle import layout
from worker.doors import start
from worker.doors.http import relay
from worker.settings import Settings
from worker.weights import push as hub


@pytest.fixture(autouse=True)
def _level(monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator who wants no more than errors."""
    for name in ("PRECISION_MODE", "MODEL_DIR", "PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LOG_LEVEL", "ERROR")
    monkeypatch.setenv("MODEL", "qwen-image")


def logged(text: str) -> list[str]:
    return [json.loads(line)["event"] for line in text.splitlines()]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["tiny"], (("tiny",), "auto", None)),
        (["tiny", "--precision", "4bit", "--out", "/data"], (("tiny",), "4bit", Path("/data"))),
    ],
)
def test_prepare_takes_its_options_before_the_environment_and_prints_the_folders(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: Any, expected: Any
) -> None:
    given: list[Settings] = []

    def prepare(settings: Settings) -> list[Path]:
        given.append(settings)
        log.get().warning("careful")
        log.get().error("trouble")
        return [Path("/bundles/one"), Path("/bundles/two")]

    monkeypatch.setattr(boot, "prepare", prepare)
    assert main(["prepare", *words]) == 0
    (chosen,) = given
    assert (chosen.model, chosen.precision_mode, chosen.model_dir) == expected
    shown = capsys.readouterr()
    assert shown.out.splitlines() == ["/bundles/one", "/bundles/two"]
    assert logged(shown.err) == ["trouble"]


@pytest.mark.parametrize(("words", "port"), [([], 8000), (["--port", "8123"], 8123)])
def test_playground_serves_the_page_for_its_endpoint(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: Any, port: int
) -> None:
    def serve_page(settings: Settings, endpoint: str) -> int:
        log.get().warning("careful")
        assert (settings.http_port, settings.http_host, endpoint) == (port, "127.0.0.1", "abc")
        return 7

    monkeypatch.setattr(relay, "serve_page", serve_page)
    assert main(["playground", "--endpoint", "abc", *words]) == 7
    assert capsys.readouterr().err == ""


def test_playground_asks_for_an_endpoint(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["playground"])
    assert ended.value.code == 2
    assert "required: --endpoint" in capsys.readouterr().err


def test_playground_names_the_port_that_it_cannot_have(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def serve_page(*_: object) -> int:
        raise OSError(98, "Address already in use")

    monkeypatch.setattr(relay, "serve_page", serve_page)
    assert main(["playground", "--endpoint", "abc", "--port", "8123"]) == 1
    answer = "WORKER_NOT_READY: --port 8123: Address already in use\n"
    assert capsys.readouterr().err == answer


@pytest.mark.parametrize(("command", "instead"), [("run", None), ("serve", {"SERVE": "http"})])
def test_run_and_serve_boot_behind_a_door(
    monkeypatch: pytest.MonkeyPatch, command: str, instead: Mapping[str, str] | None
) -> None:
    def run(*given: Any, instead: Mapping[str, str] | None) -> int:
        started.append((*given, instead))
        return 3

    started: list[Any] = []
    monkeypatch.setattr(start, "run", run)
    assert main([command]) == 3
    assert started == [(entrance.open_door, boot.boot, instead)]


def test_push_uploads_every_file_of_a_bundle_that_is_right_to_the_last_byte(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def push(files: Any, repository: str, settings: Settings) -> str:
        return f"{files} to {repository} by {settings.log_level}"

    monkeypatch.setattr(layout, "verify", lambda *given: given)
    monkeypatch.setattr(layout, "list_files", lambda verified: f"{verified[1]} {verified[0].name}")
    monkeypatch.setattr(hub, "push", push)
    assert main(["push", str(tmp_path / "bundle"), "me/x"]) == 0
    assert capsys.readouterr().out == "full bundle to me/x by ERROR\n"
