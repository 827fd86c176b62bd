"""A model with parts of another repository: each file has one place, and its holder gives it."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from faults.room import FAST, TOKEN

from worker import settings
from worker.errors import WeightsUnavailable
from worker.weights import metadata
from worker.weights.arranged import ArrangedSnapshot
from worker.weights.download import HubSnapshot
from worker.weights.joined import join
from worker.weights.snapshot import Snapshot, find_file
from worker.weights.spec import Placement
from worlds.hub import running

OWN = {
    "model_index.json": b"{}",
    "transformer/config.json": b"own",
    "transformer/old.safetensors": b"own weights",
    "vae/config.json": b"vae",
}
OTHER = {
    "README.md": b"other",
    "config.json": b"of the root",
    "v2/best/config.json": b"best",
    "v2/best/new.safetensors": b"best weights",
    "v2/best/deeper/config.json": b"deeper",
    "transformer/config.json": b"of the folder",
}


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[tuple[HubSnapshot, HubSnapshot]]:
    with running() as hub:
        hub.add("org/own", OWN)
        hub.add("org/other", OTHER)
        read = settings.read(
            {
                "HF_ENDPOINT": hub.endpoint,
                "HF_TOKEN": TOKEN,
                "MODEL_DIR": str(tmp_path),
                "MIN_STORAGE_FREE_GB": "0",
            }
        )
        own, other = (
            metadata.resolve(name, None, read, patience=FAST) for name in ("org/own", "org/other")
        )
        yield own, other


def read_all(snapshot: Snapshot) -> dict[str, str]:
    return {file.path: snapshot.read_file(file).decode() for file in snapshot.files}


@pytest.mark.parametrize(
    ("folder", "config"),
    [("v2/best", "best"), ("", "of the folder"), ("transformer", "of the folder")],
)
def test_a_folder_is_replaced_by_the_one_that_is_named_or_has_its_name(
    opened: tuple[HubSnapshot, HubSnapshot], folder: str, config: str
) -> None:
    found = read_all(join(*opened, folder, "transformer"))
    weights = {"transformer/new.safetensors": "best weights"} if folder == "v2/best" else {}
    assert found == {
        "model_index.json": "{}",
        "vae/config.json": "vae",
        "transformer/config.json": config,
        **weights,
    }


def test_without_such_a_folder_the_root_replaces_it(
    opened: tuple[HubSnapshot, HubSnapshot],
) -> None:
    found = read_all(join(*opened, "", "unet"))
    assert found["unet/config.json"] == "of the root"
    assert found["unet/README.md"] == "other"
    assert found["transformer/config.json"] == "own"


@pytest.mark.parametrize(("folder", "where"), [("v3", "v3/"), ("v2", "v2/")])
def test_a_folder_without_a_description_is_named(
    opened: tuple[HubSnapshot, HubSnapshot], folder: str, where: str
) -> None:
    with pytest.raises(WeightsUnavailable, match=f"org/other has no config.json in {where}:"):
        join(*opened, folder, "transformer")


def arranged(own: HubSnapshot, other: HubSnapshot) -> Snapshot:
    """Return the same by placements: the other's root in the place of a part."""
    placements = (Placement("vae", "config.json"), Placement("transformer", "config.json"))
    kept = replace(own, files=tuple(f for f in own.files if not f.path.startswith("transformer/")))
    return ArrangedSnapshot(kept, {"transformer": other}, placements)


@pytest.mark.parametrize("way", ["joined", "arranged"])
def test_every_file_comes_from_its_holder_under_its_place(
    opened: tuple[HubSnapshot, HubSnapshot], tmp_path: Path, way: str
) -> None:
    """Its size, proof and bytes are the holder's; copies of two repositories do not meet."""
    own, other = opened
    made = join(own, other, "", "transformer") if way == "joined" else arranged(own, other)
    assert (made.repository, made.commit) == ("org/own", own.commit)
    reported: list[tuple[str, int]] = []
    there = "transformer/config.json" if way == "joined" else "config.json"
    for path, holder, place, below in (
        ("vae/config.json", own, "vae/config.json", ""),
        ("transformer/config.json", other, there, f"org--other-{other.commit}"),
    ):
        file, held = find_file(made, path), find_file(holder, place)
        assert replace(file, path=place) == held
        assert made.digest(file) == holder.digest(held)
        assert made.read_range(file, 1, 3) == holder.read_range(held, 1, 3)
        proven = made.fetch_file(
            file, tmp_path / way, lambda f, done: reported.append((f.path, done))
        )
        assert proven.path == tmp_path / way / below / place
        assert proven.path.read_bytes() == holder.read_file(held)
        assert reported[-1] == (path, file.size)
