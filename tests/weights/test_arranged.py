"""A model whose parts lie in the roots of repositories: only what is of a part has a place."""

from pathlib import Path

from worker.weights.arranged import ArrangedSnapshot
from worker.weights.snapshot import LocalSnapshot
from worker.weights.spec import Placement


def put(folder: Path, *names: str) -> LocalSnapshot:
    """Return a published folder whose files have their own names in them."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{folder.name}/{name}")
    return LocalSnapshot(folder, f"x/{folder.name}")


def test_each_file_of_a_part_is_in_its_folder_and_no_other_file_is_there(tmp_path: Path) -> None:
    model = put(
        tmp_path / "model",
        *("config.json", "model.safetensors", "worker.json"),
        *("README.md", "optimizer.pt", "runs/config.json", "model.safetensors.bak"),
    )
    codec = put(tmp_path / "codec", "config.json", "pytorch_model.bin", "README.md")
    placements = (
        Placement("language", r"config\.json|model\.safetensors"),
        Placement("codec", r"config\.json|pytorch_model\.bin"),
    )
    arranged = ArrangedSnapshot(model, {"codec": codec}, placements)
    found = {file.path: arranged.read_file(file).decode() for file in arranged.files}
    assert found == {
        "worker.json": "model/worker.json",
        "language/config.json": "model/config.json",
        "language/model.safetensors": "model/model.safetensors",
        "codec/config.json": "codec/config.json",
        "codec/pytorch_model.bin": "codec/pytorch_model.bin",
    }


def test_a_folder_of_a_part_comes_before_what_is_elsewhere(tmp_path: Path) -> None:
    model = put(tmp_path / "model", "config.json", "codec/config.json")
    codec = put(tmp_path / "codec", "config.json")
    placements = (Placement("language", "config.json"), Placement("codec", "config.json"))
    arranged = ArrangedSnapshot(model, {"codec": codec}, placements)
    found = {file.path: arranged.read_file(file).decode() for file in arranged.files}
    assert found == {
        "language/config.json": "model/config.json",
        "codec/config.json": "model/codec/config.json",
    }
