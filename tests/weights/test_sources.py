"""Weights are taken from the first place that has them whole, and the others say why not."""

import errno
import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from worker import settings
from worker.errors import WeightsUnavailable
from worker.families.catalogue import CATALOGUE
from worker.settings import Settings
from worker.weights import checkpoint, metadata, sources
from worker.weights.meaning import find_checkpoints
from worker.weights.proof import digest_file
from worker.weights.snapshot import LocalSnapshot, find_file
from worker.weights.sources import WeightSource
from worker.weights.spec import Elsewhere, LoraFile, ModelSpec, Placement

ROOT = Path(__file__).parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
LAST = "diffusion_pytorch_model-00002-of-00002.safetensors"
SPEC = CATALOGUE.find_row("qwen-image")


def safetensors(values: int = 4) -> bytes:
    header = json.dumps(
        {"x": {"dtype": "U8", "shape": [values], "data_offsets": [0, values]}}
    ).encode()
    return struct.pack("<Q", len(header)) + header + bytes(values)


def publish(folder: Path, pipeline: str = "QwenImagePipeline") -> Path:
    """Lay out a published model of a few bytes."""
    parts = ("transformer", "text_encoder", "vae", "tokenizer", "scheduler")
    for part in parts:
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text("{}")
    index = {"_class_name": pipeline, **{part: ["a", "b"] for part in parts}}
    (folder / "model_index.json").write_text(json.dumps(index))
    shards = {f"x{n}": LAST.replace("00002-of", f"0000{n}-of") for n in (1, 2)}
    for name in shards.values():
        (folder / "transformer" / name).write_bytes(safetensors())
    (folder / "transformer/diffusion_pytorch_model.safetensors.index.json").write_text(
        json.dumps({"weight_map": shards})
    )
    (folder / "text_encoder/model.safetensors").write_bytes(safetensors())
    (folder / "vae/diffusion_pytorch_model.safetensors").write_bytes(safetensors())
    return folder


def cache(root: Path, repository: str = SPEC.repository) -> Path:
    """Lay a repository out as RunPod's cache does; return the snapshot's folder."""
    at = root / f"models--{repository.replace('/', '--')}"
    (at / "refs").mkdir(parents=True)
    (at / "refs/main").write_text(COMMIT)
    return at / "snapshots" / COMMIT


def bundle(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "whole").touch()
    return folder


def bundle_fault(folder: Path) -> str | None:
    return None if (folder / "whole").is_file() else "has no manifest"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


def configured(home: Path, **environ: str) -> Settings:
    return settings.read({"RUNPOD_CACHE_DIR": str(home / "cache"), **environ})


def find(home: Path, spec: ModelSpec = SPEC, **environ: str) -> WeightSource:
    return sources.find(
        spec,
        configured(home, **environ),
        bundle=home / "models/qwen-image-4bit",
        bundle_fault=bundle_fault,
        baked=home / "baked",
    )


def test_with_nothing_anywhere_the_hub_is_asked_and_every_place_says_why_not(home: Path) -> None:
    source = find(home)
    assert (source.kind, source.folder, source.bundle) == ("hub", None, False)
    assert source.describe()["not_used"] == {
        "MODEL_DIR": "no bundle yet",
        "MODEL_PATH": "not set",
        "RunPod cache": "not there",
        "image": "not there",
    }


def test_the_places_come_in_their_order(home: Path) -> None:
    order: list[str] = []
    publish(home / "baked/qwen-image")
    order.append(find(home).kind)
    publish(cache(home / "cache"))
    order.append(find(home).kind)
    publish(home / "mine")
    order.append(find(home, MODEL_PATH=str(home / "mine")).kind)
    bundle(home / "models/qwen-image-4bit")
    order.append(find(home, MODEL_PATH=str(home / "mine")).kind)
    assert order == ["image", "RunPod cache", "MODEL_PATH", "MODEL_DIR"]


def test_the_cache_gives_its_commit(home: Path) -> None:
    folder = publish(cache(home / "cache"))
    source = find(home)
    assert (source.folder, source.commit, source.bundle) == (folder, COMMIT, False)


def test_the_cache_finds_a_repository_in_any_case(home: Path) -> None:
    folder = publish(cache(home / "cache", SPEC.repository.lower()))
    assert find(home).folder == folder


def test_the_cache_of_another_revision_is_not_used(home: Path) -> None:
    publish(cache(home / "cache"))
    source = find(home, replace(SPEC, revision="v9"))
    assert source.kind == "hub"
    assert "v9" in source.describe()["not_used"]["RunPod cache"]


def test_a_cache_without_refs_is_used_when_it_holds_one_snapshot(home: Path) -> None:
    folder = publish(cache(home / "cache"))
    (folder.parents[1] / "refs/main").unlink()
    assert find(home).folder == folder


@pytest.mark.parametrize(
    ("environ", "place"),
    [
        ({"HF_HOME": "hf"}, "hf/hub"),
        ({"HF_HUB_CACHE": "there"}, "there"),
        ({"HUGGINGFACE_HUB_CACHE": "there"}, "there"),
        ({"HF_HOME": "hf", "HF_HUB_CACHE": "there"}, "there"),
    ],
)
def test_hugging_faces_own_cache_is_looked_into_behind_runpods(
    home: Path, environ: dict[str, str], place: str
) -> None:
    given: Any = {name: str(home / value) for name, value in environ.items()}
    publish(home / "baked/qwen-image")
    assert find(home, **given).kind == "image"
    assert find(home, **given).describe()["not_used"]["HF cache"] == "not there"
    folder = publish(cache(home / place))
    source = find(home, **given)
    assert (source.kind, source.folder, source.commit) == ("HF cache", folder, COMMIT)
    assert find(home, replace(SPEC, revision="v9"), **given).kind == "hub"
    publish(cache(home / "cache"))
    assert find(home, **given).kind == "RunPod cache"


def test_hugging_faces_cache_is_not_looked_into_unless_it_is_named(home: Path) -> None:
    assert "HF cache" not in find(home).describe()["not_used"]
    same = find(home, HF_HUB_CACHE=str(home / "cache")).describe()["not_used"]
    assert ("HF cache" in same, "RunPod cache" in same) == (False, True)


def test_a_lora_may_come_from_hugging_faces_cache(home: Path) -> None:
    own = LocalSnapshot(publish(home / "mine"), "mine")
    empty = cache(home / "cache", "someone/loras")
    empty.mkdir(parents=True)
    folder = cache(home / "hf/hub", "someone/loras")
    folder.mkdir(parents=True)
    (folder / "b.safetensors").write_bytes(safetensors())
    read = configured(home, HF_HOME=str(home / "hf"))
    found = sources.open_lora(LoraFile("someone/loras", "b.safetensors"), own, read)
    assert isinstance(found, LocalSnapshot)
    assert found.folder == folder


@pytest.mark.parametrize("place", ["MODEL_PATH", "RunPod cache", "image"])
def test_a_bundle_may_lie_in_every_place(home: Path, place: str) -> None:
    folder = {
        "MODEL_PATH": home / "mine",
        "RunPod cache": cache(home / "cache"),
        "image": home / "baked/qwen-image",
    }[place]
    bundle(folder)
    mine = str(folder) if place == "MODEL_PATH" else ""
    source = find(home, MODEL_PATH=mine)
    assert (source.kind, source.bundle, source.folder) == (place, True, folder)


def test_a_bundle_that_is_not_whole_is_passed_over_with_its_reason(home: Path) -> None:
    (home / "models/qwen-image-4bit").mkdir(parents=True)
    assert find(home).describe()["not_used"]["MODEL_DIR"] == "has no manifest"


def damage(folder: Path, how: str) -> None:
    last = folder / "transformer" / LAST
    if how == "shard missing":
        last.unlink()
    elif how == "shard cut":
        last.write_bytes(last.read_bytes()[:-1])
    elif how == "shard is a pointer":
        last.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4\n")
    elif how == "component missing":
        (folder / "tokenizer/config.json").unlink()
        (folder / "tokenizer").rmdir()
    elif how == "index broken":
        (folder / "model_index.json").write_text("{")


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("shard missing", f"lacks transformer/{LAST}"),
        ("shard cut", "bytes instead of"),
        ("shard is a pointer", "no safetensors header"),
        ("component missing", "lacks tokenizer/"),
        ("index broken", "unreadable model_index.json"),
    ],
)
def test_an_incomplete_cache_is_passed_over_with_its_reason(
    home: Path, how: str, reason: str
) -> None:
    damage(publish(cache(home / "cache")), how)
    source = find(home)
    assert source.kind == "hub"
    assert reason in source.describe()["not_used"]["RunPod cache"]


def test_another_pipeline_in_model_path_is_passed_over(home: Path) -> None:
    publish(home / "mine", "QwenImageEditPlusPipeline")
    reason = find(home, MODEL_PATH=str(home / "mine")).describe()["not_used"]["MODEL_PATH"]
    assert reason == "holds a QwenImageEditPlusPipeline, not a QwenImagePipeline"


def test_model_path_may_hold_several_models(home: Path) -> None:
    publish(home / "mine/Qwen-Image")
    publish(home / "mine/qwen-image-2512")
    assert find(home, MODEL_PATH=str(home / "mine")).folder == home / "mine/Qwen-Image"


def test_the_next_of_a_place_s_folders_is_taken_where_one_is_not_whole(home: Path) -> None:
    damage(publish(home / "mine/Qwen/Qwen-Image"), "shard missing")
    publish(home / "mine/qwen-image")
    assert find(home, MODEL_PATH=str(home / "mine")).folder == home / "mine/qwen-image"


def test_a_row_s_folder_may_be_called_like_its_repository(home: Path) -> None:
    repository, pipeline = "black-forest-labs/FLUX.2-klein-4B", "Flux2KleinPipeline"
    folder = made_of(home / "mine/FLUX.2-klein-4B", repository, pipeline=pipeline)
    source = find(home, CATALOGUE.find_row("flux-2-klein-4b"), MODEL_PATH=str(home / "mine"))
    assert source.folder == folder


def test_a_folder_that_model_names_is_never_replaced_by_another_source(home: Path) -> None:
    folder = publish(home / "mine")
    spec = CATALOGUE.describe_folder(folder)
    assert find(home, spec).folder == folder
    damage(folder, "shard missing")
    with pytest.raises(WeightsUnavailable, match="lacks transformer/") as refused:
        find(home, spec)
    assert str(home) not in refused.value.message


def made_of(folder: Path, repository: str, revision: str = "local", **more: str) -> Path:
    """Lay out a bundle that says what it was made of."""
    manifest = {"repository": repository, "revision": revision, "pipeline": SPEC.pipeline, **more}
    (bundle(folder) / "manifest.json").write_text(json.dumps(manifest))
    return folder


def word(models: str) -> list[ModelSpec]:
    return list(CATALOGUE.resolve(models.split(","), settings.read({}), has_gpu=True))


def of_path(home: Path, spec: ModelSpec, path: str = "mine") -> str:
    """Return the folder below home that is taken, or why MODEL_PATH is passed over."""
    source = find(home, spec, MODEL_PATH=str(home / path))
    if source.folder is not None:
        return source.folder.relative_to(home).as_posix()
    return str(source.describe()["not_used"]["MODEL_PATH"])


def test_published_weights_are_taken_where_their_place_shows_whose_they_are(home: Path) -> None:
    """MODEL_PATH itself, org/name below it in any case; the last name alone shows nothing."""
    (spec,) = word("bob/foo")
    publish(home / "mine/foo")
    assert of_path(home, spec) == "does not say that it is bob/foo"
    assert of_path(home, spec, "mine/foo") == "mine/foo"
    publish(home / "mine/Bob/Foo")
    assert of_path(home, spec) == "mine/Bob/Foo"
    (other,) = word("alice/foo")
    assert of_path(home, other) == "does not say that it is alice/foo"


def test_one_folder_is_not_two_models(home: Path) -> None:
    """MODEL_PATH that is one model's folder means MODEL's one model, and none of several."""
    publish(home / "mine")
    for models in ("alice/foo,bob/foo", "qwen-image,qwen-image-2512"):
        reasons = [of_path(home, spec) for spec in word(models)]
        assert [t.startswith("does not say that it is") for t in reasons] == [True, True]
    publish(home / "Qwen-Image")
    reasons = [of_path(home, spec, "Qwen-Image") for spec in word("qwen-image,qwen-image-2512")]
    assert reasons == ["Qwen-Image", "does not say that it is Qwen/Qwen-Image-2512"]


def test_a_folder_below_model_path_is_a_model_and_not_its_part(home: Path) -> None:
    """A model's own folders are no models of their names."""
    publish(home / "mine")
    (spec,) = word("bob/vae")
    assert of_path(home, spec) == "mine"


@pytest.mark.parametrize("path", ["mine", "mine/foo"])
def test_a_given_bundle_is_the_repository_that_it_was_made_of(home: Path, path: str) -> None:
    """In any case; a bundle of another repository is passed over, also where it is named."""
    made_of(home / "mine/foo", "Alice/Foo", COMMIT, asked="main")
    (alice,), (bob,) = word("alice/foo"), word("bob/foo")
    assert of_path(home, alice, path) == "mine/foo"
    assert of_path(home, bob, path) == "is the bundle of Alice/Foo, not of bob/foo"


def test_a_given_bundle_of_a_folder_is_what_the_operator_says(home: Path) -> None:
    """It names no owner: MODEL_PATH itself says which model it is, its name below does not."""
    made_of(home / "mine/foo", "foo")
    (bob,) = word("bob/foo")
    assert of_path(home, bob, "mine/foo") == "mine/foo"
    assert of_path(home, bob) == "is the bundle of foo, not of bob/foo"
    made_of(home / "mine/bob/foo", "foo")
    assert of_path(home, bob) == "mine/bob/foo"


def test_the_image_s_bundle_of_an_embedded_model_comes_before_its_folder(home: Path) -> None:
    """Only a bundle: other published weights of that name are not the embedded model."""
    (spec,) = word("tiny-image")
    assert (find(home, spec).folder, find(home, spec).bundle) == (spec.folder, False)
    place = publish(home / "baked/tiny-image")
    (home / "baked/tiny/image").mkdir(parents=True)
    assert find(home, spec).folder == spec.folder
    (place / "whole").touch()
    source = find(home, spec)
    assert (source.kind, source.folder, source.bundle) == ("image", place, True)


def test_a_bundle_that_was_pushed_under_another_name_lies_at_that_name(home: Path) -> None:
    """As the image keeps it: its manifest names what it was made of, its place what it is."""
    (spec,) = word("me/foo-4bit")
    made_of(home / "baked" / sources.make_place(spec), "alice/foo", COMMIT)
    assert find(home, spec).kind == "image"
    assert str(sources.make_place(SPEC)) == "qwen-image"


@pytest.mark.parametrize(
    ("revision", "taken"), [("v1", True), (COMMIT, True), ("v2", False), ("main", False)]
)
@pytest.mark.parametrize("place", ["mine", "baked"])
def test_a_given_bundle_is_of_the_revision_that_it_was_made_of(
    home: Path, place: str, revision: str, *, taken: bool
) -> None:
    """The revision asked for then, or its commit."""
    folder = made_of(home / place / "alice/foo", "alice/foo", COMMIT, asked="v1")
    (spec,) = word(f"alice/foo@{revision}")
    source = find(home, spec, MODEL_PATH=str(home / "mine"))
    assert source.folder == (folder if taken else None)


def test_published_weights_do_not_show_their_revision(home: Path) -> None:
    """Only MODEL_PATH itself is what the operator says that it is."""
    publish(home / "mine/bob/foo")
    publish(home / "baked/qwen-image")
    (spec,) = word("bob/foo@v1")
    assert of_path(home, spec) == "does not say that it is at v1"
    assert of_path(home, spec, "mine/bob/foo") == "mine/bob/foo"
    assert find(home, replace(SPEC, revision="v1")).kind == "hub"


def test_a_given_bundle_of_another_pipeline_is_passed_over(home: Path) -> None:
    made_of(home / "mine", SPEC.repository, pipeline="QwenImageEditPlusPipeline")
    assert of_path(home, SPEC) == "holds a QwenImageEditPlusPipeline, not a QwenImagePipeline"


def test_a_broken_given_bundle_is_passed_over_with_its_own_reason(home: Path) -> None:
    (made_of(home / "mine", SPEC.repository) / "whole").unlink()
    assert of_path(home, SPEC) == "has no manifest"  # what bundle_fault says here


def test_the_cache_prefers_the_exact_name(home: Path) -> None:
    """Two folders that differ in case alone: the one that was asked for, not the first found."""
    publish(cache(home / "cache", "bob/FOO"))
    folder = publish(cache(home / "cache", "bob/foo"))
    (spec,) = word("bob/foo")
    assert find(home, spec).folder == folder


def test_a_lora_comes_from_the_models_own_files_or_from_the_cache(home: Path) -> None:
    own = LocalSnapshot(publish(home / "mine"), "mine")
    read = configured(home)
    assert sources.open_lora(LoraFile(None, "lightning/a.safetensors"), own, read) is own
    folder = cache(home / "cache", "someone/loras")
    folder.mkdir(parents=True)
    (folder / "b.safetensors").write_bytes(safetensors())
    found = sources.open_lora(LoraFile("someone/loras", "b.safetensors"), own, read)
    assert isinstance(found, LocalSnapshot)
    assert (found.folder, found.commit) == (folder, COMMIT)


def test_a_caches_links_prove_its_files(home: Path) -> None:
    """A blob's name is its digest, so that a flipped byte at rest is found."""
    folder = cache(home / "cache")
    folder.mkdir(parents=True)
    blobs = folder.parents[1] / "blobs"
    blobs.mkdir()
    data = safetensors()
    (blobs / "new").write_bytes(data)
    blob = blobs / digest_file(blobs / "new", blob_id=False).sha256
    (blobs / "new").rename(blob)
    (folder / "x.safetensors").symlink_to(blob)
    snapshot = LocalSnapshot(folder, SPEC.repository, COMMIT)
    file = find_file(snapshot, "x.safetensors")
    proven = snapshot.fetch_file(file, home / "unused")
    assert (proven.sha256, proven.disposable) == (blob.name, False)
    assert snapshot.digest(file) == f"sha256:{blob.name}"
    blob.write_bytes(data[:-1] + b"!")
    with pytest.raises(WeightsUnavailable, match="sha256 other than"):
        LocalSnapshot(folder, SPEC.repository, COMMIT).fetch_file(file, home / "unused")


def test_only_the_files_that_a_model_needs_are_needed() -> None:
    paths = [
        "README.md",
        "model_index.json",
        "worker.json",
        "picture.png",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model-00001-of-00009.safetensors",
        "transformer/diffusion_pytorch_model.safetensors.index.json",
        "transformer/diffusion_pytorch_model.fp16.safetensors",
        "transformer/diffusion_pytorch_model.bin",
        "text_encoder/model-00001-of-00004.safetensors",
        "tokenizer/merges.txt",
        "processor/chat_template.jinja",
        "safety_checker/model.safetensors",
        "lightning/tiny-Lightning-8steps.safetensors",
    ]
    assert set(paths) - set(
        checkpoint.list_needed(paths, (*SPEC.parts.weights, *SPEC.parts.beside))
    ) == {
        "README.md",
        "picture.png",
        "transformer/diffusion_pytorch_model.fp16.safetensors",
        "transformer/diffusion_pytorch_model.bin",
        "safety_checker/model.safetensors",
    }


def test_a_bundle_of_a_known_model_is_that_model(home: Path) -> None:
    manifest = {"model": "qwen-image-edit-2511", "pipeline": "QwenImageEditPlusPipeline"}
    folder = bundle(home / "pushed")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    spec = CATALOGUE.describe_folder(folder)
    assert (spec.name, spec.folder, spec.defaults.steps) == ("qwen-image-edit-2511", folder, 40)
    source = find(home, spec)
    assert (source.bundle, source.folder) == (True, folder)


def test_another_repository_describes_itself(home: Path) -> None:
    folder = publish(home / "painter", "QwenImageEditPlusPipeline")
    (folder / "worker.json").write_text(json.dumps({"area": 96 * 96}))
    (spec,) = CATALOGUE.resolve(["someone/painter"], configured(home), has_gpu=True)
    known = sources.complete(spec, LocalSnapshot(folder, "someone/painter"), CATALOGUE)
    assert known.tasks == ("edit", "inpaint", "outpaint")
    assert (known.defaults.area, known.defaults.max_references) == (96 * 96, 3)


def test_a_source_describes_itself(home: Path) -> None:
    passed: Any = (("MODEL_PATH", "not set"), ("RunPod cache", "not there"))
    source = WeightSource("image", home, bundle=True, commit=COMMIT, passed_over=passed)
    assert source.describe() == {
        "source": "image",
        "bundle": True,
        "revision": COMMIT,
        "not_used": dict(passed),
    }


def test_a_bundle_of_our_own_needs_no_other_place(home: Path) -> None:
    folder = bundle(home / "models/qwen-image-4bit")
    assert find(home) == WeightSource("MODEL_DIR", folder, True, None, ())


def test_a_folder_that_model_names_is_what_it_is_whatever_else_has_its_name(home: Path) -> None:
    """Of any repository, and before a bundle of its name in the image."""
    made_of(home / "baked/mine", "mine")
    folder = made_of(home / "mine", "alice/foo")
    source = find(home, CATALOGUE.describe_folder(folder))
    assert source == WeightSource(
        "MODEL_PATH", folder, True, None, (("MODEL_DIR", "no bundle yet"),)
    )


def test_an_embedded_model_is_the_image_s(home: Path) -> None:
    (spec,) = word("tiny-image")
    assert spec.folder is not None
    assert find(home, spec) == WeightSource(
        "image", spec.folder, False, None, (("MODEL_DIR", "no bundle yet"),)
    )


def test_the_image_bakes_models_where_they_are_looked_for() -> None:
    (line,) = [
        line
        for line in (ROOT / "Dockerfile").read_text().splitlines()
        if line.startswith("RUN") and "bake.sh" in line
    ]
    assert line.split()[-1] == str(sources.BAKED)


def test_the_nearest_of_a_place_s_folders_says_why_it_is_not_taken(home: Path) -> None:
    damage(publish(home / "mine/bob/foo"), "shard missing")
    damage(publish(home / "mine/foo"), "index broken")
    (spec,) = word("bob/foo")
    assert of_path(home, spec) == f"lacks transformer/{LAST}"


@pytest.mark.parametrize(
    ("there", "revision", "found"),
    [
        ([], None, f"holds no snapshot of {SPEC.repository} at main"),
        ([COMMIT, "f" * 40], None, f"holds no snapshot of {SPEC.repository} at main"),
        ([COMMIT], "v1", f"holds no snapshot of {SPEC.repository} at v1"),
        ([COMMIT], None, COMMIT),
        ([COMMIT, "f" * 40], COMMIT, COMMIT),
        (["f" * 40], COMMIT, f"holds no snapshot of {SPEC.repository} at {COMMIT}"),
    ],
)
def test_a_cache_without_a_ref_is_read_by_its_snapshots(
    home: Path, there: list[str], revision: str | None, found: str
) -> None:
    """The commit itself needs none; without a revision, the only one is meant."""
    at = home / f"models--{SPEC.repository.replace('/', '--')}"
    at.mkdir()
    for commit in there:
        (at / "snapshots" / commit).mkdir(parents=True)
    expected = (at / "snapshots" / found, found) if found in there else (found, None)
    assert sources.find_cached(SPEC.repository, revision, home) == expected


def test_a_cache_names_what_it_does_not_hold(home: Path) -> None:
    assert sources.find_cached("a/b", None, home / "none") == ("not there", None)
    assert sources.find_cached("a/b", None, home) == ("does not hold a/b", None)
    (home / "baked").mkdir()
    assert find(home).describe()["not_used"]["image"] == f"does not hold {SPEC.repository}"


def test_a_cache_that_may_not_be_listed_holds_what_is_asked_for_by_its_name_alone(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Path) -> None:
        raise PermissionError(errno.EACCES, "not for you")

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert sources.find_cached("a/b", None, home) == ("does not hold a/b", None)


def test_a_file_of_a_repository_s_name_is_no_folder_of_it(home: Path) -> None:
    (home / "models--bob--FOO").touch()
    folder = publish(cache(home, "Bob/foo"))
    assert sources.find_cached("bob/foo", None, home) == (folder, COMMIT)


def test_model_path_that_is_no_folder_says_so(home: Path) -> None:
    assert of_path(home, SPEC) == "not there"


def test_model_path_that_is_a_bundle_is_not_a_place_of_several(home: Path) -> None:
    made_of(home / "mine", "alice/foo")
    publish(home / "mine/bob/foo")
    (bob,) = word("bob/foo")
    assert of_path(home, bob) == "is the bundle of alice/foo, not of bob/foo"


def test_a_repository_called_like_a_row_is_not_in_the_row_s_folder(home: Path) -> None:
    """The catalogue's names in a place are the catalogue's."""
    publish(home / "Qwen-Image")
    spec, _ = word("alice/qwen-image,qwen-image")
    assert of_path(home, spec, "Qwen-Image") == "does not say that it is alice/qwen-image"
    assert str(sources.make_place(spec)) == "alice/qwen-image"


@pytest.mark.parametrize(
    ("made", "place", "transformer", "fault"),
    [
        ({}, "", "", None),
        ({"lightning_place": None, "replaced": None}, "", "", None),
        ({"lightning_place": "a/b/x"}, "a/b/x", "", None),
        ({"lightning_place": "a/b/x"}, "", "", "was made with LIGHTNING=a/b/x"),
        ({}, "a/b/x", "", "was made without LIGHTNING"),
        ({"replaced": "a/b"}, "", "a/b", None),
        ({"replaced": "a/b"}, "", "", "was made with TRANSFORMER=a/b"),
        ({}, "", "a/b", "was made without TRANSFORMER"),
    ],
)
def test_a_bundle_with_other_parts_is_another(
    home: Path, made: dict[str, Any], place: str, transformer: str, fault: str | None
) -> None:
    made_of(home / "mine", SPEC.repository, **made)
    spec = replace(SPEC, lightning_place=place, transformer=transformer)
    assert of_path(home, spec) == (fault or "mine")


@pytest.mark.parametrize("text", ["", "[]", "[1]"])
def test_a_given_bundle_without_a_manifest_that_can_be_read_is_taken_as_it_is(
    home: Path, text: str
) -> None:
    (bundle(home / "mine") / "manifest.json").write_text(text)
    assert of_path(home, SPEC) == "mine"


def test_weights_without_a_class_are_of_no_pipeline(home: Path) -> None:
    (publish(home / "mine") / "model_index.json").write_text("{}")
    assert of_path(home, SPEC) == "holds a None, not a QwenImagePipeline"


def open_by(home: Path, spec: ModelSpec, source: WeightSource, **environ: str) -> Any:
    return sources.open_snapshot(source, spec, configured(home, **environ))


def test_what_was_found_is_opened_with_its_commit_and_its_digests_are_kept(home: Path) -> None:
    publish(cache(home / "cache"))
    source = find(home)
    opened = open_by(home, SPEC, source, MODEL_DIR=str(home / "home"))
    assert (opened.folder, opened.repository, opened.commit) == (
        source.folder,
        SPEC.repository,
        COMMIT,
    )
    assert opened.remembered is not None
    local = open_by(home, SPEC, replace(source, commit=None))
    assert local.commit == "local"


@pytest.mark.parametrize(
    ("word", "place"), [("me/better", "transformer"), ("me/better/v2/x", "v2/x")]
)
def test_another_transformer_may_come_from_a_cache(home: Path, word: str, place: str) -> None:
    folder = cache(home / "cache", "me/better")
    for below in ("transformer", "v2/x"):
        (folder / below).mkdir(parents=True)
        (folder / below / "config.json").write_text(below)
    source = replace(find(home), folder=publish(home / "mine"))
    opened = open_by(home, replace(SPEC, transformer=word), source)
    assert (opened.place, opened.replaced) == (place, "transformer")
    assert (opened.other.folder, opened.other.commit) == (folder, COMMIT)
    assert opened.read_file(find_file(opened, "transformer/config.json")).decode() == place


@pytest.mark.parametrize("revision", ["", COMMIT])
def test_a_part_that_is_elsewhere_comes_from_a_cache_at_its_revision(
    home: Path, revision: str
) -> None:
    """Or from the model's own folder of it, where there is one."""
    model = home / "mine"
    model.mkdir()
    (model / "config.json").write_text("{}")
    folder = cache(home / "hf", "x/codec")
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("codec")
    if revision:
        (folder.parent / ("f" * 40)).mkdir()
        (folder.parents[1] / "refs/main").write_text("f" * 40)
    (home / "cache/models--x--codec").mkdir(parents=True)
    spec = replace(
        SPEC,
        placements=(
            Placement("language", "config.json"),
            Placement("codec", "config.json", Elsewhere("x/codec", revision)),
        ),
    )
    source = WeightSource("MODEL_PATH", model, False, None, ())
    opened = open_by(home, spec, source, HF_HUB_CACHE=str(home / "hf"))
    codec = find_file(opened, "codec/config.json")
    assert opened.read_file(codec) == b"codec"
    assert (opened.others["codec"].folder, opened.others["codec"].commit) == (folder, COMMIT)
    (model / "codec").mkdir()
    (model / "codec/config.json").write_text("own")
    opened = open_by(home, spec, source, HF_HUB_CACHE=str(home / "hf"))
    assert opened.read_file(find_file(opened, "codec/config.json")) == b"own"
    assert not opened.others


def test_a_part_that_ships_with_the_worker_is_in_checkpoints(home: Path) -> None:
    model = home / "mine"
    model.mkdir()
    elsewhere = Elsewhere("tiny-speech/snac", embedded="tiny-speech/snac")
    spec = replace(SPEC, placements=(Placement("codec", "config.json", elsewhere),))
    opened = open_by(home, spec, WeightSource("MODEL_PATH", model, False, None, ()))
    assert opened.others["codec"].folder == find_checkpoints() / "tiny-speech/snac"
    assert opened.others["codec"].repository == "tiny-speech/snac"


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"model_index.json": b"{"}, "has a broken model_index.json"),
        ({"model_index.json": b"\xff"}, "has a broken model_index.json"),
        ({"model_index.json": b"[" * 100_000}, "has a broken model_index.json"),
        ({"model_index.json": b"[]"}, "has a model_index.json that is not a JSON object"),
        ({"manifest.json": b"3"}, "has a manifest.json that is not a JSON object"),
        ({"README.md": b""}, "neither a diffusers checkpoint nor a bundle$"),
        (
            {"x.gguf": b""},
            "nor a bundle: it has GGUF files, quantised, and .*; take Qwen/Qwen-Image",
        ),
    ],
)
def test_a_repository_that_describes_itself_badly_is_refused(
    home: Path, files: dict[str, bytes], reason: str
) -> None:
    for name, data in files.items():
        (home / name).write_bytes(data)
    (spec,) = word("someone/Qwen-Image-painter")
    with pytest.raises(WeightsUnavailable, match=f"MODEL: {spec.name} .*{reason}"):
        sources.complete(spec, LocalSnapshot(home, spec.repository), CATALOGUE)


def test_what_is_described_already_is_not_read_again(home: Path) -> None:
    assert sources.complete(SPEC, LocalSnapshot(home / "none", "x"), CATALOGUE) is SPEC


def test_what_no_cache_has_is_asked_of_the_hub_at_its_revision(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model, a part elsewhere, another transformer and a LoRA; only the hub is asked."""
    asked: list[tuple[str, str | None]] = []
    there = home / "there"
    (there / "transformer").mkdir(parents=True)
    for name in ("config.json", "transformer/config.json"):
        (there / name).write_text("{}")

    def resolve(repository: str, revision: str | None, _settings: Settings) -> LocalSnapshot:
        asked.append((repository, revision))
        return LocalSnapshot(there, repository, "of the hub")

    monkeypatch.setattr(metadata, "resolve", resolve)
    source = find(home, replace(SPEC, revision="v9"))
    spec = replace(
        SPEC,
        revision="v9",
        placements=tuple(
            Placement(role, "config.json", Elsewhere(f"x/{role}", revision))
            for role, revision in (("one", "v3"), ("two", ""))
        ),
    )
    opened = open_by(home, spec, source)
    assert [one.commit for one in opened.others.values()] == ["of the hub"] * 2
    open_by(home, replace(SPEC, transformer="me/better"), source)
    read = configured(home)
    lora = sources.open_lora(LoraFile("x/loras", "a.safetensors"), opened, read)
    assert lora.repository == "x/loras"
    assert asked == [
        (SPEC.repository, "v9"),
        ("x/one", "v3"),
        ("x/two", None),
        (SPEC.repository, None),
        ("me/better", None),
        ("x/loras", None),
    ]


@pytest.mark.parametrize(
    ("name", "description", "pipeline"),
    [
        ("manifest.json", {"pipeline": "QwenImagePipeline"}, "QwenImagePipeline"),
        ("config.json", {"architectures": ["LlamaForCausalLM"]}, "LlamaForCausalLM"),
    ],
)
def test_a_repository_may_be_a_bundle_or_of_one_part(
    home: Path, name: str, description: dict[str, Any], pipeline: str
) -> None:
    (home / name).write_text(json.dumps(description))
    (spec,) = word("someone/mine")
    known = sources.complete(spec, LocalSnapshot(home, "someone/mine"), CATALOGUE)
    assert (known.pipeline, known.repository) == (pipeline, "someone/mine")


def test_a_config_describes_no_model_where_none_is_of_one_part(home: Path) -> None:
    (home / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    (spec,) = word("someone/mine")
    spec = replace(spec, parts=SPEC.parts)
    with pytest.raises(WeightsUnavailable, match=r"has no model_index\.json"):
        sources.complete(spec, LocalSnapshot(home, "someone/mine"), CATALOGUE)


@pytest.mark.parametrize("revision", [None, "v2"])
def test_a_cache_s_ref_says_which_of_its_snapshots_a_revision_is(
    home: Path, revision: str | None
) -> None:
    folder = cache(home, "a/b")
    for commit in ("0" * 40, COMMIT, "f" * 40):
        (folder.parent / commit).mkdir(parents=True)
    (home / "models--a--b/refs/v2").write_text(f"{'f' * 40}\n")
    commit = COMMIT if revision is None else "f" * 40
    assert sources.find_cached("a/b", revision, home) == (folder.parent / commit, commit)


def test_a_bundle_in_a_cache_is_what_the_cache_calls_it(home: Path) -> None:
    """As one that was pushed under another name lies there."""
    (spec,) = word("me/foo-4bit")
    folder = made_of(cache(home / "cache", "me/foo-4bit"), "alice/foo", COMMIT)
    assert find(home, spec).folder == folder
