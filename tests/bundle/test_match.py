"""Which bundle of a volume is the requested model, and what is said of the nearest that is not."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from worker.bundle import layout, match
from worker.bundle.content import Content
from worker.bundle.layout import Bundle, LoraRecord
from worker.bundle.match import Required
from worker.bundle.recipe import Part, Recipe
from worker.weights.snapshot import LOCAL, LocalSnapshot
from worker.weights.spec import Listing, LoraFile, ModelSpec

COMMIT = "c" * 40
OWN, OTHERS = LoraFile(None, "light/8.safetensors"), LoraFile("org/light", "4.safetensors")
SPEC = ModelSpec(
    "toy-2",
    "org/toy",
    "ToyPipeline",
    lightning={8: OWN, 4: OTHERS},
    listing=Listing(plain="toy"),
)
RECIPE = Recipe(
    parts=(Part("words"),),
    check=lambda _snapshot, _spec: pytest.fail("nothing is checked"),
    adapted="words",
    reached=lambda _config: (),
    waiting="words",
)


def required(**named: Any) -> Required:
    fields: dict[str, Any] = {
        "spec": SPEC,
        "fused": None,
        "steps": (),
        "commits": frozenset(),
        "folder": None,
        "only_folder": False,
    }
    return Required(**{**fields, **named})


def record(lora: LoraFile, **named: Any) -> LoraRecord:
    fields: dict[str, Any] = {
        "repository": lora.repository or "org/toy",
        "filename": lora.filename,
        "digest": "sha256:1",
        "scale": "",
    }
    return LoraRecord(**{**fields, **named})


def bundle(**named: Any) -> Bundle:
    fields: dict[str, Any] = {
        "format": layout.FORMAT,
        "model": "toy",
        "repository": "org/toy",
        "revision": COMMIT,
        "asked": "main",
        "pipeline": "ToyPipeline",
        "precision": "bf16",
        "fused": None,
        "lightning": {},
        "components": {},
        "libraries": {},
    }
    return Bundle(**{**fields, **named})


def add(home: Path, name: str, **named: Any) -> Path:
    folder = home / layout.BUNDLES / name
    folder.mkdir(parents=True)
    layout.publish(folder, bundle(**named))
    return folder


def published(tmp_path: Path) -> Content:
    """Return a published folder without a file."""
    (tmp_path / "published").mkdir(exist_ok=True)
    return Content(LocalSnapshot(tmp_path / "published", "org/toy"), RECIPE)


def test_the_best_is_whole_and_of_the_precision_with_the_fewest_loras(tmp_path: Path) -> None:
    """Of equal ones the first by name."""
    lightning = {8: record(OWN)}
    add(tmp_path, "a", precision="4bit")
    add(tmp_path, "b", pipeline="Other")
    add(tmp_path, "c", components={"words": "words-1"})
    add(tmp_path, "d", lightning=lightning)
    first, second = add(tmp_path, "e"), add(tmp_path, "f")
    assert match.find_best(tmp_path, required(), "bf16") == (first, None)
    assert match.find_best(tmp_path, required(steps=(8,), folder=None), "bf16") is not None
    (first / layout.MANIFEST).unlink()
    assert match.find_best(tmp_path, required(), "bf16") == (second, None)
    assert [folder.name for folder, _ in match.find_matching(tmp_path, required())] == list("acdf")


@pytest.mark.parametrize(
    "named",
    [
        {"model": "toy-2", "repository": "other/toy"},
        {"model": "toy", "repository": "other/toy"},
        {"model": "painter", "repository": "ORG/Toy", "pipeline": "Other"},
    ],
)
def test_why_the_first_that_looks_like_it_will_not_do_is_said(
    named: dict[str, Any], tmp_path: Path
) -> None:
    add(tmp_path, "a", model="painter", repository="other/painter")
    near = add(tmp_path, "b", **named)
    add(tmp_path, "c", **named)
    found = match.find_best(tmp_path, required(), "bf16")
    assert found is not None
    assert found[0] == near
    assert found[1] == match.find_mismatch(near, layout.read_bundle(near), required())
    assert match.find_best(tmp_path, required(), "8bit") is None


def test_no_model_is_like_it_where_none_has_its_name(tmp_path: Path) -> None:
    add(tmp_path, "a", model="painter", repository="other/painter")
    assert match.find_best(tmp_path, required(), "bf16") is None


@pytest.mark.parametrize(
    ("named", "wanted", "reason"),
    [
        ({}, {}, None),
        ({"pipeline": "Other"}, {}, "holds a Other, not a ToyPipeline"),
        ({"pipeline": "Other"}, {"spec": replace(SPEC, pipeline="")}, None),
        ({"repository": "bob/toy"}, {}, "is of bob/toy, not of org/toy"),
        ({"asked": "v1"}, {}, "is not known to be of the revision main"),
        ({"asked": "v1"}, {"commits": frozenset({COMMIT})}, None),
        ({"asked": "v1"}, {"spec": replace(SPEC, revision="v1")}, None),
        ({}, {"spec": replace(SPEC, revision=COMMIT)}, None),
        ({"replaced": "org/other"}, {}, "was made with TRANSFORMER=org/other"),
        ({"revision": LOCAL, "asked": None}, {}, "was made of a folder, not of org/toy"),
        ({}, {"only_folder": True}, "was made of a folder, not of org/toy"),
    ],
)
def test_a_bundle_is_the_model_by_what_its_manifest_says(
    named: dict[str, Any], wanted: dict[str, Any], reason: str | None, tmp_path: Path
) -> None:
    found = match.find_mismatch(tmp_path, bundle(**named), required(**wanted))
    assert found == reason


def test_a_folders_bundle_is_compared_with_the_folder(tmp_path: Path) -> None:
    """If it claims to be of it; one of a repository too where the operator named the folder."""
    content = published(tmp_path)
    mine: dict[str, Any] = {"revision": LOCAL, "asked": None}
    whole = add(tmp_path, "whole", **mine)
    broken = add(tmp_path, "broken", components={"words": "words-1"}, **mine)

    def reason(folder: Path, *, only_folder: bool = False, **named: Any) -> str | None:
        wanted = required(folder=content, only_folder=only_folder)
        return match.find_mismatch(folder, bundle(**named), wanted)

    assert reason(whole, **mine) is None
    assert reason(whole, repository="bob/toy", **mine) == "was made of a folder, not of org/toy"
    assert reason(whole, only_folder=True, repository="bob/toy", **mine) is None
    assert reason(whole, only_folder=True) is None
    assert reason(whole, asked="v1") == "is not known to be of the revision main"
    assert "words-1" in str(reason(broken, **mine))
    (content.snapshot.folder / "worker.json").write_text('{"area": 1}')  # type: ignore[attr-defined]
    changed = required(folder=published(tmp_path))
    assert match.find_mismatch(whole, bundle(**mine), changed) == (
        "was made of other files than the folder's (worker.json)"
    )


def test_a_folders_own_loras_are_compared_with_the_folder(tmp_path: Path) -> None:
    """Not those of another repository, nor one that the model no longer offers."""
    content = published(tmp_path)
    file = tmp_path / "published" / OWN.filename
    file.parent.mkdir()
    file.write_bytes(b"eight")
    lightning = {
        8: record(OWN, digest=f"sha256:{layout.hash_file(file)}"),
        4: record(OTHERS),
        2: record(LoraFile(None, "light/2.safetensors")),
    }
    mine = bundle(revision=LOCAL, asked=None, lightning=lightning)
    folder = add(tmp_path, "mine", revision=LOCAL, asked=None, lightning=lightning)
    assert match.find_mismatch(folder, mine, required(folder=content)) is None
    file.write_bytes(b"other")
    changed = required(folder=published(tmp_path))
    assert match.find_mismatch(folder, mine, changed) == (
        "was made of other files than the folder's (8.safetensors)"
    )


@pytest.mark.parametrize(
    ("named", "wanted", "reason"),
    [
        ({}, {}, None),
        ({"fused": 8}, {}, "has the LoRA for 8 steps in its weights, not no LoRA"),
        ({}, {"fused": 4}, "has no LoRA in its weights, not the LoRA for 4 steps"),
        ({"fused": 8}, {"fused": 8}, None),
        ({}, {"steps": (8,)}, "has no Lightning LoRA for 8 steps"),
        ({8: OWN}, {"steps": (8,)}, None),
        ({8: OWN, 4: OTHERS}, {"steps": (8, 4)}, None),
        ({8: OWN}, {"steps": (8, 4)}, "has no Lightning LoRA for 4 steps"),
        ({8: LoraFile("ORG/toy", OWN.filename)}, {"steps": (8,)}, None),
        ({8: LoraFile("bob/toy", OWN.filename)}, {"steps": (8,)}, "another Lightning LoRA for 8"),
        ({8: LoraFile(None, "9")}, {"steps": (8,)}, "has another Lightning LoRA for 8 steps"),
        (
            {4: LoraFile("org/toy", "4.safetensors")},
            {"steps": (4,)},
            "another Lightning LoRA for 4",
        ),
    ],
)
def test_the_lora_that_a_bundle_lacks_is_named(
    named: dict[Any, Any], wanted: dict[str, Any], reason: str | None
) -> None:
    fields = {key: value for key, value in named.items() if isinstance(key, str)}
    lightning = {key: record(value) for key, value in named.items() if isinstance(key, int)}
    found = match.find_missing_lora(bundle(lightning=lightning, **fields), required(**wanted))
    assert found == reason if reason is None else reason in str(found)


def test_a_lora_of_0_1_0_is_taken_where_surely_no_scale_was_missed(tmp_path: Path) -> None:
    """One of the catalogue's repositories, or of a folder whose file states none."""
    old = bundle(lightning={n: record(lora, scale=None) for n, lora in SPEC.lightning.items()})
    content = published(tmp_path)
    file = tmp_path / "published" / OWN.filename
    file.parent.mkdir()

    def reason(*steps: int, folder: Content | None) -> str | None:
        return match.find_missing_lora(old, required(steps=steps, folder=folder))

    assert reason(4, folder=None) is None
    assert "may hold the LoRA for 8 steps in another scale" in str(reason(8, folder=None))
    for stated, surely in ((b"{}", True), (b'{"__metadata__":{"lora_alpha":"2","r":"1"}}', False)):
        file.write_bytes(len(stated).to_bytes(8, "little") + stated)
        found = reason(8, 4, folder=replace(content, snapshot=published(tmp_path).snapshot))
        assert (found is None) == surely
