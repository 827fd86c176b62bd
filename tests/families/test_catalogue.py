"""Adding a family is adding its rows: MODEL, folders and repositories know it, and nothing else."""

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from worker import boot, preflight, settings
from worker.bundle import layout
from worker.bundle.layout import Bundle
from worker.driver import Gpu
from worker.errors import HubUnreachable, WeightsUnavailable
from worker.families import catalogue
from worker.families.catalogue import CATALOGUE, FAMILIES, combine
from worker.families.family import Family
from worker.families.recognise import recognise
from worker.settings import Settings
from worker.weights import sources
from worker.weights.meaning import find_checkpoints
from worker.weights.snapshot import LocalSnapshot
from worker.weights.spec import ModelSpec, Parts
from worlds import hub as worlds_hub
from worlds.hub import Hub

CLASS = "ToneForSpeech"
EDIT = find_checkpoints() / "tiny" / "edit"
QWEN = "worker.families.qwen_image.model"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass(frozen=True)
class Pitch:
    """What a tone is, unless a job says otherwise: Hz."""

    hertz: int = 440


def completed(spec: ModelSpec, about: Mapping[str, Any]) -> ModelSpec:
    """Complete a tone that no row describes."""
    pitch = Pitch(about.get("hertz", 440))
    return replace(spec, family=__name__, tasks=("speech",), defaults=pitch, parts=ONE_PART)


def prepare(spec: ModelSpec, settings: Settings, gpu: Gpu | None) -> Path:
    """Bring a tone to this machine, as boot asks a family's module to."""
    assert gpu is None
    return settings.home / spec.name


ONE_PART = Parts(weights=("",))
TONE = Family(
    rows=(
        ModelSpec("a-440", "tuner/a-440", CLASS, __name__, ("speech",), Pitch(), parts=ONE_PART),
    ),
    classes={CLASS: completed},
    form="a tone (config.json)",
    groups={"tones": ("a-440",)},
)
BOTH = combine((*FAMILIES, TONE))
ONE = combine(FAMILIES[:1])


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that has one family more."""
    monkeypatch.setattr(catalogue, "CATALOGUE", BOTH)


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A hub with a repository of each family, and one of none."""
    with worlds_hub.running() as running:
        running.add("someone/small-edit", EDIT)
        running.add("someone/hum", {"config.json": config(), "model.safetensors": weights()})
        running.add("someone/other", {"config.json": config("OtherForSpeech")})
        yield running


def config(name: str = CLASS) -> bytes:
    return json.dumps({"architectures": [name]}).encode()


def weights() -> bytes:
    header = json.dumps({"x": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(4)


def a_tone(folder: Path, **about: int) -> Path:
    """Publish a tone in a folder."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_bytes(config())
    (folder / "model.safetensors").write_bytes(weights())
    if about:
        (folder / "worker.json").write_text(json.dumps(about))
    return folder


def configured(home: Path, **environ: str) -> Settings:
    """Return the settings of a worker on a volume, with a hub that nothing can reach."""
    return settings.read(
        {
            "MODEL_DIR": str(home / "home"),
            "RUNPOD_CACHE_DIR": str(home / "cache"),
            "HF_ENDPOINT": "http://127.0.0.1:9",
            "DOWNLOAD_RETRIES": "0",
            **environ,
        }
    )


def resolved(word: str) -> ModelSpec:
    (spec,) = BOTH.resolve([word], settings.read({}), has_gpu=True)
    return spec


@pytest.mark.parametrize("word", ["a-440", "A-440", "tuner/A-440", "tones"])
def test_a_row_of_another_family_is_what_model_means(word: str) -> None:
    spec = resolved(word)
    assert (spec.name, spec.family, spec.tasks) == ("a-440", __name__, ("speech",))
    assert spec.defaults == Pitch(440)


def test_the_words_and_families_are_those_of_all() -> None:
    """And an empty MODEL means what it meant."""
    assert set(BOTH.names) == {*CATALOGUE.names, "a-440", "tones"}
    assert BOTH.families == (*CATALOGUE.families, __name__)
    assert (BOTH.default, BOTH.embedded) == (CATALOGUE.default, CATALOGUE.embedded)
    assert all(BOTH.find_row(row.name) == CATALOGUE.find_row(row.name) for row in CATALOGUE.rows)
    with pytest.raises(KeyError, match="b-880"):
        BOTH.find_row("b-880")


def test_a_row_s_module_is_asked_to_prepare_it(
    both: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert both is None
    monkeypatch.setattr(preflight, "find_usable_gpu", lambda: None)
    assert boot.prepare(configured(tmp_path, MODEL="a-440")) == [tmp_path / "home/a-440"]


def test_a_folder_is_of_the_family_whose_class_it_names(tmp_path: Path) -> None:
    """By its config.json where it has no index, completed by its own worker.json."""
    folder = a_tone(tmp_path / "hum", hertz=220)
    spec = resolved(str(folder))
    assert (spec.name, spec.family, spec.pipeline) == ("hum", __name__, CLASS)
    assert (spec.folder, spec.defaults) == (folder, Pitch(220))
    assert resolved(str(a_tone(tmp_path / "plain"))).defaults == Pitch(440)
    assert resolved(str(EDIT)).family == QWEN
    source = sources.find(
        spec, configured(tmp_path), bundle=tmp_path / "none", bundle_fault=layout.find_fault
    )
    assert (source.kind, source.folder) == ("MODEL_PATH", folder)


def test_a_folder_named_like_a_row_of_one_part_is_that_row(tmp_path: Path) -> None:
    spec = resolved(str(a_tone(tmp_path / "A-440")))
    assert (spec.name, spec.repository, spec.listing.is_row) == ("a-440", "tuner/a-440", True)


def test_what_is_of_no_family_is_refused_with_what_all_serve(tmp_path: Path) -> None:
    with pytest.raises(WeightsUnavailable, match=rf"OtherForSpeech; .* QwenImagePipeline.*{CLASS}"):
        BOTH.classify(resolved("someone/other"), json.loads(config("OtherForSpeech")), [])
    with pytest.raises(
        WeightsUnavailable, match=r"scheduler/\) or of .* or of a tone \(config\.json\)$"
    ):
        resolved(str(tmp_path))
    (tmp_path / "config.json").write_bytes(config("OtherForSpeech"))
    with pytest.raises(WeightsUnavailable, match="no readable model_index"):
        resolved(str(tmp_path))


def test_a_config_names_no_class_where_no_family_is_of_one_part(tmp_path: Path) -> None:
    """Then it is not even read: what has no index is refused as it is without it."""
    (spec,) = ONE.resolve(["someone/hum"], settings.read({}), has_gpu=True)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(WeightsUnavailable, match=r"no model_index\.json and no manifest\.json"):
        sources.complete(spec, LocalSnapshot(tmp_path, "someone/hum"), ONE)


@pytest.mark.parametrize(
    ("repository", "module"), [("someone/small-edit", QWEN), ("someone/hum", __name__)]
)
def test_a_repository_is_of_the_family_whose_class_it_names(
    repository: str, module: str, hub: Hub, tmp_path: Path
) -> None:
    """The hub is asked for the small files that say so, and for no weights."""
    given = configured(tmp_path, HF_ENDPOINT=hub.endpoint)
    spec = recognise(resolved(repository), given, BOTH)
    assert spec == replace(resolved(repository), family=module)
    assert not hub.requests("bytes", "*.safetensors")
    assert not hub.requests("resolve", "*.safetensors")


def test_a_repository_of_no_family_is_refused(hub: Hub, tmp_path: Path) -> None:
    given = configured(tmp_path, HF_ENDPOINT=hub.endpoint)
    with pytest.raises(WeightsUnavailable, match="MODEL: other is a OtherForSpeech"):
        recognise(resolved("someone/other"), given, BOTH)


def test_a_cache_says_whose_a_repository_is(tmp_path: Path) -> None:
    at = tmp_path / "cache/models--someone--hum"
    a_tone(at / "snapshots" / COMMIT)
    (at / "refs").mkdir()
    (at / "refs/main").write_text(COMMIT)
    assert recognise(resolved("someone/hum"), configured(tmp_path), BOTH).family == __name__


def a_bundle(folder: Path, repository: str, pipeline: str) -> None:
    """Leave the manifest of a bundle without parts."""
    folder.mkdir(parents=True)
    made = Bundle(
        format=layout.FORMAT,
        model="x",
        repository=repository,
        revision=COMMIT,
        asked="main",
        pipeline=pipeline,
        precision="bf16",
        fused=None,
        lightning={},
        components={},
        libraries={},
    )
    layout.publish(folder, made)


def test_a_bundle_on_the_volume_says_it_without_a_hub(tmp_path: Path) -> None:
    """One that was prepared there; another repository's says nothing."""
    a_bundle(tmp_path / "home/bundles/a", "else/hum", "QwenImagePipeline")
    with pytest.raises(HubUnreachable):
        recognise(resolved("someone/hum"), configured(tmp_path), BOTH)
    a_bundle(tmp_path / "home/bundles/b", "Someone/Hum", CLASS)
    assert recognise(resolved("someone/hum"), configured(tmp_path), BOTH).family == __name__


def test_a_bundle_that_was_downloaded_says_it_without_a_hub(hub: Hub, tmp_path: Path) -> None:
    """It carries another's name, and lies under the commit that was downloaded."""
    folder = tmp_path / "pushed"
    a_bundle(folder, "else/hum", CLASS)
    commit = hub.add("someone/hum-4bit", folder)
    home = tmp_path / "home"
    online = configured(tmp_path, HF_ENDPOINT=hub.endpoint)
    for _ in range(2):  # its commit is known the second time, and its folder is not there yet
        assert recognise(resolved("someone/hum-4bit"), online, BOTH).family == __name__
    at = home / "bundles" / f"someone--hum-4bit-{commit}"
    at.parent.mkdir(parents=True, exist_ok=True)
    folder.rename(at)
    (at / layout.COMPONENTS).mkdir()
    assert recognise(resolved("someone/hum-4bit"), configured(tmp_path), BOTH).family == __name__


def test_what_a_model_needs_is_what_its_family_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing where a family does not know it, or where there is no family."""
    given = settings.read({})
    for family in FAMILIES:
        for row in family.rows:
            assert catalogue.estimate_needs(row, given) == family.needs(row, given)
    elsewhere = replace(CATALOGUE.rows[0], family="elsewhere")
    assert catalogue.estimate_needs(elsewhere, given) == {}
    monkeypatch.setattr(catalogue, "FAMILIES", (TONE,))
    assert catalogue.estimate_needs(TONE.rows[0], given) == {}


def test_one_family_asks_no_one(tmp_path: Path) -> None:
    (spec,) = ONE.resolve(["someone/hum"], settings.read({}), has_gpu=True)
    assert recognise(spec, configured(tmp_path), ONE).family == QWEN
    assert recognise(resolved("a-440"), configured(tmp_path), BOTH) == resolved("a-440")


def test_whose_a_repository_is_is_known_without_torch(tmp_path: Path) -> None:
    """Importing torch takes seconds, and a family's own module must not be imported for it."""
    at = tmp_path / "cache/models--someone--hum/snapshots" / COMMIT
    a_tone(at)
    code = (
        "import sys; import tests.families.test_catalogue as t; from pathlib import Path;"
        " from worker.families.recognise import recognise;"
        f" given = t.configured(Path({str(tmp_path)!r}));"
        " specs = [t.resolved(word) for word in ('someone/hum', 'qwen-image', 'tiny-edit')];"
        " found = [recognise(spec, given, t.BOTH).family for spec in specs];"
        " print(*found, 'torch' in sys.modules, found[1] in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": "."},
        cwd=Path(__file__).parents[2],
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["tests.families.test_catalogue", QWEN, QWEN, "False", "False"]


@pytest.mark.parametrize("path", sorted(Path(sources.__file__).parent.glob("*.py")), ids=str)
def test_weights_knows_no_model(path: Path) -> None:
    """Neither a row's name nor the parts that its family is published in."""
    text = path.read_text(encoding="utf-8").lower()
    words = [row.name for row in CATALOGUE.rows if row.embedded is None]
    parts = [part for row in CATALOGUE.rows for part in (*row.parts.weights, *row.parts.beside)]
    words += filter(None, parts)  # "" is the root of a repository
    assert [word for word in (*words, "qwen") if f"{word}/" in text or f'"{word}"' in text] == []
