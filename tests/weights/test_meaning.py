"""MODEL's words become models; what means nothing says what would."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from worker import settings
from worker.errors import InvalidSettings, WeightsUnavailable
from worker.families.catalogue import CATALOGUE
from worker.families.orpheus.offer import describe_speech
from worker.families.pictures import describe
from worker.families.qwen_image import models
from worker.tasks.picture import offer_of
from worker.weights import meaning
from worker.weights.spec import LoraFile, ModelSpec


def resolved(models: str = "", *, has_gpu: bool = True, **environ: str) -> tuple[ModelSpec, ...]:
    read = settings.read({"MODEL": models, **environ})
    return CATALOGUE.resolve(read.model, read, has_gpu=has_gpu)


def a_folder(at: Path, pipeline: str, *files: str) -> Path:
    at.mkdir(parents=True)
    (at / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    for name in files:
        (at / name).parent.mkdir(exist_ok=True)
        (at / name).touch()
    return at


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    a_folder(tmp_path / "checkpoints/tiny/image", "QwenImagePipeline")
    a_folder(tmp_path / "checkpoints/tiny/edit", "QwenImageEditPlusPipeline")
    monkeypatch.setattr(meaning, "find_checkpoints", lambda: tmp_path / "checkpoints")
    return tmp_path / "checkpoints"


PICTURES = [row for row in CATALOGUE.rows if "speech" not in row.tasks]


@pytest.mark.parametrize("row", PICTURES, ids=lambda row: row.name)
def test_a_row_holds_together(row: ModelSpec) -> None:
    assert row.pipeline in CATALOGUE.classes
    assert row.tasks
    assert set(row.lightning) in ({4, 8}, set())
    assert all(str(n) + "steps" in file.filename for n, file in row.lightning.items())
    assert set(row.defaults.sizes) == {"1:1", "16:9", "9:16", "4:3", "3:4", "3:2", "2:3"}
    assert all(side % 16 == 0 for size in row.defaults.sizes.values() for side in size)
    assert row.is_gated == (row.licence != "apache-2.0")


def test_what_asks_for_consent_is_gated() -> None:
    """Of FLUX.2 all but the models of 4 billion parameters; of Orpheus all of its maker's own."""
    gated = {row.name for row in CATALOGUE.rows if row.is_gated}
    assert gated == {"flux-2-dev", "flux-2-klein-base-9b", "flux-2-klein-9b"} | {
        row.name for row in CATALOGUE.rows if row.repository.startswith("canopylabs/")
    }
    assert {row.licence for row in CATALOGUE.rows if row.name in gated} == {
        "flux-non-commercial-license",
        "llama3.2",
    }
    assert {row.name for row in CATALOGUE.rows if row.licence == "llama3.2"} - gated == {"orpheus"}


@pytest.mark.parametrize("row", CATALOGUE.rows, ids=lambda row: row.name)
def test_what_is_served_of_a_row_says_its_licence_and_gate(row: ModelSpec) -> None:
    found = (describe_speech if "speech" in row.tasks else describe)(
        row,
        settings.read({}),
        revision="a",
        precision="4bit",
        lightning=(),
        working=lambda pixels: 7 + pixels,
        left=None,
    )
    assert (found.id, found.licence, found.is_gated) == (row.name, row.licence, row.is_gated)
    assert (found.repository, found.revision, found.precision) == (row.repository, "a", "4bit")
    assert set(found.tasks) == set(row.tasks)
    assert found.working >= 7


def test_names_are_unique() -> None:
    assert len(set(CATALOGUE.names)) == len(CATALOGUE.names)


def test_a_size_is_its_aspect_ratio_turned() -> None:
    for sizes in (models.PUBLISHED_SIZES, models.TINY_SIZES):
        for ratio, (width, height) in sizes.items():
            across, down = map(int, ratio.split(":"))
            assert sizes[f"{down}:{across}"] == (height, width)
            assert (width > height) == (across > down)


def test_only_qwen_image_2512_has_a_negative_prompt_of_its_own() -> None:
    """The one of its publisher's README, word for word."""
    given = {row.name: row.defaults.negative_prompt for row in models.TABLE}
    own = {name: prompt for name, prompt in given.items() if prompt != " "}
    assert own == {
        "qwen-image-2512": "低分辨率，低画质，肢体畸形，手指畸形，画面过饱和，蜡像感，"  # noqa: RUF001
        "人脸无细节，过度光滑，画面具有AI感。构图混乱。文字模糊，扭曲。"  # noqa: RUF001
    }
    (spec,) = resolved("Qwen/Qwen-Image-2512")
    served = describe(
        spec,
        settings.read({}),
        revision="x",
        precision="bf16",
        lightning=(),
        working=lambda _: 0,
        left=None,
    )
    assert offer_of(served).negative_prompt == own["qwen-image-2512"]


def test_a_catalogue_name_is_its_row() -> None:
    (spec,) = resolved("Qwen-Image-Edit-2511")
    assert (spec.repository, spec.pipeline, spec.defaults.steps) == (
        "Qwen/Qwen-Image-Edit-2511",
        "QwenImageEditPlusPipeline",
        40,
    )
    assert (spec.tasks, spec.defaults.max_references) == (("edit", "inpaint", "outpaint"), 3)


def test_the_first_edit_model_takes_one_reference() -> None:
    (spec,) = resolved("qwen-image-edit")
    assert (spec.pipeline, spec.defaults.max_references) == ("QwenImageEditPipeline", 1)


def test_a_repository_of_the_table_is_that_row_and_keeps_its_revision() -> None:
    (spec,) = resolved("qwen/qwen-image-2512@abc123")
    assert (spec.name, spec.revision) == ("qwen-image-2512", "abc123")


def test_several_models_keep_their_order_and_lose_their_doubles() -> None:
    found = resolved("qwen-image-2512, qwen-image-edit-2511 ,Qwen/Qwen-Image-2512")
    assert [spec.name for spec in found] == ["qwen-image-2512", "qwen-image-edit-2511"]


def test_the_embedded_flux_is_a_word_of_its_own() -> None:
    (spec,) = resolved("tiny-flux")
    assert spec.folder == meaning.find_checkpoints() / "tiny/flux"
    assert (spec.needs_gpu, spec.is_gated, spec.defaults.area) == (False, False, 96 * 96)
    assert CATALOGUE.describe_folder(spec.folder).defaults.steps == spec.defaults.steps == 4


def test_tiny_is_both_embedded_models(tiny: Path) -> None:
    found = resolved("tiny")
    assert [spec.tasks for spec in found] == [
        ("text-to-image", "img2img", "inpaint", "outpaint"),
        ("edit", "inpaint", "outpaint"),
    ]
    assert [spec.folder for spec in found] == [tiny / "tiny/image", tiny / "tiny/edit"]


@pytest.mark.parametrize(
    ("has_gpu", "environ", "names"),
    [
        (True, {}, ["qwen-image-edit-2511"]),
        (False, {}, ["tiny-image", "tiny-edit"]),
        (False, {"RUNPOD_WEBHOOK_GET_JOB": "http://x/job-take"}, ["qwen-image-edit-2511"]),
    ],
)
@pytest.mark.usefixtures("tiny")
def test_without_model_the_gpu_and_the_platform_choose(
    has_gpu: bool, environ: dict[str, str], names: list[str]
) -> None:
    assert [spec.name for spec in resolved(has_gpu=has_gpu, **environ)] == names


def test_an_installation_without_checkpoints_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meaning, "find_checkpoints", lambda: tmp_path)
    with pytest.raises(WeightsUnavailable, match=r"ships in checkpoints/"):
        resolved("tiny")


def test_without_model_model_path_is_the_model(tmp_path: Path) -> None:
    folder = a_folder(tmp_path / "mine", "QwenImagePipeline")
    (spec,) = resolved(MODEL_PATH=str(folder))
    assert (spec.name, spec.folder, spec.tasks) == (
        "mine",
        folder,
        ("text-to-image", "img2img", "inpaint", "outpaint"),
    )


def test_a_folder_brings_its_own_lightning_files(tmp_path: Path) -> None:
    folder = a_folder(
        tmp_path / "tuned",
        "QwenImageEditPlusPipeline",
        "My-Edit-Lightning-8steps-V1.0-bf16.safetensors",
        "lightning/tuned-Lightning-4steps.safetensors",
        "other.safetensors",
    )
    (spec,) = resolved(str(folder))
    assert {n: file.filename for n, file in spec.lightning.items()} == {
        8: "My-Edit-Lightning-8steps-V1.0-bf16.safetensors",
        4: "lightning/tuned-Lightning-4steps.safetensors",
    }
    assert spec.defaults.steps == 40


def test_a_folder_tells_its_own_area(tmp_path: Path) -> None:
    folder = a_folder(tmp_path / "small", "QwenImagePipeline")
    (folder / "worker.json").write_text(json.dumps({"area": 96 * 96}))
    (spec,) = resolved(str(folder))
    assert (spec.defaults.area, spec.defaults.sizes["1:1"]) == (96 * 96, (96, 96))


def test_a_folder_named_like_a_row_is_that_model(tmp_path: Path) -> None:
    folder = a_folder(tmp_path / "Qwen-Image-Edit-2511", "QwenImageEditPlusPipeline")
    (spec,) = resolved(str(folder))
    assert (spec.name, spec.folder) == ("qwen-image-edit-2511", folder)
    assert set(spec.lightning) == {8, 4}


def test_another_repository_is_a_model_once_its_index_is_read() -> None:
    (spec,) = resolved("someone/Painter@v2")
    assert (spec.name, spec.revision, spec.pipeline, spec.tasks) == ("painter", "v2", "", ())
    known = CATALOGUE.classify(spec, {"_class_name": "QwenImagePipeline"}, ["a.txt"])
    assert (known.tasks, dict(known.lightning)) == (
        ("text-to-image", "img2img", "inpaint", "outpaint"),
        {},
    )
    assert known.defaults.steps == 50


def test_another_owners_copy_does_not_take_the_rows_name() -> None:
    found = resolved("someone/Qwen-Image-2512,qwen-image-2512")
    assert [spec.name for spec in found] == ["someone/qwen-image-2512", "qwen-image-2512"]


def test_another_family_is_refused_with_what_is_served() -> None:
    (spec,) = resolved("someone/sd3")
    with pytest.raises(WeightsUnavailable, match=r"StableDiffusion3Pipeline.*QwenImagePipeline"):
        CATALOGUE.classify(spec, {"_class_name": "StableDiffusion3Pipeline"}, [])


@pytest.mark.parametrize(
    ("word", "pipeline", "name", "instead"),
    [
        ("black-forest-labs/FLUX.1-schnell", "FluxPipeline", "FLUX.1", "flux-2-klein-4b"),
        (
            "black-forest-labs/FLUX.1-Kontext-dev",
            "FluxKontextPipeline",
            "FLUX.1",
            "flux-2-klein-4b",
        ),
        ("black-forest-labs/flux-3-image-klein", "Flux3Pipeline", "FLUX.3", "flux-2-klein-4b"),
        (
            "black-forest-labs/FLUX.2-klein-9b-kv",
            "Flux2KleinKVPipeline",
            "FLUX.2 klein KV",
            "flux-2-klein-9b",
        ),
        ("Tongyi-MAI/Z-Image-Turbo", "ZImagePipeline", "Z-Image", "flux-2-klein-4b"),
    ],
)
def test_a_relative_is_refused_by_its_name_and_by_its_class(
    word: str, pipeline: str, name: str, instead: str
) -> None:
    """Before a hub is asked, and as anyone's copy; with what is served instead."""
    with pytest.raises(WeightsUnavailable) as refused:
        resolved(word)
    assert refused.value.message == (
        f"MODEL: {word} is {name}, which this worker does not serve; take {instead}"
    )
    (copy,) = resolved("someone/copy")
    with pytest.raises(WeightsUnavailable) as refused:
        CATALOGUE.classify(copy, {"_class_name": pipeline}, [])
    assert f"copy is {name} ({pipeline}), which" in refused.value.message
    assert refused.value.message.endswith(f"take {instead}")
    assert CATALOGUE.find_row(instead).licence


@pytest.mark.parametrize(
    ("index", "steps", "cfg", "guidance"),
    [
        ({"_class_name": "Flux2KleinPipeline", "is_distilled": True}, 4, False, None),
        ({"_class_name": "Flux2KleinPipeline", "is_distilled": False}, 50, True, None),
        ({"_class_name": "Flux2KleinPipeline"}, 50, True, None),
        ({"_class_name": "Flux2Pipeline"}, 50, False, 4.0),
    ],
)
def test_whether_a_klein_is_distilled_is_in_its_own_files(
    index: dict[str, object], steps: int, cfg: bool, guidance: float | None
) -> None:
    (spec,) = resolved("someone/klein")
    known = CATALOGUE.classify(spec, index, [], {"area": 96 * 96}).defaults
    assert (known.steps, known.takes_cfg, known.guidance) == (steps, cfg, guidance)
    assert (known.area, known.sizes["1:1"]) == (96 * 96, (96, 96))


@pytest.mark.parametrize(
    "word", ["qwen-image-3000", "a/b/c", "../nowhere", "/no/such/folder", "~nobody-here/x"]
)
def test_a_word_that_means_nothing_is_refused_with_advice(word: str) -> None:
    with pytest.raises(WeightsUnavailable, match=r"MODEL: .*folder") as refused:
        resolved(word)
    assert "/no/such" not in refused.value.message


def test_model_revision_belongs_to_the_one_published_model() -> None:
    (spec,) = resolved("qwen-image", MODEL_REVISION="v1")
    assert spec.revision == "v1"
    with pytest.raises(InvalidSettings, match="several models"):
        resolved("qwen-image,qwen-image-2512", MODEL_REVISION="v1")


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("alice/foo", ["foo"]),
        ("alice/foo@v1", ["foo"]),
        ("alice/foo,bob/bar", ["foo", "bar"]),
        ("alice/foo,Bob/Foo", ["alice/foo", "bob/foo"]),
        ("alice/foo@v1,bob/foo@v2", ["alice/foo", "bob/foo"]),
        ("alice/foo,ALICE/Foo,alice/foo@main", ["foo"]),
        ("alice/foo,alice/foo@v1", ["alice/foo", "alice/foo@v1"]),
        ("alice/foo@v2,alice/foo@v1,bob/bar", ["alice/foo@v2", "alice/foo@v1", "bar"]),
        ("alice/foo@V1,alice/foo@v1,bob/foo", ["alice/foo@V1", "alice/foo@v1", "bob/foo"]),
        ("a-b/c,a/b-c,a.b/c,a_b/c", ["a-b/c", "b-c", "a.b/c", "a_b/c"]),
        ("qwen-image,bob/qwen-image,Qwen/Qwen-Image", ["qwen-image", "bob/qwen-image"]),
        ("Qwen/Qwen-Image@v1,qwen-image", ["qwen-image@v1", "qwen-image"]),
        ("Qwen/Qwen-Image@v1,bob/qwen-image", ["qwen-image", "bob/qwen-image"]),
        ("bob/tiny-image,tiny", ["bob/tiny-image", "tiny-image", "tiny-edit"]),
    ],
)
@pytest.mark.usefixtures("tiny")
def test_models_of_one_name_are_told_apart_and_others_keep_theirs(
    words: str, names: list[str]
) -> None:
    assert [spec.name for spec in resolved(words)] == names


def test_folders_of_one_name_are_told_apart_without_a_path(tmp_path: Path, tiny: Path) -> None:
    """A row keeps its name, a link is what it leads to, and no number makes another's name."""
    one, two, three = (
        a_folder(tmp_path / at / "foo", "QwenImagePipeline") for at in ("a", "b", "c")
    )
    row = a_folder(tmp_path / "Qwen-Image", "QwenImagePipeline")
    link = tmp_path / "link"
    link.symlink_to(one)
    words = [one, two, link, "bob/foo-2", "alice/foo", three, row, "qwen-image", "tiny"]
    found = resolved(",".join(map(str, words)))
    assert [spec.name for spec in found] == [
        "foo", "foo-3", "foo-2", "alice/foo", "foo-4", "qwen-image-2", "qwen-image",
        "tiny-image", "tiny-edit",
    ]  # fmt: skip
    assert [spec.folder for spec in found[:2]] == [one, two]
    assert tiny in found[-1].folder.parents  # type: ignore[union-attr] # the embedded have one
    (alone,) = resolved(str(row))
    assert alone.name == "qwen-image"


def test_a_bundle_of_another_repository_is_no_row_by_its_name_alone() -> None:
    """The manifest of a fine-tune called like a row names its own repository."""
    (spec,) = resolved("me/mine-4bit")
    made = {"model": "qwen-image", "pipeline": "QwenImagePipeline"}
    assert (
        CATALOGUE.complete_by_manifest(spec, made | {"repository": "alice/qwen-image"}).lightning
        == {}
    )
    row = CATALOGUE.complete_by_manifest(spec, made | {"repository": "qwen/qwen-image"})
    assert (row.name, row.repository, set(row.lightning)) == ("qwen-image", "me/mine-4bit", {8, 4})


@pytest.mark.parametrize("row", CATALOGUE.rows, ids=lambda row: row.name)
def test_a_row_is_listed_as_itself(row: ModelSpec) -> None:
    """By its name and by its repository in any case."""
    listing = CATALOGUE.find_row(row.name).listing
    assert (listing.plain, listing.is_row) == (row.name, True)
    if row.embedded is None:
        assert resolved(row.name.upper())[0].listing == listing
        assert resolved(row.repository.upper())[0].listing == listing


def test_a_copy_of_a_row_that_cannot_be_opened_is_answered_by_the_row(tmp_path: Path) -> None:
    folder = a_folder(tmp_path / "qwen-image", "QwenImagePipeline")
    assert CATALOGUE.describe_folder(folder).listing.instead == "Qwen/Qwen-Image"


@pytest.mark.parametrize(
    ("repository", "pipeline", "instead"),
    [
        ("someone/painter", "Flux2KleinPipeline", "black-forest-labs/FLUX.2-klein-4B"),
        ("someone/flux_2.klein 9B", "Flux2KleinPipeline", "black-forest-labs/FLUX.2-klein-9B"),
        ("someone/qwen-image-edit-2511", "QwenImagePipeline", "Qwen/Qwen-Image"),
        ("someone/painter", "FluxPipeline", ""),
        ("someone/tiny-image", "Flux2Pipeline", "black-forest-labs/FLUX.2-dev"),
    ],
)
def test_a_copy_is_of_the_row_that_its_name_and_its_class_show(
    repository: str, pipeline: str, instead: str
) -> None:
    """The longest name of that class, else its newest; never what ships with the worker."""
    assert CATALOGUE.make_listing(repository, pipeline).instead == instead


def test_what_no_row_is_called_is_none() -> None:
    with pytest.raises(KeyError):
        CATALOGUE.find_row("qwen-image-3000")


def test_the_families_are_those_of_the_rows_each_once() -> None:
    assert sorted(CATALOGUE.families) == sorted({row.family for row in CATALOGUE.rows})


def test_a_copy_of_a_row_is_not_called_like_it() -> None:
    (alone,) = resolved("alice/Qwen-Image")
    assert (alone.name, alone.listing.plain, alone.listing.is_row) == (
        "alice/qwen-image",
        "alice/qwen-image",
        False,
    )
    assert alone.listing.instead == "Qwen/Qwen-Image"


def test_a_repository_may_have_the_parts_of_any_row() -> None:
    (spec,) = resolved("alice/foo")
    for row in CATALOGUE.rows:
        assert set(row.parts.weights) <= set(spec.parts.weights)
        assert set(row.parts.beside) <= set(spec.parts.beside)


def test_checkpoints_are_beside_the_source_or_in_the_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (meaning.find_checkpoints() / "tiny").is_dir()
    monkeypatch.setattr(meaning, "__file__", str(tmp_path / "src/worker/weights/meaning.py"))
    assert meaning.find_checkpoints() == Path("/app/checkpoints")
    (tmp_path / "checkpoints").mkdir()
    assert meaning.find_checkpoints() == tmp_path / "checkpoints"


@pytest.mark.parametrize("word", ["a--b/c", "a/b--c", "a/b..c", "a@v1", ".a/b"])
def test_what_is_no_name_of_a_repository_is_refused(word: str) -> None:
    with pytest.raises(WeightsUnavailable, match="MODEL: "):
        resolved(word)


def test_a_folder_is_named_from_here_or_from_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = a_folder(tmp_path / "home/Mine", "QwenImagePipeline")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(folder)
    for word in ("~/Mine", "../Mine", "./"):
        (spec,) = resolved(word)
        assert spec.folder is not None
        assert (spec.name, spec.folder.resolve(), spec.listing.is_row) == ("mine", folder, False)


def test_a_revision_is_for_the_one_model_that_is_published_and_has_none(tmp_path: Path) -> None:
    folder = a_folder(tmp_path / "mine", "QwenImagePipeline")
    found = resolved(f"{folder},qwen-image", MODEL_REVISION="v1")
    assert [(spec.revision, spec.is_alone) for spec in found] == [(None, True), ("v1", True)]
    (own,) = resolved("alice/foo@v2", MODEL_REVISION="v1")
    assert own.revision == "v2"
    assert [spec.is_alone for spec in resolved("alice/foo,bob/bar")] == [False, False]


@pytest.mark.parametrize("name", ["LIGHTNING", "TRANSFORMER"])
def test_what_is_for_one_model_is_taken_for_one_alone(name: str) -> None:
    value = "a/b/{n}.safetensors" if name == "LIGHTNING" else "a/b"
    environ: Any = {name: value}
    (spec,) = resolved("qwen-image", **environ)
    assert value in (spec.lightning_place, spec.transformer)
    for words in ("qwen-image,alice/foo", "qwen-image,alice/foo,bob/bar"):
        with pytest.raises(InvalidSettings, match=f"{name}: is for one model"):
            resolved(words, **environ)


def test_a_model_of_one_part_is_described_by_its_config(tmp_path: Path) -> None:
    """Where it has no index, and is of a class that is served."""
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    spec = CATALOGUE.describe_folder(tmp_path)
    assert (spec.pipeline, spec.folder) == ("LlamaForCausalLM", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["BertModel"]}))
    with pytest.raises(WeightsUnavailable, match="no readable model_index"):
        CATALOGUE.describe_folder(tmp_path)
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "QwenImagePipeline"}))
    assert CATALOGUE.describe_folder(tmp_path).pipeline == "QwenImagePipeline"


@pytest.mark.parametrize(
    ("name", "pipeline", "found"),
    [
        ("qwen-image", "QwenImagePipeline", True),
        ("FLUX.2-klein-4B", "Flux2KleinPipeline", True),
        ("flux-2-klein-4b", "Flux2KleinPipeline", True),
        ("qwen-image", "QwenImageEditPlusPipeline", False),
        ("tiny-image", "QwenImagePipeline", False),
    ],
)
def test_a_folder_is_a_row_by_its_name_and_its_class(
    tmp_path: Path, name: str, pipeline: str, *, found: bool
) -> None:
    spec = CATALOGUE.describe_folder(a_folder(tmp_path / name, pipeline))
    assert spec.listing.is_row == found
    assert bool(spec.lightning) == (found and pipeline == "QwenImagePipeline")


def test_a_class_is_told_as_far_as_it_is_short() -> None:
    (spec,) = resolved("someone/sd3")
    for pipeline, said in (("x" * 61, "x" * 60 + ";"), ("", "repository without a pipeline class")):
        with pytest.raises(WeightsUnavailable, match=f"MODEL: sd3 is a {said}"):
            CATALOGUE.classify(spec, {"_class_name": pipeline}, [])


def test_what_is_known_of_a_model_outweighs_its_files() -> None:
    """A row stays as it is; LIGHTNING's files are used in place of a repository's own."""
    row = CATALOGUE.find_row("qwen-image")
    assert CATALOGUE.classify(row, {"_class_name": row.pipeline}, []) is row
    (spec,) = resolved("me/mine", LIGHTNING="a/b/{n}.safetensors")
    files = ["x-Lightning-6step.safetensors"]
    known = CATALOGUE.classify(spec, {"_class_name": "QwenImagePipeline"}, files)
    assert set(known.lightning) == {8, 4}
    own = CATALOGUE.classify(
        replace(spec, lightning={}), {"_class_name": "QwenImagePipeline"}, files
    )
    assert own.lightning == {6: LoraFile(None, files[0])}
    assert own.listing == CATALOGUE.make_listing("me/mine", "QwenImagePipeline")


def test_the_worker_s_file_outweighs_the_pipeline_s_switches() -> None:
    """Of the index itself only what is true or false is taken."""
    (spec,) = resolved("someone/klein")
    index = {"_class_name": "Flux2KleinPipeline", "is_distilled": True, "area": 1024}
    assert CATALOGUE.classify(spec, index, []).defaults.area != 1024
    known = CATALOGUE.classify(spec, index, [], {"is_distilled": False}).defaults
    assert known.steps == 50


def test_a_bundle_of_a_row_keeps_what_was_asked_for(tmp_path: Path) -> None:
    (spec,) = resolved("me/mine-4bit@v3")
    spec = replace(
        spec, is_alone=False, folder=tmp_path, lightning_place="a/b/c", transformer="d/e"
    )
    manifest = {"model": "tiny-image", "pipeline": "QwenImagePipeline"}
    row = CATALOGUE.complete_by_manifest(spec, manifest)
    assert (row.name, row.repository, row.revision) == ("tiny-image", "me/mine-4bit", "v3")
    assert (row.folder, row.embedded, row.is_alone) == (tmp_path, None, False)
    assert (row.lightning_place, row.transformer) == ("a/b/c", "d/e")
    assert row.listing == CATALOGUE.make_listing("me/mine-4bit", "QwenImagePipeline")
    assert row.listing.instead
    chosen = {6: LoraFile("a/b", "c")}
    kept = CATALOGUE.complete_by_manifest(replace(spec, lightning=chosen), manifest)
    assert kept.lightning == chosen


def test_a_bundle_of_no_row_describes_itself() -> None:
    (spec,) = resolved("me/mine-4bit")
    manifest = {
        "model": "mine",
        "repository": "alice/mine",
        "pipeline": "QwenImagePipeline",
        "lightning": {
            "8": {"filename": "a-Lightning-8steps.safetensors"},
            "4": {"filename": "a-Lightning-4steps.safetensors"},
        },
        "facts": {"area": 96 * 96},
    }
    known = CATALOGUE.complete_by_manifest(spec, manifest)
    assert {n: file.filename for n, file in known.lightning.items()} == {
        n: f"a-Lightning-{n}steps.safetensors" for n in (8, 4)
    }
    assert (known.repository, known.defaults.area) == ("me/mine-4bit", 96 * 96)
    del manifest["lightning"], manifest["facts"]
    assert CATALOGUE.complete_by_manifest(spec, manifest).lightning == {}
    for broken, said in (
        ({}, "repository without a pipeline class"),
        ({"pipeline": "FluxPipeline"}, "FLUX.1"),
    ):
        with pytest.raises(WeightsUnavailable, match=said):
            CATALOGUE.complete_by_manifest(spec, broken)


@pytest.mark.parametrize("text", ["{", "[]", "3", "\xff"])
def test_a_description_that_cannot_be_read_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "model_index.json").write_text(text, encoding="latin-1")
    with pytest.raises(WeightsUnavailable, match="no readable model_index"):
        CATALOGUE.describe_folder(tmp_path)
