"""A bundle serves the model that it was made of and no other, whatever it is called."""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from worker import boot, settings
from worker.bundle import layout
from worker.bundle import obtain as obtaining
from worker.errors import HubUnreachable, WeightsUnavailable
from worker.families.catalogue import CATALOGUE
from worker.families.qwen_image.recipe import RECIPE
from worker.weights import metadata, proof
from worlds import hub as worlds_hub
from worlds.hub import Hub
from worlds.prepared import folder_of
from worlds.repository import brief, tuned

OWNERS = {"alice": 0.25, "bob": 0.5}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model and two fine-tunes of it, which differ in one tensor and in nothing else."""
    at = tmp_path_factory.mktemp("published")
    return {
        "nobody": brief(folder_of("tiny-edit"), at / "nobody"),
        **{who: tuned(folder_of("tiny-edit"), at / who, by) for who, by in OWNERS.items()},
    }


@pytest.fixture(scope="module")
def hub(published: dict[str, Path]) -> Iterator[Hub]:
    """A hub on which two owners publish a model of one name."""
    with worlds_hub.running() as running:
        for who in OWNERS:
            running.add(f"{who}/foo", published[who])
        running.add("alice/foo-edit", published["nobody"])
        running.add("alice/foo", published["nobody"], branch="v1")
        yield running


@pytest.fixture
def environ(tmp_path: Path, hub: Hub) -> dict[str, str]:
    """What a worker on an empty volume has set."""
    hub.seen.clear()
    return {
        "MODEL_DIR": str(tmp_path / "home"),
        "RUNPOD_CACHE_DIR": str(tmp_path / "cache"),
        "HF_ENDPOINT": hub.endpoint,
        "MIN_STORAGE_FREE_GB": "0",
        "DOWNLOAD_RETRIES": "0",
        "USE_LIGHTNING_LORA": "false",
    }


def prepared(environ: dict[str, str], model: str, **more: str) -> list[Path]:
    """Bring the bundles of MODEL's words to the volume, as a start does."""
    return boot.prepare(settings.read({**environ, "MODEL": model, **more}))


def offline(environ: dict[str, str], model: str, **more: str) -> list[Path]:
    """The same with a hub that nobody can reach."""
    return prepared(environ, model, **{"HF_ENDPOINT": "http://127.0.0.1:9", **more})


def obtained(environ: dict[str, str], model: str, **more: str) -> obtaining.Obtained:
    """Return what a start on a CPU would open for the one model."""
    read = settings.read({**environ, "MODEL": model, **more})
    (spec,) = CATALOGUE.resolve(read.model, read, has_gpu=False)
    return obtaining.obtain(spec, RECIPE, read, None, CATALOGUE)


def transformer(folder: Path) -> dict[str, str]:
    """Return what a bundle's transformer was made of."""
    found = layout.verify(folder)
    return dict(found.parts["transformer"][1].sources)


def digest_of(folder: Path) -> str:
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    return f"sha256:{layout.hash_file(file)}"


def is_made_of(bundle: Path, folder: Path) -> bool:
    return digest_of(folder) in transformer(bundle).values()


def as_before(folder: Path, name: str) -> Path:
    """Leave a bundle as 0.1.0 did: named by the model's last name, and without what was asked."""
    manifest = folder / layout.MANIFEST
    record = json.loads(manifest.read_bytes())
    del record["asked"]
    manifest.write_text(json.dumps(record))
    return folder.rename(folder.with_name(name))


def records_as_before(environ: dict[str, str], names: dict[str, str]) -> None:
    """Leave the remembered revisions as 0.1.0 did."""
    root = Path(environ["MODEL_DIR"]) / metadata.KEPT
    for path in list(root.iterdir()):
        record = json.loads(path.read_bytes())
        word = f"{record['repository']}@{record.pop('revision')}"
        path.unlink()
        if word in names:
            (root / names[word]).write_text(json.dumps(record))


def reason(environ: dict[str, str], model: str, **more: str) -> str:
    """Return why MODEL_DIR was passed over."""
    return str(obtained(environ, model, **more).facts["not_used"]["MODEL_DIR"])


def test_a_folders_bundle_is_not_a_repository_of_its_name(
    published: dict[str, Path], environ: dict[str, str], tmp_path: Path
) -> None:
    """The hub is asked, although a bundle called foo lies on the volume, and the log says why."""
    mine = Path(shutil.copytree(published["alice"], tmp_path / "foo"))
    (first,) = offline(environ, str(mine))
    with pytest.raises(HubUnreachable):
        offline(environ, "bob/foo")
    message = reason(environ, "bob/foo")
    assert "folder" in message
    assert "bob/foo" in message
    (second,) = prepared(environ, "bob/foo")
    assert is_made_of(first, published["alice"])
    assert is_made_of(second, published["bob"])


def test_two_owners_models_of_one_name_are_two(
    published: dict[str, Path], environ: dict[str, str]
) -> None:
    """Both are prepared, callers can name both, and each keeps its bundle when it is alone."""
    models = boot.boot(settings.read({**environ, "MODEL": "alice/foo,bob/foo"}))
    assert [model.id for model in models.served] == ["alice/foo", "bob/foo"]
    for who in OWNERS:
        (alone,) = offline(environ, f"{who}/foo")
        assert is_made_of(alone, published[who])
        # a manifest has the model's plain name: which others MODEL names is no matter of a bundle
        assert layout.read_bundle(alone).model == "foo"


def test_the_case_of_a_name_parts_no_models(environ: dict[str, str]) -> None:
    """The hub knows one repository whatever its case, and so does the volume."""
    (folder,) = prepared(environ, "alice/foo")
    assert offline(environ, "Alice/FOO") == [folder]


def test_another_revision_is_another_model(
    published: dict[str, Path], environ: dict[str, str]
) -> None:
    """A branch, another branch and the commits that they mean."""
    (newest,) = prepared(environ, "alice/foo")
    with pytest.raises(HubUnreachable):
        offline(environ, "alice/foo@v1")
    (older,) = prepared(environ, "alice/foo", MODEL_REVISION="v1")
    assert is_made_of(newest, published["alice"])
    assert is_made_of(older, folder_of("tiny-edit"))
    assert offline(environ, "alice/foo") == offline(environ, "alice/foo@main") == [newest]
    for folder in (newest, older):
        commit = layout.read_bundle(folder).revision
        assert offline(environ, f"alice/foo@{commit}") == [folder]


def test_a_commits_bundle_is_the_branch_that_is_known_to_mean_it(
    hub: Hub, environ: dict[str, str]
) -> None:
    """The volume remembers what main meant; without that nothing shows it."""
    commit = hub.branches["alice/foo"]["main"]
    (folder,) = prepared(environ, f"alice/foo@{commit}")
    with pytest.raises(HubUnreachable):
        offline(environ, "alice/foo")
    metadata.resolve("alice/foo", None, settings.read(environ))
    assert offline(environ, "alice/foo") == [folder]


def test_bundles_of_a_model_are_its_own(environ: dict[str, str]) -> None:
    """Neither those of a longer name, nor of a revision, nor of another owner."""
    words = ("alice/foo", "bob/foo", "alice/foo-edit", "alice/foo@v1")
    folders = {word: prepared(environ, word) for word in words}
    folders["alice/foo"] += prepared(environ, "alice/foo", PRECISION_MODE="4bit")
    home = Path(environ["MODEL_DIR"])
    for word, expected in folders.items():
        assert sorted(layout.find_bundles(word, home)) == sorted(expected), word
    assert sorted(layout.find_bundles("foo", home)) == sorted(
        folders["alice/foo"] + folders["bob/foo"]
    )
    assert layout.find_bundles("foo-edit", home) == folders["alice/foo-edit"]
    assert layout.find_bundles("fo", home) == []


class TestAsBefore:
    """A volume that 0.1.0 prepared, which named bundles by the repository's last part."""

    def test_it_opens_without_the_hub_for_its_own_repository_alone(
        self, environ: dict[str, str]
    ) -> None:
        """Another owner's or another revision's is asked for at the hub, and the log says why."""
        (folder,) = prepared(environ, "alice/foo")
        old = as_before(folder, "foo-bf16")
        shutil.rmtree(Path(environ["MODEL_DIR"]) / metadata.KEPT)
        components = sorted((Path(environ["MODEL_DIR"]) / layout.COMPONENTS).iterdir())
        assert offline(environ, "alice/foo") == [old]
        assert offline(environ, "alice/foo", MODEL_REVISION="main") == [old]
        with pytest.raises(HubUnreachable):
            offline(environ, "bob/foo")
        assert "is of alice/foo, not of bob/foo" in reason(environ, "bob/foo")
        with pytest.raises(HubUnreachable):
            offline(environ, "alice/foo@v1")
        assert set(components) <= set((Path(environ["MODEL_DIR"]) / layout.COMPONENTS).iterdir())

    def test_a_revision_stands_in_the_folders_name(self, environ: dict[str, str]) -> None:
        """foo@v1 is not the model foo-v1, whose bundle had the same name."""
        (folder,) = prepared(environ, "alice/foo@v1")
        old = as_before(folder, "foo-v1-bf16")
        records_as_before(environ, {})
        assert offline(environ, "alice/foo@v1") == [old]
        for other in ("alice/foo", "alice/foo@v2", "alice/foo-v1"):
            with pytest.raises(HubUnreachable):
                offline(environ, other)

    def test_an_ambiguous_revision_is_proven_by_its_record(
        self, hub: Hub, environ: dict[str, str]
    ) -> None:
        """v-1, v/1 and v@1 all gave the folder foo-v-1; the recorded commit distinguishes them."""
        hub.add("bob/foo", folder_of("tiny-edit"), branch="v-1")
        (folder,) = prepared(environ, "bob/foo@v-1")
        old = as_before(folder, "foo-v-1-bf16")
        records_as_before(environ, {"bob/foo@v-1": "bob--foo_v-1.json"})
        assert offline(environ, "bob/foo@v-1") == [old]
        for other in ("bob/foo@v@1", "bob/foo@v/1"):
            with pytest.raises(HubUnreachable):
                offline(environ, other)
        shutil.rmtree(Path(environ["MODEL_DIR"]) / metadata.KEPT)
        with pytest.raises(HubUnreachable):
            offline(environ, "bob/foo@v-1")

    def test_a_folders_bundle_is_proven_by_its_bytes(
        self, published: dict[str, Path], environ: dict[str, str], tmp_path: Path
    ) -> None:
        """They are read once for that, and another folder of the name has another bundle."""
        mine = Path(shutil.copytree(published["alice"], tmp_path / "foo"))
        (folder,) = offline(environ, str(mine))
        old = as_before(folder, "foo-bf16")
        shutil.rmtree(Path(environ["MODEL_DIR"]) / "digests")
        assert offline(environ, str(mine)) == [old]
        other = Path(shutil.copytree(published["bob"], tmp_path / "other/foo"))
        (new,) = offline(environ, str(other))
        assert is_made_of(new, published["bob"])
        assert is_made_of(old, published["alice"])


def test_what_a_revision_meant_is_not_taken_for_another(hub: Hub, environ: dict[str, str]) -> None:
    """feat/x and feat_x had one file on the volume."""
    slash = hub.add("bob/foo", {"a.txt": b"slash"}, branch="feat/x")
    line = hub.add("bob/foo", {"a.txt": b"line"}, branch="feat_x")
    read = settings.read(environ)
    for _ in range(2):
        assert metadata.resolve("bob/foo", "feat/x", read).commit == slash
        assert metadata.resolve("bob/foo", "feat_x", read).commit == line
    assert len(hub.requests("info")) == 2
    records_as_before(environ, {"bob/foo@feat/x": "bob--foo_feat_x.json"})
    assert metadata.find_known_commit("bob/foo", "feat_x", read) is None
    assert metadata.resolve("bob/foo", "feat_x", read).commit == line


class TestFolder:
    """A model that is a folder is known by what is in it."""

    @pytest.fixture
    def mine(self, published: dict[str, Path], tmp_path: Path) -> Path:
        """A fine-tune's folder, to be changed."""
        return Path(shutil.copytree(published["alice"], tmp_path / "mine/foo"))

    @pytest.mark.parametrize("how", ["in place", "folder renamed", "link turned"])
    def test_another_model_at_the_same_path_is_another_model(
        self,
        how: str,
        mine: Path,
        published: dict[str, Path],
        environ: dict[str, str],
        tmp_path: Path,
    ) -> None:
        """With the same sizes and the same dates, and back again."""
        named = mine
        if how == "link turned":
            named = tmp_path / "current"
            named.symlink_to(mine)
        (first,) = offline(environ, str(named))
        file = "transformer/diffusion_pytorch_model.safetensors"
        dates = (mine / file).stat()
        other = Path(shutil.copytree(published["bob"], tmp_path / "other/foo"))
        os.utime(other / file, ns=(dates.st_atime_ns, dates.st_mtime_ns))
        if how == "in place":
            (mine / file).write_bytes((other / file).read_bytes())
            os.utime(mine / file, ns=(dates.st_atime_ns, dates.st_mtime_ns))
        elif how == "folder renamed":
            mine.rename(tmp_path / "away")
            other.rename(mine)
        else:
            named.unlink()
            named.symlink_to(other)
        (second,) = offline(environ, str(named))
        assert is_made_of(first, published["alice"])
        assert is_made_of(second, published["bob"])
        assert offline(environ, str(named)) == [second]

    def test_its_weights_are_read_once(
        self, mine: Path, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Not at the next start, nor where the whole volume is mounted elsewhere."""
        volume = mine.parent
        given = {**environ, "MODEL_DIR": str(volume / "models")}
        (folder,) = offline(given, str(mine))
        read: list[Path] = []

        def counted(path: Path, **options: Any) -> Any:
            read.append(path)
            return proof.digest_file(path, **options)

        monkeypatch.setattr("worker.weights.snapshot.digest_file", counted)
        assert offline(given, str(mine)) == [folder]
        assert read == []
        moved = volume.rename(volume.with_name("mounted elsewhere"))
        given = {**environ, "MODEL_DIR": str(moved / "models")}
        assert offline(given, str(moved / "foo")) == [moved / folder.relative_to(volume)]
        assert read == []
        file = moved / "foo/transformer/diffusion_pytorch_model.safetensors"
        file.touch()
        assert offline(given, str(moved / "foo")) == [moved / folder.relative_to(volume)]
        assert read == [file]

    @pytest.mark.parametrize(
        "change",
        ["vae/config.json", "tokenizer/tokenizer_config.json", "model_index.json", "worker.json"],
    )
    def test_every_part_of_it_counts(
        self, change: str, mine: Path, environ: dict[str, str]
    ) -> None:
        """A part's configuration, the pipeline's class, and what it says about itself."""
        (first,) = offline(environ, str(mine))
        record = json.loads((mine / change).read_bytes())
        record |= {
            "vae/config.json": {"dropout": 0.5},
            "tokenizer/tokenizer_config.json": {"note": "another"},
            "model_index.json": {"_class_name": "QwenImageEditPipeline"},
            "worker.json": {"area": 64 * 64},
        }[change]
        (mine / change).write_text(json.dumps(record))
        (second,) = offline(environ, str(mine))
        assert first != second
        assert offline(environ, str(mine)) == [second]

    def test_who_wrote_a_configuration_does_not_count(
        self, mine: Path, environ: dict[str, str]
    ) -> None:
        """As for components: the tools that wrote a file do not make it another model."""
        (first,) = offline(environ, str(mine))
        config = mine / "vae/config.json"
        config.write_text(json.dumps({**json.loads(config.read_bytes()), "_name_or_path": "x"}))
        assert offline(environ, str(mine)) == [first]

    def test_its_own_lora_counts(self, mine: Path, environ: dict[str, str]) -> None:
        """A LoRA among the folder's files is part of it: the base is kept, the LoRA made again."""
        given = {**environ, "USE_LIGHTNING_LORA": "true", "LIGHTNING_STEPS": "8"}
        (first,) = offline(given, str(mine))
        eight, four = (mine / f"lightning/tiny-Lightning-{n}steps.safetensors" for n in (8, 4))
        shutil.copyfile(four, eight)
        (second,) = offline(given, str(mine))
        roles = [layout.read_bundle(folder).components for folder in (first, second)]
        assert {role for role in roles[0] if roles[0][role] != roles[1][role]} == {"lightning_8"}

    def test_model_path_is_compared_by_its_bytes_too(
        self, mine: Path, published: dict[str, Path], environ: dict[str, str]
    ) -> None:
        """The operator says that these are bob/foo's weights; without the folder nothing does."""
        (folder,) = offline(environ, "bob/foo", MODEL_PATH=str(mine))
        assert is_made_of(folder, published["alice"])
        assert offline(environ, "bob/foo", MODEL_PATH=str(mine)) == [folder]
        (published_one,) = prepared(environ, "bob/foo")
        assert is_made_of(published_one, published["bob"])
        assert offline(environ, "bob/foo", MODEL_PATH=str(mine)) == [folder]

    def test_a_folder_that_holds_what_the_hub_gave_needs_no_bundle_of_its_own(
        self, mine: Path, environ: dict[str, str]
    ) -> None:
        """Equal bytes are one model, wherever they came from."""
        (folder,) = prepared(environ, "alice/foo")
        assert offline(environ, str(mine)) == [folder]

    def test_a_fine_tune_that_is_called_like_a_model_of_the_table_is_not_that_model(
        self, mine: Path, environ: dict[str, str]
    ) -> None:
        """The folder is opened when it is named; the table's word asks the hub all the same."""
        called = mine.rename(mine.with_name("Qwen-Image-Edit-2511"))
        (folder,) = offline(environ, str(called))
        assert offline(environ, str(called)) == [folder]
        as_before(folder, "qwen-image-edit-2511-bf16")
        with pytest.raises(HubUnreachable):
            offline(environ, "qwen-image-edit-2511")


def test_two_sets_of_lightning_loras_do_not_take_turns(environ: dict[str, str]) -> None:
    """A worker with 4 steps leaves the bundle of a worker with 8 as it was, and so does none."""
    given = {**environ, "USE_LIGHTNING_LORA": "true"}
    ways: list[dict[str, str]] = [
        {"LIGHTNING_STEPS": "8"},
        {"LIGHTNING_STEPS": "4"},
        {"LIGHTNING_STEPS": "4,8"},
        {"LIGHTNING_STEPS": "8", "LIGHTNING_FUSED": "true"},
        {"LIGHTNING_STEPS": "4", "LIGHTNING_FUSED": "true"},
        {"USE_LIGHTNING_LORA": "false"},
    ]
    folders = [prepared({**given, **way}, "bob/foo")[0] for way in ways]
    loras = [(set(b.lightning), b.fused) for b in map(layout.read_bundle, folders)]
    assert loras == [({8}, None), ({4}, None), ({4, 8}, None), ({8}, 8), ({4}, 4), ({8}, None)]
    assert len(set(folders)) == 5
    assert [offline({**given, **way}, "bob/foo")[0] for way in ways] == folders


@pytest.mark.parametrize(
    "first", [{"LIGHTNING_STEPS": "4"}, {"USE_LIGHTNING_LORA": "false"}], ids=["4", "none"]
)
def test_a_bundle_does_not_decide_which_loras_its_model_has(
    first: dict[str, str], environ: dict[str, str]
) -> None:
    """Nobody chooses: eight steps, as on an empty volume, whatever was prepared there before."""
    given = {**environ, "USE_LIGHTNING_LORA": "true"}
    (folder,) = prepared({**given, **first}, "bob/foo")
    found = obtained(given, "bob/foo")
    assert found.lightning == (8,)
    assert found.folder != folder
    assert offline(given, "bob/foo") == [found.folder]


def test_a_lora_of_another_file_is_another_lora(environ: dict[str, str]) -> None:
    """A bundle that holds another version's LoRA for the same count is passed over."""
    given = {**environ, "USE_LIGHTNING_LORA": "true", "LIGHTNING_STEPS": "8"}
    (folder,) = prepared(given, "bob/foo")
    manifest = folder / layout.MANIFEST
    record = json.loads(manifest.read_bytes())
    assert offline(given, "bob/foo") == [folder]
    # what 0.1.0's table had for a model of the table
    row = CATALOGUE.find_row("qwen-image-edit-2511")
    record |= {"repository": row.repository, "model": row.name}
    manifest.write_text(json.dumps(record))
    with pytest.raises(HubUnreachable):
        offline(given, row.name)
    lora = row.lightning[8]
    record["lightning"]["8"] |= {"repository": lora.repository, "filename": lora.filename}
    manifest.write_text(json.dumps(record))
    assert offline(given, row.name) == [folder]


def test_two_bundles_that_call_themselves_one_model_are_both_served(
    environ: dict[str, str], tmp_path: Path
) -> None:
    """A pushed bundle is called as the table calls it, unless another model has that name."""
    homes = {}
    for name in ("tiny-image", "tiny-edit"):
        for precision in ("bf16", "4bit"):
            given = {**environ, "MODEL_DIR": str(tmp_path / precision), "PRECISION_MODE": precision}
            homes[name, precision] = offline(given, name)[0]
    words = f"{homes['tiny-edit', 'bf16']},{homes['tiny-edit', '4bit']},tiny-image"
    models = boot.boot(settings.read({**environ, "MODEL": words}))
    assert [m.id for m in models.served] == ["tiny-edit", "tiny-edit-2", "tiny-image"]
    assert [m.precision for m in models.served] == ["bf16", "4bit", "bf16"]


def test_callers_know_a_bundle_by_the_word_that_model_has_for_it(
    environ: dict[str, str],
) -> None:
    """Whatever its manifest calls it, which somebody else may have written."""
    (folder,) = offline(environ, "qwen-image-edit-2511", MODEL_PATH=str(folder_of("tiny-edit")))
    read = settings.read({**environ, "MODEL": "qwen-image-edit-2511", "MODEL_PATH": str(folder)})
    (spec,) = CATALOGUE.resolve(read.model, read, has_gpu=False)
    found = obtaining.obtain(replace(spec, name="mine"), RECIPE, read, None, CATALOGUE)
    assert (found.folder, found.spec.name) == (folder, "mine")


def test_a_downloaded_bundle_speaks_for_no_other_repository(
    hub: Hub, environ: dict[str, str], tmp_path: Path
) -> None:
    """Anybody may push a bundle that claims to be alice's; it is opened by its own name alone.

    Once it is there, the hub is asked nothing.
    """
    source = {**environ, "MODEL_DIR": str(tmp_path / "source")}
    (folder,) = prepared(source, "alice/foo")
    whole = layout.list_files(layout.verify(folder))
    hub.add("eve/foo-4bit", {name: path.read_bytes() for name, path in whole.items()})
    (downloaded,) = prepared(environ, "eve/foo-4bit")
    assert offline(environ, "eve/foo-4bit") == [downloaded]
    with pytest.raises(HubUnreachable):
        offline(environ, "alice/foo")


def test_a_word_that_the_hub_forbids_is_refused() -> None:
    """a--b/c and a/b--c would share a folder in every cache."""
    for word in ("a--b/c", "a/b--c", "a/b..c"):
        with pytest.raises(WeightsUnavailable, match="no model is called"):
            CATALOGUE.resolve([word], settings.read({}), has_gpu=False)


def test_a_damaged_bundle_that_was_downloaded_is_downloaded_again(
    hub: Hub, environ: dict[str, str], tmp_path: Path
) -> None:
    """Its repository has no published weights to make the part from; the rest is kept."""
    (folder,) = prepared({**environ, "MODEL_DIR": str(tmp_path / "source")}, "alice/foo")
    whole = layout.list_files(layout.verify(folder))
    hub.add("eve/flipped", {name: path.read_bytes() for name, path in whole.items()})
    (downloaded,) = prepared(environ, "eve/flipped")
    (part,) = (downloaded / layout.COMPONENTS).glob("transformer-*")
    file = next(part.glob(f"{layout.WEIGHTS}-*"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    hub.seen.clear()
    models = boot.boot(settings.read({**environ, "MODEL": "eve/flipped", "VERIFY": "full"}))
    assert [model.id for model in models.served] == ["flipped"]
    assert layout.verify(downloaded, "full").bundle.repository == "alice/foo"
    assert not hub.requests("bytes", "*text_encoder*")
