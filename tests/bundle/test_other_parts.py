"""LIGHTNING and TRANSFORMER: a model with parts of other repositories, in a bundle of its own."""

import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from worker import settings
from worker.bundle import layout
from worker.bundle.obtain import Obtained, obtain
from worker.errors import InvalidSettings, WeightsUnavailable
from worker.families.catalogue import CATALOGUE
from worker.families.qwen_image.opening import open_bundle
from worker.families.qwen_image.recipe import RECIPE
from worker.weights import metadata, space
from worker.weights.joined import join
from worker.weights.snapshot import LocalSnapshot
from worlds import prepared
from worlds.hub import Hub, running
from worlds.repository import brief

CONFIG, SHARD = "config.json", "diffusion_pytorch_model.safetensors"
LIGHTNING = "org/light/files/style-{n}steps.safetensors"


def read_transformer(change: float = 0.0) -> dict[str, bytes]:
    """Return the embedded transformer's two files, one of its biases shifted."""
    folder = prepared.folder_of("tiny-image") / "transformer"
    state = load((folder / SHARD).read_bytes())
    state["proj_out.bias"] = state["proj_out.bias"] + change
    return {CONFIG: (folder / CONFIG).read_bytes(), SHARD: save(state)}


def read_lora(steps: int) -> bytes:
    (name,) = [f.filename for n, f in prepared.SPECS["tiny-image"].lightning.items() if n == steps]
    return (prepared.folder_of("tiny-image") / name).read_bytes()


def below(folder: str, files: Mapping[str, bytes]) -> dict[str, bytes]:
    return {f"{folder}/{name}": data for name, data in files.items()}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return brief(prepared.folder_of("tiny-image"), tmp_path_factory.mktemp("published") / "own")


@pytest.fixture
def hub(published: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with a model, and other transformers and LoRAs elsewhere."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    with running() as found:
        found.add("org/own", published)
        found.add("org/merged", {**below("transformer", read_transformer(0.5)), "README.md": b""})
        found.add("org/bare", read_transformer(1.0))
        found.add("org/many", below("v2/best", read_transformer(2.0)))
        found.add(
            "org/light",
            below("files", {f"style-{n}steps.safetensors": read_lora(n) for n in (4, 8)}),
        )
        yield found


def make(hub: Hub, home: Path, **environ: str) -> Obtained:
    """Obtain the bundle of org/own under settings."""
    chosen = settings.read(
        {
            "MODEL": "org/own",
            "MODEL_DIR": str(home),
            "MIN_STORAGE_FREE_GB": "0",
            "HF_ENDPOINT": hub.endpoint,
            **environ,
        }
    )
    (spec,) = CATALOGUE.resolve(chosen.model, chosen, has_gpu=False)
    return obtain(spec, RECIPE, chosen, None, CATALOGUE)


def read_bias(found: Obtained) -> torch.Tensor:
    """Return the shifted bias of an open bundle."""
    bias: torch.Tensor = open_bundle(found.folder, prepared.CPU).transformer.proj_out.bias
    return bias


def test_another_transformer_takes_the_place_of_the_models_own(hub: Hub, tmp_path: Path) -> None:
    """From a folder called transformer, from the root, from any folder; each its own bundle."""
    own = make(hub, tmp_path)
    for word, change in (("org/merged", 0.5), ("org/many/v2/best", 2.0)):
        found = make(hub, tmp_path, TRANSFORMER=word)
        assert torch.equal(read_bias(found), read_bias(own) + change)
        assert found.bundle.replaced == word
        assert found.folder != own.folder
        again = make(hub, tmp_path, TRANSFORMER=word)
        assert (again.folder, again.facts["source"]) == (found.folder, "MODEL_DIR")
        parts = own.bundle.components
        changed = {role for role in parts if parts[role] != found.bundle.components[role]}
        assert changed == {"transformer"}
    assert make(hub, tmp_path).folder == own.folder


def test_a_lightning_lora_may_lie_elsewhere(hub: Hub, tmp_path: Path) -> None:
    """{n} stands for the steps; a model's own are not used then, nor a bundle that has them."""
    own = make(hub, tmp_path)
    found = make(hub, tmp_path, LIGHTNING=LIGHTNING, LIGHTNING_STEPS="8,4")
    assert found.lightning == (8, 4)
    records = found.bundle.lightning
    assert {(n, r.repository, r.filename) for n, r in records.items()} == {
        (n, "org/light", f"files/style-{n}steps.safetensors") for n in (4, 8)
    }
    assert found.folder != own.folder
    again = make(hub, tmp_path, LIGHTNING=LIGHTNING, LIGHTNING_STEPS="8,4")
    assert (again.folder, again.facts["source"]) == (found.folder, "MODEL_DIR")
    assert again.spec.lightning == found.spec.lightning
    assert make(hub, tmp_path, LIGHTNING=LIGHTNING).lightning == (8,)
    assert make(hub, tmp_path).folder == own.folder


def test_the_model_of_a_folder_may_have_the_loras_of_a_repository(hub: Hub, tmp_path: Path) -> None:
    """Which are no files of the folder: it is known by its own."""
    folder = Path(shutil.copytree(prepared.folder_of("tiny-image"), tmp_path / "mine"))
    found = make(hub, tmp_path / "home", MODEL=str(folder), LIGHTNING=LIGHTNING)
    assert found.lightning == (8,)
    assert found.bundle.lightning[8].repository == "org/light"


def test_a_bundle_that_is_named_serves_the_loras_that_it_has(hub: Hub, tmp_path: Path) -> None:
    """Whatever else its model offers."""
    row = CATALOGUE.find_row("qwen-image")
    hub.add(row.repository, prepared.folder_of("tiny-image"))
    own = make(hub, tmp_path / "home", MODEL=row.name, USE_LIGHTNING_LORA="false")
    found = make(hub, tmp_path / "other", MODEL=row.name, MODEL_PATH=str(own.folder))
    assert (found.folder, found.lightning) == (own.folder, ())
    assert found.facts["reason"] == "the bundle's own" != own.facts["reason"]
    assert found.facts["precision"] == own.facts["precision"] == "bf16"


def test_what_a_dead_process_downloaded_is_deleted_before_more_is(hub: Hub, tmp_path: Path) -> None:
    left = tmp_path / "downloads/any/.x.safetensors.h00000000-1-1-1.part"
    left.parent.mkdir(parents=True)
    left.touch()
    os.utime(left, (0, 0))
    make(hub, tmp_path)
    assert not left.exists()


class Bar:
    """A bar of a terminal that shows nothing."""

    n = 0

    def update(self, _more: int) -> None:
        """Take what is there."""

    def close(self) -> None:
        """Go."""


def test_a_download_is_shown_by_the_bytes_of_the_weights(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is read where it lies is shown by none."""
    shown: list[int] = []

    def show(*, total: int, **_: Any) -> Bar:
        shown.append(total)
        return Bar()

    monkeypatch.setattr("worker.weights.meter.tqdm", show)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    make(hub, tmp_path / "local", MODEL=str(prepared.folder_of("tiny-image")))
    assert shown == []
    make(hub, tmp_path / "home")
    weights = prepared.folder_of("tiny-image").rglob("*.safetensors")
    assert shown == [sum(path.stat().st_size for path in weights)]


def test_a_model_that_has_another_transformer_does_not_fetch_its_own(
    hub: Hub, tmp_path: Path
) -> None:
    own = prepared.folder_of("tiny-image")
    files = {p.relative_to(own).as_posix(): p.read_bytes() for p in own.rglob("*") if p.is_file()}
    hub.add("org/parts", {n: data for n, data in files.items() if n != f"transformer/{SHARD}"})
    found = make(hub, tmp_path, MODEL="org/parts", TRANSFORMER="org/bare")
    assert found.bundle.repository == "org/parts"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("org/own/vae2", "org/own has no config.json in vae2/"),
        ("org/light", r"org/light has no config.json in transformer/ or its root"),
    ],
)
def test_what_is_no_transformer_is_named(hub: Hub, tmp_path: Path, word: str, message: str) -> None:
    with pytest.raises(WeightsUnavailable, match=message):
        make(hub, tmp_path, TRANSFORMER=word)


def publish(hub: Hub, found: Obtained, name: str) -> None:
    """Publish a bundle as a repository of its own."""
    files = layout.list_files(layout.verify(found.folder))
    hub.add(name, {path: place.read_bytes() for path, place in files.items()})


@pytest.mark.parametrize(("name", "value"), [("LIGHTNING", LIGHTNING), ("TRANSFORMER", "org/bare")])
def test_a_published_bundle_takes_no_parts_of_others(
    hub: Hub, tmp_path: Path, name: str, value: str
) -> None:
    publish(hub, make(hub, tmp_path / "home"), "me/whole")
    with pytest.raises(WeightsUnavailable, match="me/whole is a bundle: LIGHTNING and TRANSFORMER"):
        make(hub, tmp_path / "other", MODEL="me/whole", **{name: value})


def test_a_bundle_that_is_there_is_not_downloaded_again(hub: Hub, tmp_path: Path) -> None:
    """Also where nothing records any more which commit the revision means."""
    publish(hub, make(hub, tmp_path / "home"), "me/whole")
    first = make(hub, tmp_path / "other", MODEL="me/whole")
    assert hub.requests("bytes")[-1].path == layout.MANIFEST, "last, once all else is there"
    shutil.rmtree(tmp_path / "other" / metadata.KEPT)
    hub.seen.clear()
    assert make(hub, tmp_path / "other", MODEL="me/whole").folder == first.folder
    assert {seen.path for seen in hub.requests("bytes")} == {layout.MANIFEST}


def test_why_a_bundle_will_not_do_is_told_where_no_other_can_be_made(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(hub, tmp_path)
    monkeypatch.setattr(space, "is_writable", lambda _: False)
    reason = r"has a bundle that will not do \(.*has no LoRA for 2 steps"
    with pytest.raises(WeightsUnavailable, match=reason):
        make(hub, tmp_path, LIGHTNING_STEPS="2")


@pytest.mark.parametrize("name", ["LIGHTNING", "TRANSFORMER"])
def test_they_are_for_one_model(name: str) -> None:
    value = LIGHTNING if name == "LIGHTNING" else "org/bare"
    chosen = settings.read({"MODEL": "tiny", name: value})
    with pytest.raises(InvalidSettings, match=f"{name}: is for one model"):
        CATALOGUE.resolve(chosen.model, chosen, has_gpu=False)


def test_a_file_without_n_says_its_steps_itself() -> None:
    chosen = settings.read(
        {"MODEL": "qwen-image", "LIGHTNING": "a/b/x-Lightning-6steps-v1.safetensors"}
    )
    (spec,) = CATALOGUE.resolve(chosen.model, chosen, has_gpu=False)
    assert {n: (f.repository, f.filename) for n, f in spec.lightning.items()} == {
        6: ("a/b", "x-Lightning-6steps-v1.safetensors")
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("LIGHTNING", value) for value in ("a/b", "a/b/x.safetensors", "a/b/{n}.bin", "a/{n}")),
        *(("LIGHTNING", value) for value in ("a/b/../{n}.safetensors", "a/b/{n}.safetensors@main")),
        *(("LIGHTNING", value) for value in ("{n}/b/x.safetensors", "a/Lightning-8steps")),
        *(("TRANSFORMER", value) for value in ("a", "a/b/", "a/b/../c", "/a/b", "a/b@main", "")),
    ],
)
def test_what_names_no_place_is_refused_at_the_start(name: str, value: str) -> None:
    if not value:
        assert settings.read({name: value}).transformer is None
        return
    with pytest.raises(InvalidSettings, match=name):
        settings.read({name: value})


def test_a_joined_snapshot_has_the_bytes_of_both(tmp_path: Path) -> None:
    """Files of folders below the transformer's belong to neither."""
    for name, text in {
        "own/vae/a.json": "vae",
        "own/transformer/config.json": "own",
        "other/config.json": "other",
        "other/sub/config.json": "no",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    own, other = (LocalSnapshot(tmp_path / one, f"org/{one}") for one in ("own", "other"))
    joined = join(own, other, "", "transformer")
    assert {file.path: joined.read_file(file) for file in joined.files} == {
        "vae/a.json": b"vae",
        "transformer/config.json": b"other",
    }
    assert (joined.repository, joined.commit) == (own.repository, own.commit)
    vae, config = joined.files
    assert joined.read_range(config, 1, 3) == b"th"
    assert joined.digest(vae) == own.digest(vae)
    told: list[tuple[str, int]] = []
    proven = joined.fetch_file(config, tmp_path, lambda file, done: told.append((file.path, done)))
    assert proven.path.read_text() == "other"
    assert told == [("transformer/config.json", 5)]
