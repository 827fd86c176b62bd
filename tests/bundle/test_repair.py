"""A part that is damaged, made again and damaged again is not made at every start forever."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from worker import boot, settings
from worker.bundle import layout, repair, tensors
from worker.bundle.obtain import obtain
from worker.errors import WeightsUnavailable
from worker.families.catalogue import CATALOGUE
from worker.families.qwen_image.recipe import RECIPE
from worker.seam import Models
from worker.weights import space
from worlds.prepared import folder_of
from worlds.repository import brief

Lose = Callable[[bool], list[str]]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return brief(folder_of("tiny-image"), tmp_path_factory.mktemp("published") / "image")


@pytest.fixture
def environ(published: Path, tmp_path: Path) -> dict[str, str]:
    return {
        "MODEL": str(published),
        "MODEL_DIR": str(tmp_path / "home"),
        "RUNPOD_CACHE_DIR": str(tmp_path / "none"),
        "MIN_STORAGE_FREE_GB": "0",
        "VERIFY": "full",
    }


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Lose:
    """A disk that flips one bit in whatever is written to it of the transformer, while it loses.

    What is returned lists the files that were written.
    """
    original = tensors.write
    written: list[str] = []
    state = {"loses": True}

    def write(folder: Path, stem: str, values: Any) -> Any:
        name, record = original(folder, stem, values)
        if folder.name.startswith("transformer"):
            written.append(name)
            if state["loses"]:
                data = bytearray((folder / name).read_bytes())
                data[-1] ^= 1
                (folder / name).write_bytes(data)
        return name, record

    monkeypatch.setattr(tensors, "write", write)

    def lose(loses: bool) -> list[str]:
        state["loses"] = loses
        return written

    return lose


def started(environ: dict[str, str]) -> Models:
    return boot.boot(settings.read(environ))


def test_what_is_damaged_again_is_given_up_at_this_start_and_at_the_next(
    environ: dict[str, str], disk: Lose
) -> None:
    written = disk(True)
    for _ in range(3):
        with pytest.raises(WeightsUnavailable, match="made again once") as caught:
            started(environ)
        assert not caught.value.retryable
        assert environ["MODEL_DIR"] not in caught.value.message
    files = len({name.partition("-")[0] for name in written})
    assert len(written) == 2 * files


def test_a_disk_that_is_well_again_serves_once_the_note_is_deleted(
    environ: dict[str, str], disk: Lose
) -> None:
    disk(True)
    with pytest.raises(WeightsUnavailable):
        started(environ)
    disk(False)
    notes = list((Path(environ["MODEL_DIR"]) / repair.NOTES).iterdir())
    for note in notes:
        note.unlink()
    assert started(environ).served


def test_other_libraries_may_make_what_opens(environ: dict[str, str], disk: Lose) -> None:
    disk(True)
    with pytest.raises(WeightsUnavailable):
        started(environ)
    disk(False)
    (note,) = (Path(environ["MODEL_DIR"]) / repair.NOTES).iterdir()
    facts = json.loads(note.read_text())
    note.write_text(json.dumps({**facts, "libraries": {**facts["libraries"], "torch": "0"}}))
    assert started(environ).served


def test_each_damage_is_mended_if_it_opened_in_between(environ: dict[str, str], disk: Lose) -> None:
    """A disk that lost a bit last month may lose another one today."""
    disk(False)
    assert started(environ).served
    home = Path(environ["MODEL_DIR"])
    for _ in range(2):
        (part,) = (home / layout.COMPONENTS).glob("transformer-*")
        file = next(part.glob("weights-*.safetensors"))
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
        assert started(environ).served
        assert not list((home / repair.NOTES).iterdir())


def test_a_part_that_cannot_be_quarantined_is_reported_as_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a volume that is mounted read-only."""

    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    damage = layout.Damaged(tmp_path / "vae-1", "x has 1 byte instead of 2")
    monkeypatch.setattr(repair, "quarantine", refuse)
    with pytest.raises(WeightsUnavailable, match=r"vae-1 is damaged.*Read-only file system"):
        repair.start(damage, tmp_path)


def test_what_must_be_made_again_needs_a_volume_that_takes_it(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = settings.read(environ)
    boot.prepare(read)
    (spec,) = CATALOGUE.resolve(read.model, read, has_gpu=False)
    monkeypatch.setattr(space, "is_writable", lambda _: False)
    with pytest.raises(WeightsUnavailable, match=f"the bundle of {spec.name} must be made again"):
        obtain(spec, RECIPE, read, None, CATALOGUE, repair=True)


@pytest.mark.parametrize("role", ["tokenizer", "scheduler", "vae", "text_encoder", "transformer"])
def test_a_bundle_without_a_part_that_it_needs_is_damaged_and_made_whole(
    role: str, environ: dict[str, str]
) -> None:
    (folder,) = boot.prepare(settings.read(environ))
    manifest = folder / layout.MANIFEST
    facts = json.loads(manifest.read_text())
    del facts["components"][role]
    manifest.write_text(json.dumps(facts))
    assert started(environ).served
    assert role in layout.read_bundle(folder).components


@pytest.mark.parametrize(
    ("role", "name"),
    [
        ("transformer", "config.json"),
        ("vae", "config.json"),
        ("text_encoder", "config.json"),
        ("scheduler", "scheduler_config.json"),
        ("tokenizer", "tokenizer.json"),
    ],
)
def test_a_small_file_that_lost_its_bytes_is_mended_too(
    role: str, name: str, environ: dict[str, str]
) -> None:
    """Of the same size, so that only opening it shows the damage."""
    environ["VERIFY"] = "sizes"
    boot.prepare(settings.read(environ))
    (path,) = (Path(environ["MODEL_DIR"]) / layout.COMPONENTS).glob(f"{role}-*/{name}")
    path.write_bytes(bytes(path.stat().st_size))
    assert started(environ).served
