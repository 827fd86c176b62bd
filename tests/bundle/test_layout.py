"""A bundle's folder: which one is meant, what is read ahead of it, what becomes of its damage."""

import errno
import hashlib
import json
import os
import re
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import structlog

from worker.bundle import layout, repair
from worker.bundle.layout import Bundle, Component, Damaged, FileRecord
from worker.errors import WeightsUnavailable
from worker.weights.snapshot import LOCAL

COMMIT = "c" * 40
DATA = {"weights-0": b"weights", "modulation-0": b"rows", "config.json": b"{}"}


def add_part(place: Path, identity: str) -> Component:
    """Publish a component with three files."""
    (place / identity).mkdir(parents=True)
    files = {}
    for name, data in DATA.items():
        (place / identity / name).write_bytes(data)
        digest = layout.hash_file(place / identity / name)
        files[name] = FileRecord(size=len(data), sha256=digest)
    part = Component(
        format=layout.FORMAT,
        identity=identity,
        role=identity.partition("-")[0],
        recipe={},
        sources={},
        prepared_on="cpu",
        libraries={},
        files=files,
    )
    layout.publish(place / identity, part)
    return part


def add(home: Path, name: str, *parts: str, **named: Any) -> Path:
    """Publish a bundle; its parts lie beside it."""
    fields: dict[str, Any] = {
        "format": layout.FORMAT,
        "model": "toy",
        "repository": "org/toy",
        "revision": COMMIT,
        "asked": "main",
        "pipeline": "Toy",
        "precision": "bf16",
        "fused": None,
        "lightning": {},
        "components": {part.partition("-")[0]: part for part in parts},
        "libraries": {},
    }
    folder = home / layout.BUNDLES / name
    folder.mkdir(parents=True)
    layout.publish(folder, Bundle(**{**fields, **named}))
    for part in parts:
        if not (home / layout.COMPONENTS / part).exists():
            add_part(home / layout.COMPONENTS, part)
    return folder


def test_a_bundle_records_the_libraries_that_decide_its_bytes() -> None:
    names = {"torch", "diffusers", "transformers", "bitsandbytes", "safetensors"}
    assert layout.list_libraries() == {name: version(name) for name in names}


def test_a_part_is_named_by_its_role_and_by_what_it_is_made_of() -> None:
    """In whatever order that is given."""
    name = layout.compute_identity("vae", ["a", "b"], {"recipe": 1, "precision": "bf16"})
    assert re.fullmatch(r"vae-[0-9a-f]{20}", name)
    assert layout.compute_identity("vae", ["b", "a"], {"precision": "bf16", "recipe": 1}) == name
    others = {
        layout.compute_identity("vae", ["a"], {"recipe": 1, "precision": "bf16"}),
        layout.compute_identity("vae", ["a", "b"], {"recipe": 1}),
    }
    assert len({name, *others}) == 3


def test_a_part_has_one_name_in_all_versions_of_the_worker() -> None:
    """A newer one finds on a volume what an older one made, and makes nothing of it again."""
    text = b'{"digests":["a","b"],"format":1,"recipe":{"precision":"bf16","recipe":1},"role":"vae"}'
    name = layout.compute_identity("vae", ["b", "a"], {"recipe": 1, "precision": "bf16"})
    assert name == f"vae-{hashlib.sha256(text).hexdigest()[:20]}"
    assert layout.METHOD == 1


def test_the_size_and_the_files_of_a_bundle_are_those_of_all_its_parts(tmp_path: Path) -> None:
    folder = add(tmp_path, "toy", "vae-1", "words-2")
    found = layout.verify(folder, "full")
    assert found.size == 2 * sum(map(len, DATA.values()))
    names = {f"components/{part}/{n}" for part in ("vae-1", "words-2") for n in DATA}
    names |= {f"components/{part}/manifest.json" for part in ("vae-1", "words-2")}
    files = layout.list_files(found)
    assert files.keys() == names | {"manifest.json"}
    assert all(path.is_file() for path in files.values())
    assert json.loads(files["manifest.json"].read_text())["components"]["vae"] == "vae-1"


@pytest.mark.parametrize("part", ["vae-1", "words-2"])
@pytest.mark.parametrize("name", DATA)
def test_every_file_of_every_part_counts(part: str, name: str, tmp_path: Path) -> None:
    folder = add(tmp_path, "toy", "vae-1", "words-2")
    file = tmp_path / layout.COMPONENTS / part / name
    file.write_bytes(DATA[name].swapcase() if name != "config.json" else b"[]")
    assert layout.find_fault(folder) is None
    with pytest.raises(Damaged, match=f"{part} is damaged: {name} has another sha256") as caught:
        layout.verify(folder, "full")
    assert caught.value.folder == file.parent
    for data in (DATA[name] + b"x", DATA[name][:-1]):
        file.write_bytes(data)
        size = f"{name} has {len(data)} bytes instead of {len(DATA[name])}"
        with pytest.raises(Damaged, match=size):
            layout.verify(folder)
    file.unlink()
    with pytest.raises(Damaged, match=f"{name} is missing"):
        layout.verify(folder)


def test_a_part_inside_the_bundle_is_taken_before_the_one_beside_it(tmp_path: Path) -> None:
    folder = add(tmp_path, "toy", "vae-1")
    beside = tmp_path / layout.COMPONENTS / "vae-1"
    assert layout.find_component(folder, "vae-1") == beside
    add_part(folder / layout.COMPONENTS, "vae-1")
    assert layout.find_component(folder, "vae-1") == folder / layout.COMPONENTS / "vae-1"
    assert layout.list_prepared(tmp_path) == []


def test_what_was_prepared_here_is_listed_by_name_past_what_is_broken(tmp_path: Path) -> None:
    for name in ("b", "d", "a"):
        add(tmp_path, name)
    for name in ("0", "c"):
        add(tmp_path, name)
        (tmp_path / layout.BUNDLES / name / layout.MANIFEST).write_text("{}")
    found = layout.list_prepared(tmp_path)
    assert [folder.name for folder, _ in found] == ["a", "b", "d"]


# A damaged part is renamed, and what was renamed before is deleted.


def test_all_of_it_is_deleted_when_it_is_replaced(tmp_path: Path) -> None:
    for number in range(2):
        add_part(tmp_path, "vae-1")
        inner = tmp_path / "vae-1/one/two"
        inner.mkdir(parents=True)
        (inner / "file").touch()
        (inner.parent / "file").touch()
        renamed = layout.quarantine(tmp_path / "vae-1")
        assert renamed.name.startswith("vae-1.damaged-")
        assert renamed.rename(renamed.with_name(f"vae-1{layout.DAMAGED}{number}")).is_dir()
    (tmp_path / f"vae-1{layout.DAMAGED}7").mkdir()
    (tmp_path / f"vae-10{layout.DAMAGED}7").mkdir()
    layout.drop_quarantined(tmp_path / "vae-1")
    assert [path.name for path in tmp_path.iterdir()] == [f"vae-10{layout.DAMAGED}7"]


def test_what_was_renamed_before_goes_once_another_is(tmp_path: Path) -> None:
    """A part that is damaged at every start takes the place of two, not of all of them."""
    add_part(tmp_path, "vae-1")
    old = layout.quarantine(tmp_path / "vae-1")
    old.rename(old.with_name(f"vae-1{layout.DAMAGED}0"))
    add_part(tmp_path, "vae-1")
    assert [layout.quarantine(tmp_path / "vae-1")] == list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_deleted_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where another worker puts a file into it."""
    old = tmp_path / f"vae-1{layout.DAMAGED}1"
    old.mkdir()

    def refuse(_path: Path) -> None:
        raise OSError(errno.ENOTEMPTY, "not empty")

    monkeypatch.setattr(Path, "rmdir", refuse)
    layout.drop_quarantined(tmp_path / "vae-1")
    assert old.is_dir()


def test_what_cannot_be_deleted_keeps_nothing_else(tmp_path: Path) -> None:
    """As where another worker deletes it too."""
    original = Path.unlink

    def race(path: Path, *, missing_ok: bool = False) -> None:
        original(path, missing_ok=missing_ok)
        raise FileNotFoundError(errno.ENOENT, "gone")

    old = tmp_path / f"vae-1{layout.DAMAGED}1"
    add_part(tmp_path, "vae-1").files.keys()
    (tmp_path / "vae-1").rename(old)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "unlink", race)
        layout.drop_quarantined(tmp_path / "vae-1")
    assert not old.exists()


def test_another_worker_may_have_been_faster(tmp_path: Path) -> None:
    assert not layout.quarantine(tmp_path / "vae-1").exists()


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EROFS, WeightsUnavailable),
        (errno.EACCES, WeightsUnavailable),
        (errno.EIO, OSError),
        (errno.ENOSPC, OSError),
    ],
)
def test_a_disk_that_refuses_is_told_from_one_that_fails(
    number: int, kind: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_path: Path, _target: Path) -> Path:
        raise OSError(number, "no")

    add_part(tmp_path, "vae-1")
    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(kind) as caught:
        layout.quarantine(tmp_path / "vae-1")
    if kind is WeightsUnavailable:
        assert "vae-1 is damaged, and its place cannot be written" in str(caught.value)


# The kernel reads a bundle while torch is imported.


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which files the kernel was asked to read, wholly and ahead."""
    asked: list[str] = []

    def advise(number: int, offset: int, length: int, advice: int) -> None:
        assert (offset, length, advice) == (0, 0, os.POSIX_FADV_WILLNEED)
        asked.append("/".join(os.readlink(f"/proc/self/fd/{number}").split("/")[-2:]))  # noqa: PTH115 - an open file's name
        if asked[-1].endswith("weights-0"):
            raise OSError(errno.EINVAL, "a disk that does not")

    monkeypatch.setattr(os, "posix_fadvise", advise)
    return asked


def test_it_reads_every_file_but_the_mapped_ones(asked: list[str], tmp_path: Path) -> None:
    found = layout.verify(add(tmp_path, "toy", "vae-1", "words-2"))
    (tmp_path / layout.COMPONENTS / "vae-1/modulation-0").unlink()
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - the open folder is one of them
    layout.read_ahead(found)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208 - as above
    assert sorted(asked) == sorted(
        f"{part}/{name}" for part in ("vae-1", "words-2") for name in ("weights-0", "config.json")
    )


def test_it_is_of_each_model_that_has_one_bundle(asked: list[str], tmp_path: Path) -> None:
    add(tmp_path, "a", "vae-1", model="two")
    add(tmp_path, "b", "vae-1", model="two", precision="4bit")
    add(tmp_path, "c", "words-2", "gone-1", model="broken")
    (tmp_path / layout.COMPONENTS / "gone-1" / layout.MANIFEST).unlink()
    add(tmp_path, "d", "words-2", model="one")
    layout.read_ahead_of(["two", "none", "broken", "one"], tmp_path)
    assert sorted(asked) == ["words-2/config.json", "words-2/weights-0"]


# Whether a bundle is certainly of a revision.


@pytest.mark.parametrize(
    ("name", "named", "of", "others"),
    [
        ("any", {}, ["main", COMMIT], ["v1", "", "d" * 40]),
        ("any", {"asked": "v1"}, ["v1", COMMIT], ["main"]),
        ("toy-bf16", {"asked": None}, ["main", COMMIT], ["v1"]),
        ("toy-main-bf16", {"asked": None}, ["main", COMMIT], ["v1"]),
        ("toy-v_1.0-bf16", {"asked": None}, ["v_1.0", COMMIT], ["main", "v/1.0", "v-1.0"]),
        ("toy-v-1-bf16", {"asked": None}, [COMMIT], ["v-1", "v/1", "main"]),
        ("toy-v1-bf16-lightning8", {"asked": None, "fused": 8}, ["v1"], ["main"]),
        ("toy-bf16", {"asked": None, "fused": 8}, [COMMIT], ["main"]),
        ("any", {"asked": None, "revision": LOCAL}, [], ["main", LOCAL, COMMIT]),
        ("toy-bf16", {"asked": None, "revision": LOCAL}, [], ["main", LOCAL]),
    ],
)
def test_it_is_the_commit_or_what_was_asked_for(
    name: str, named: dict[str, Any], of: list[str], others: list[str], tmp_path: Path
) -> None:
    folder = add(tmp_path, name, **named)
    bundle = layout.read_bundle(folder)
    found = [r for r in (*of, *others) if layout.is_of_revision(folder, bundle, r)]
    assert found == of


def test_a_models_bundles_are_found_by_every_word_for_it(tmp_path: Path) -> None:
    bundles: dict[str, dict[str, Any]] = {
        "a": {},
        "b": {"asked": "v1"},
        "c": {"model": "other"},
        "d": {"asked": None, "revision": LOCAL},
        "e": {"repository": "bob/toy"},
        "f": {"asked": None, "revision": LOCAL, "model": "other", "repository": "toy"},
    }
    for name, named in bundles.items():
        add(tmp_path, name, **named)
    found = {
        word: "".join(folder.name for folder in layout.find_bundles(word, tmp_path))
        for word in ("org/toy", "ORG/Toy@v1", "org/toy@main", "toy", "toy@v1", "other", "x/toy")
    }
    assert found == {
        "org/toy": "ac",
        "ORG/Toy@v1": "b",
        "org/toy@main": "ac",
        "toy": "ade",
        "toy@v1": "b",
        "other": "cf",
        "x/toy": "",
    }


# A note of what was made again lasts until it has opened.


def find_note(home: Path, name: str) -> Path:
    return home / repair.NOTES / f"{name}.json"


def test_it_says_which_libraries_made_it(tmp_path: Path) -> None:
    for part in ("vae-1", "words-2"):
        add_part(tmp_path / layout.COMPONENTS, part)
        damage = Damaged(tmp_path / layout.COMPONENTS / part, "x is missing")
        with structlog.testing.capture_logs() as lines:
            repair.start(damage, tmp_path)
        told = {"event": "damaged part quarantined", "reason": damage.message}
        assert lines == [{**told, "log_level": "warning"}]
        assert not damage.folder.exists()
        record = json.loads(find_note(tmp_path, part).read_bytes())
        assert record == {"libraries": layout.list_libraries()}
    with pytest.raises(WeightsUnavailable, match="made again once"):
        repair.start(damage, tmp_path)


def test_it_is_left_where_nothing_else_is(tmp_path: Path) -> None:
    """A bundle that MODEL_PATH names may be damaged before there is anything on MODEL_DIR."""
    add_part(tmp_path, "vae-1")
    repair.start(Damaged(tmp_path / "vae-1", "x is missing"), tmp_path / "not/yet")
    assert (tmp_path / "not/yet/mended/vae-1.json").is_file(), "which the message names"


@pytest.mark.parametrize("text", ["{", "[]", "{}", "null", '{"libraries": {}}'])
def test_one_that_says_nothing_is_none(text: str, tmp_path: Path) -> None:
    add_part(tmp_path / layout.COMPONENTS, "vae-1")
    find_note(tmp_path, "vae-1").parent.mkdir()
    find_note(tmp_path, "vae-1").write_text(text)
    damage = Damaged(tmp_path / layout.COMPONENTS / "vae-1", "x is missing")
    repair.start(damage, tmp_path)
    assert not damage.folder.exists()


def test_those_of_a_bundle_that_opened_are_deleted(tmp_path: Path) -> None:
    folder = add(tmp_path, "toy", "vae-1", "words-2")
    repair.finish(folder, tmp_path)
    (tmp_path / repair.NOTES).mkdir()
    for name in ("words-2", "toy", "other-3"):
        find_note(tmp_path, name).touch()
    repair.finish(folder, tmp_path)
    assert [path.stem for path in (tmp_path / repair.NOTES).iterdir()] == ["other-3"]


@pytest.mark.parametrize("damage", [lambda file: file.unlink(), lambda _file: None])
def test_those_of_a_bundle_that_is_damaged_again_stay(
    damage: Callable[[Path], None], tmp_path: Path
) -> None:
    folder = add(tmp_path, "toy", "vae-1")
    note = find_note(tmp_path, "vae-1")
    note.parent.mkdir()
    note.touch()
    file = tmp_path / layout.COMPONENTS / "vae-1/weights-0"
    damage(file)
    repair.finish(folder, tmp_path)
    assert note.exists() != file.exists()
