"""A published model on a disk of this machine: listed, proven where it lies, never changed."""

import errno
import hashlib
import json
import struct
from pathlib import Path

import pytest

from worker.errors import WeightsUnavailable
from worker.weights.proof import RemoteFile
from worker.weights.snapshot import LocalSnapshot, Proven, find_file


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


HEADER = json.dumps({"x": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}).encode()
WEIGHTS = struct.pack("<Q", len(HEADER)) + HEADER + b"1234"
CONTENT = {
    "model_index.json": b"{}",
    "vae/config.json": b'{"a": 1}',
    "vae/model.safetensors": WEIGHTS,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A plain folder, with what a checkout leaves in it."""
    for path, data in {**CONTENT, ".git/config": b"x", "vae/.cache": b"x"}.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(data)
    return tmp_path


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """The same as huggingface_hub's cache lays it out: links to files named by their digest."""
    blobs, folder = tmp_path / "blobs", tmp_path / "snapshots/commit"
    blobs.mkdir()
    for path, data in CONTENT.items():
        name = sha256(data) if path.endswith(".safetensors") else blob_id(data)
        (blobs / name).write_bytes(data)
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).symlink_to(blobs / name)
    return folder


def snapshot(folder: Path) -> LocalSnapshot:
    return LocalSnapshot(folder, "org/model")


def test_every_file_of_a_folder_is_listed_but_what_is_hidden(folder: Path) -> None:
    found = snapshot(folder)
    assert {file.path: file.size for file in found.files} == {
        path: len(data) for path, data in CONTENT.items()
    }
    assert {(file.sha256, file.blob_id) for file in found.files} == {(None, None)}
    assert found.commit == "local"


def test_a_caches_links_give_the_digests_away(cache: Path) -> None:
    files = {file.path: file for file in snapshot(cache).files}
    weights, config = files["vae/model.safetensors"], files["vae/config.json"]
    assert (weights.sha256, weights.blob_id) == (sha256(WEIGHTS), None)
    assert (config.sha256, config.blob_id) == (None, blob_id(CONTENT["vae/config.json"]))


def test_a_link_to_a_file_of_another_name_gives_nothing_away(folder: Path) -> None:
    (folder / "linked.json").symlink_to(folder / "model_index.json")
    file = find_file(snapshot(folder), "linked.json")
    assert (file.sha256, file.blob_id, file.size) == (None, None, 2)


def test_equal_digests_mean_equal_bytes_wherever_they_lie(folder: Path) -> None:
    found = snapshot(folder)
    for path, data in CONTENT.items():
        assert found.digest(find_file(found, path)) == f"sha256:{sha256(data)}"


def test_a_digest_that_a_link_gives_away_is_not_computed(cache: Path) -> None:
    found = snapshot(cache)
    files = {file.path: found.digest(file) for file in found.files}
    (cache.parents[1] / "blobs" / sha256(WEIGHTS)).write_bytes(b"damaged")
    assert files == {
        "model_index.json": f"git:{blob_id(b'{}')}",
        "vae/config.json": f"git:{blob_id(CONTENT['vae/config.json'])}",
        "vae/model.safetensors": f"sha256:{sha256(WEIGHTS)}",
    }
    assert found.digest(find_file(found, "vae/model.safetensors")) == files["vae/model.safetensors"]


@pytest.mark.parametrize("layout", ["folder", "cache"])
def test_a_file_is_given_where_it_lies_and_nothing_is_copied(
    layout: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    found = snapshot(request.getfixturevalue(layout))
    reported: list[tuple[str, int]] = []
    for path, data in CONTENT.items():
        file = find_file(found, path)
        proven = found.fetch_file(
            file, tmp_path / "into", lambda f, n: reported.append((f.path, n))
        )
        assert proven == Proven(found.folder / path, sha256(data), disposable=False)
    assert reported == [(path, len(data)) for path, data in CONTENT.items()]
    assert not (tmp_path / "into").exists()


@pytest.mark.parametrize("path", CONTENT)
@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_file_of_a_cache_is_not_given_and_not_touched(
    cache: Path, path: str, damage: str
) -> None:
    found = snapshot(cache)
    file = find_file(found, path)
    data = CONTENT[path][:-1] if damage == "cut" else CONTENT[path][:-1] + b"\x7f"
    (cache / path).resolve().write_bytes(data)
    with pytest.raises(WeightsUnavailable, match=f"org/model: the local {path} has") as caught:
        found.fetch_file(file, cache)
    assert str(cache) not in caught.value.message
    with pytest.raises(WeightsUnavailable, match="replace that file"):
        found.read_file(file)
    assert (cache / path).read_bytes() == data


def test_a_cut_safetensors_file_of_a_plain_folder_is_not_given(folder: Path) -> None:
    found = snapshot(folder)
    (folder / "vae/model.safetensors").write_bytes(WEIGHTS[:-1])
    again = snapshot(folder)
    for each in (found, again):
        with pytest.raises(WeightsUnavailable, match=r"vae/model.safetensors has .* instead of"):
            each.fetch_file(find_file(each, "vae/model.safetensors"), folder)


def test_a_range_is_read_exactly_and_never_past_the_end(folder: Path) -> None:
    found = snapshot(folder)
    file = find_file(found, "vae/model.safetensors")
    assert found.read_range(file, 3, 11) == WEIGHTS[3:11]
    assert found.read_range(file, 0, len(WEIGHTS)) == WEIGHTS
    assert found.read_range(file, 7, 7) == b""
    with pytest.raises(WeightsUnavailable, match=f"no bytes 3 to {len(WEIGHTS) + 1}"):
        found.read_range(file, 3, len(WEIGHTS) + 1)


def test_a_small_file_is_read_whole(folder: Path, cache: Path) -> None:
    for each in (snapshot(folder), snapshot(cache)):
        assert each.read_file(find_file(each, "vae/config.json")) == CONTENT["vae/config.json"]


def test_a_file_that_changes_after_it_was_read_is_named(folder: Path) -> None:
    found = snapshot(folder)
    file = find_file(found, "vae/config.json")
    first = found.digest(file)
    assert found.digest(file) == first
    (folder / file.path).write_bytes(b"{'a': 2}")
    with pytest.raises(WeightsUnavailable, match=r"vae/config.json has changed while it was read"):
        found.digest(file)


def test_a_file_that_is_not_there_is_named(folder: Path) -> None:
    found = snapshot(folder)
    assert find_file(found, "model_index.json") == RemoteFile("model_index.json", 2)
    with pytest.raises(WeightsUnavailable, match=r"org/model has no vae/other.json; check MODEL"):
        find_file(found, "vae/other.json")


def test_a_file_that_is_gone_meanwhile_cannot_be_read(folder: Path) -> None:
    found = snapshot(folder)
    files = found.files
    for file in files:
        (folder / file.path).unlink()
        for read in (
            lambda file=file: found.digest(file),
            lambda file=file: found.fetch_file(file, folder),
            lambda file=file: found.read_file(file),
            lambda file=file: found.read_range(file, 0, 1),
        ):
            with pytest.raises(WeightsUnavailable, match=f"{file.path} cannot be read .No such"):
                read()


def test_a_folder_that_cannot_be_read_says_why(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_path: Path) -> bool:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "is_symlink", refuse)
    with pytest.raises(WeightsUnavailable, match=r"org/model: .*\(Input/output error\)"):
        _ = snapshot(folder).files


def test_a_file_that_is_no_link_proves_nothing_by_its_name(folder: Path) -> None:
    for digits in (40, 64):
        (folder / ("a" * digits)).write_bytes(b"x")
        file = find_file(snapshot(folder), "a" * digits)
        assert (file.sha256, file.blob_id) == (None, None)


def test_a_file_of_another_form_has_no_header_to_be_cut(folder: Path) -> None:
    (folder / "vae/model.bin").write_bytes(b"x")
    found = snapshot(folder)
    assert found.fetch_file(find_file(found, "vae/model.bin"), folder).sha256 == sha256(b"x")
