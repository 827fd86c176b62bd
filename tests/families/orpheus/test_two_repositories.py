"""A model of two repositories and without an index: both are found wherever they may be."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from worker import settings
from worker.bundle import layout
from worker.errors import WeightsUnavailable
from worker.families import catalogue
from worker.families.orpheus.model import make_ready, prepare
from worker.families.orpheus.models import SNAC_24
from worker.families.recognise import recognise
from worker.seam import Made, Unheard
from worker.settings import Settings
from worker.tasks.speech import warm_up
from worlds import altered, speaking
from worlds import hub as worlds_hub
from worlds.hub import Hub

LANGUAGE = "someone/talker"
BOTH = (LANGUAGE, SNAC_24.repository)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return speaking.publish(tmp_path_factory.mktemp("published")).parent


@pytest.fixture
def hub(published: Path) -> Iterator[Hub]:
    """A hub that has both, the codec at the revision that the rows name."""
    with worlds_hub.running() as running:
        running.add(LANGUAGE, published / "talker")
        running.add(SNAC_24.repository, {"config.json": b"{}"})
        running.add(SNAC_24.repository, published / "snac", SNAC_24.revision)
        yield running


def read_settings(home: Path, **environ: str) -> Settings:
    return settings.read(
        {
            "MODEL": LANGUAGE,
            "MODEL_DIR": str(home / "home"),
            "RUNPOD_CACHE_DIR": str(home / "cache"),
            "HF_ENDPOINT": "http://127.0.0.1:9",
            "DOWNLOAD_RETRIES": "0",
            "MIN_STORAGE_FREE_GB": "0",
            **environ,
        }
    )


def ready(given: Settings) -> Any:
    (spec,) = catalogue.CATALOGUE.resolve(given.model, given, has_gpu=False)
    spec = recognise(spec, given, catalogue.CATALOGUE)
    assert spec.family == "worker.families.orpheus.model"
    return make_ready(spec, given, None)


def speaks(openable: Any) -> bool:
    model = openable.open()
    (outcome,) = model.make([warm_up(model.served)], [Unheard()])
    return isinstance(outcome, Made)


def test_both_are_fetched_from_the_hub_and_the_bundle_asks_none_again(
    hub: Hub, tmp_path: Path
) -> None:
    openable = ready(read_settings(tmp_path, HF_ENDPOINT=hub.endpoint))
    assert speaks(openable)
    assert openable.served.repository == LANGUAGE
    assert hub.requests("bytes", "pytorch_model.bin")
    (bundle,) = (bundle for _, bundle in layout.list_prepared(tmp_path / "home"))
    assert set(bundle.components) == {"language", "codec", "tokenizer"}
    names = {path.suffix for path in (tmp_path / "home/components").rglob("*") if path.is_file()}
    assert names == {".safetensors", ".json"}
    before = len(hub.requests(path="*pytorch_model.bin"))
    assert speaks(ready(read_settings(tmp_path, HF_ENDPOINT=hub.endpoint)))
    assert len(hub.requests(path="*pytorch_model.bin")) == before


def test_both_are_taken_from_a_cache(published: Path, tmp_path: Path) -> None:
    for repository, commit, source in (
        (LANGUAGE, "a" * 40, "talker"),
        (SNAC_24.repository, SNAC_24.revision, "snac"),
    ):
        place = tmp_path / "cache" / f"models--{repository.replace('/', '--')}"
        (place / "refs").mkdir(parents=True)
        (place / "refs/main").write_text(commit)
        (place / "snapshots").mkdir()
        (place / "snapshots" / commit).symlink_to(published / source)
    assert speaks(ready(read_settings(tmp_path)))


def test_a_codec_that_cannot_be_had_is_named(published: Path, tmp_path: Path) -> None:
    with worlds_hub.running() as running:
        running.add(LANGUAGE, published / "talker")
        with pytest.raises(WeightsUnavailable, match=SNAC_24.repository):
            ready(read_settings(tmp_path, HF_ENDPOINT=running.endpoint))


def test_a_language_model_that_does_not_speak_is_refused_by_its_vocabulary(
    hub: Hub, tmp_path: Path
) -> None:
    """Its class is that of every Llama."""
    stock = tmp_path / "stock"
    speaking.make_language().save_pretrained(stock)
    speaking.make_tokenizer().save_pretrained(stock)
    hub.add("someone/chat", stock)
    given = read_settings(tmp_path, HF_ENDPOINT=hub.endpoint, MODEL="someone/chat")
    with pytest.raises(WeightsUnavailable, match=r"someone/chat.*vocab_size of 337.*156938"):
        ready(given)


def test_a_row_s_repository_that_has_another_class_is_refused(
    hub: Hub, published: Path, tmp_path: Path
) -> None:
    """Nobody asked for its class before: what family it is of is known."""
    folder = Path(shutil.copytree(published / "talker", tmp_path / "changed"))
    altered.configure(folder / "config.json", architectures=["MistralForCausalLM"])
    row = catalogue.CATALOGUE.find_row("orpheus")
    hub.add(row.repository, folder)
    with pytest.raises(WeightsUnavailable, match=r"language/config\.json is of a Mistral"):
        ready(read_settings(tmp_path, HF_ENDPOINT=hub.endpoint, MODEL=row.name))


def test_a_pickle_is_read_once_and_never_run(hub: Hub, tmp_path: Path) -> None:
    """A pushed bundle has safetensors alone, and what it was made from is recorded."""
    given = read_settings(tmp_path, HF_ENDPOINT=hub.endpoint)
    (spec,) = catalogue.CATALOGUE.resolve(given.model, given, has_gpu=False)
    folder = prepare(recognise(spec, given, catalogue.CATALOGUE), given, None)
    place, part = layout.verify(folder, "full").parts["codec"]
    assert "codec/pytorch_model.bin" in part.sources
    assert part.recipe["precision"] == "published"
    assert sorted(path.suffix for path in place.iterdir()) == [".json", ".json", ".safetensors"]
