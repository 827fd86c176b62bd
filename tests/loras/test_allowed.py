"""The operator's names: those of LORAS, and the files that are in LORA_DIR itself."""

import os
from pathlib import Path

import pytest

from worker import settings
from worker.errors import InvalidSettings
from worker.loras.allowed import find_place, list_names
from worker.loras.origin import HubFile
from worker.settings import Settings
from worlds.adapters import lora_bytes

LORAS = "pixel=org/pixel-art/file.safetensors@v1, ghibli=org/ghibli"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a file, a folder of one and one of two, and what leads out of it."""
    folder = tmp_path / "loras"
    for place in ("one/adapter_model", "two/a", "two/b", "style", ".hidden", "a b"):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{place}.safetensors").write_bytes(lora_bytes())
    (tmp_path / "outside.safetensors").write_bytes(lora_bytes())
    (folder / "out.safetensors").symlink_to(tmp_path / "outside.safetensors")
    (folder / "inner.safetensors").symlink_to(folder / "style.safetensors")
    (folder / "loop.safetensors").symlink_to(folder / "loop.safetensors")
    (folder / "gone.safetensors").symlink_to(folder / "nothing")
    (folder / "up").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe.safetensors")
    (folder / "folder.safetensors").mkdir()
    return folder


def chosen(folder: Path, **more: str) -> Settings:
    return settings.read({"LORAS": LORAS, "LORA_DIR": str(folder), **more})


def test_the_names_are_those_of_the_list_and_of_the_folder(folder: Path) -> None:
    assert list_names(chosen(folder)) == ("pixel", "ghibli", "inner", "one", "style")
    assert find_place("pixel", chosen(folder)) == HubFile("org/pixel-art", "file.safetensors", "v1")
    assert find_place("style", chosen(folder)) == folder / "style.safetensors"
    (folder / "style").mkdir()
    (folder / "style" / "inner.safetensors").write_bytes(lora_bytes())
    assert find_place("style", chosen(folder)) == folder / "style.safetensors"
    assert find_place("one", chosen(folder)) == folder / "one" / "adapter_model.safetensors"


@pytest.mark.parametrize(
    "name",
    [
        *("out", "loop", "gone", "up", "two", "pipe", "folder", "nothing", ".hidden", "a b"),
        *("..", "../outside", "up/outside", "/etc/passwd", "one/adapter_model", ""),
    ],
)
def test_no_other_name_leads_anywhere(folder: Path, name: str) -> None:
    assert find_place(name, chosen(folder)) is None


def test_a_name_of_the_list_wins_over_a_file(folder: Path) -> None:
    (folder / "pixel.safetensors").write_bytes(lora_bytes())
    assert isinstance(find_place("pixel", chosen(folder)), HubFile)
    assert list_names(chosen(folder)).count("pixel") == 1


def test_names_are_not_listed_where_they_are_refused(folder: Path) -> None:
    assert list_names(chosen(folder, LORA_SOURCES="hub,urls")) == ()


def test_a_folder_that_is_not_there_has_no_names(tmp_path: Path) -> None:
    assert list_names(settings.read({"LORA_DIR": str(tmp_path / "nowhere")})) == ()


@pytest.mark.parametrize(
    "value",
    [
        "x",
        "x=",
        "=org/a",
        "x=name",
        "../x=org/a",
        "x=org/a/b.bin",
        "a=o/b,a=o/c",
        "a=o/b,x=name",
        "x=https://a/b",
    ],
)
def test_a_wrong_list_is_found_at_the_start(value: str) -> None:
    with pytest.raises(InvalidSettings, match=r"^LORAS: "):
        settings.read({"LORAS": value})


def test_callers_may_use_names_alone_on_the_platform_and_all_kinds_off_it() -> None:
    there = {"RUNPOD_WEBHOOK_GET_JOB": "https://api.test/job"}
    assert settings.read(there).lora_kinds == ("names",)
    assert settings.read({}).lora_kinds == ("names", "hub", "urls")
    assert settings.read({**there, "LORA_SOURCES": "urls,names"}).lora_kinds == ("urls", "names")
    with pytest.raises(InvalidSettings, match="LORA_SOURCES"):
        settings.read({"LORA_SOURCES": "names,web"})


def test_the_cache_must_have_room_for_the_loras_of_one_job() -> None:
    exact = {"LORA_CACHE_GB": "0.3", "MAX_LORA_BYTES": "100MB"}
    assert settings.read(exact).lora_cache_gb == 0.3
    with pytest.raises(InvalidSettings, match="LORA_CACHE_GB"):
        settings.read({**exact, "LORA_CACHE_GB": "0.2999"})
    with pytest.raises(InvalidSettings, match="LORA_CACHE_GB"):
        settings.read({"MAX_LORAS": "0", "LORA_CACHE_GB": "0"})
