"""On a GPU the precision is chosen from sizes that the volume remembers, each model its own."""

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from worker import settings
from worker.bundle import layout, needs
from worker.bundle.obtain import Obtained, obtain
from worker.bundle.recipe import Published, require_nothing
from worker.bundle.sizes import WeightSizes
from worker.driver import CONTEXT_BYTES, Gpu
from worker.errors import HubUnreachable, InvalidSettings
from worker.families.catalogue import CATALOGUE
from worker.families.qwen_image.planning import plan_working
from worker.families.qwen_image.recipe import RECIPE
from worker.weights import metadata
from worker.weights.snapshot import Snapshot
from worker.weights.spec import ModelSpec
from worlds import hub as worlds_hub
from worlds.hub import Hub
from worlds.prepared import folder_of
from worlds.repository import tuned

GB = 1 << 30


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A hub on which two owners publish a model of one name."""
    with worlds_hub.running() as running:
        at = tmp_path_factory.mktemp("published")
        for who, by in (("alice", 0.25), ("bob", 0.5)):
            running.add(f"{who}/foo", tuned(folder_of("tiny-edit"), at / who, by))
        yield running


@pytest.fixture
def environ(hub: Hub, tmp_path: Path) -> dict[str, str]:
    """What a worker on an empty volume has set."""
    return {
        "MODEL": "alice/foo",
        "MODEL_DIR": str(tmp_path / "home"),
        "RUNPOD_CACHE_DIR": str(tmp_path / "cache"),
        "HF_ENDPOINT": hub.endpoint,
        "MIN_STORAGE_FREE_GB": "0",
        "DOWNLOAD_RETRIES": "0",
    }


def obtained(environ: dict[str, str], free: int | None = None, **more: str) -> Obtained:
    """Return what a start would open, on a GPU with so many bytes free or on a CPU."""
    read = settings.read({**environ, **more})
    gpu = None if free is None else Gpu("a GPU", (9, 0), 80 * GB, free)
    (spec,) = CATALOGUE.resolve(read.model, read, has_gpu=gpu is not None)
    return obtain(spec, RECIPE, read, gpu, CATALOGUE)


def offline(environ: dict[str, str], free: int | None = None, **more: str) -> Obtained:
    """The same with a hub that nobody can reach."""
    return obtained(environ, free, **{"HF_ENDPOINT": "http://127.0.0.1:9", **more})


def forget(environ: dict[str, str]) -> dict[str, WeightSizes]:
    """Take the remembered sizes away, as where 0.1.0 prepared without a GPU; return them."""
    folder = Path(environ["MODEL_DIR"]) / needs.SIZES_FOLDER
    (kept,) = folder.iterdir()
    known = needs.read_kept(folder.parent, kept.stem, RECIPE)
    assert known is not None
    shutil.rmtree(folder)
    return {str(precision): size for precision, size in known.items()}


def test_what_was_prepared_without_a_gpu_opens_on_one_without_the_hub(
    environ: dict[str, str],
) -> None:
    """Preparing remembers the sizes, so that a later start on a GPU can choose from them."""
    prepared = obtained(environ)
    assert offline(environ, 40 * GB).folder == prepared.folder


def test_on_a_cpu_nobody_asks_what_a_device_must_hold(environ: dict[str, str]) -> None:
    prepared = obtained(environ)
    forget(environ)
    assert offline(environ).folder == prepared.folder
    with pytest.raises(HubUnreachable):
        offline(environ, 40 * GB)


def test_the_sizes_are_those_that_the_device_must_hold(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the least memory that holds them, and not with a byte less.

    The embedded text encoder is smaller than what passing through the device takes: in two tries
    that takes nothing, and it is worth waiting.
    """
    spec = obtained(environ).spec
    (kept,) = (Path(environ["MODEL_DIR"]) / needs.SIZES_FOLDER).iterdir()
    size = json.loads(kept.read_bytes())["bf16"]
    whole = sum(size[part] for part in ("transformer", "text_encoder", "vae", "adapters"))
    working = plan_working(spec, settings.read(environ), "bf16") + CONTEXT_BYTES
    here = offline(environ, whole + working, PRECISION_MODE="bf16")
    assert not here.offload
    assert set(here.parts) == set(here.bundle.components.values())
    with pytest.raises(InvalidSettings):
        offline(environ, whole + working - 1, PRECISION_MODE="bf16")
    monkeypatch.setattr(sys.modules[__name__], "RECIPE", replace(RECIPE, passing=require_nothing))
    waiting = offline(environ, whole + working - 1, PRECISION_MODE="bf16")
    assert waiting.offload
    encoder = here.bundle.components["text_encoder"]
    assert waiting.parts == {name: n for name, n in here.parts.items() if name != encoder}
    least = whole - size["text_encoder"] + working
    assert offline(environ, least, PRECISION_MODE="bf16").offload
    with pytest.raises(InvalidSettings):
        offline(environ, least - 1, PRECISION_MODE="bf16")


def test_a_precision_that_was_asked_for_needs_no_sizes_but_its_bundles(
    environ: dict[str, str],
) -> None:
    """With auto the published headers must be read; the hub is asked as often as that."""
    prepared = obtained(environ, PRECISION_MODE="4bit")
    published = forget(environ)
    shutil.rmtree(Path(environ["MODEL_DIR"]) / metadata.KEPT)
    assert offline(environ, 40 * GB, PRECISION_MODE="4bit").folder == prepared.folder
    with pytest.raises(HubUnreachable):
        offline(environ, 40 * GB)
    need = needs.measure_bundle(layout.verify(prepared.folder), RECIPE)
    size = published["4bit"]
    assert need.whole == pytest.approx(size.memory, rel=0.5)  # small tensors, large headers
    assert 0 < need.least < need.whole


def test_a_start_that_fits_no_gpu_keeps_the_sizes_all_the_same(
    hub: Hub, environ: dict[str, str]
) -> None:
    """So that the next one says the same without asking the hub."""
    row = CATALOGUE.find_row("qwen-image-edit-2509")
    hub.add(row.repository, folder_of("tiny-edit"))
    own = {**environ, "MODEL": row.name, "USE_LIGHTNING_LORA": "false"}
    for start in (obtained, offline):
        with pytest.raises(InvalidSettings):
            start(own, CONTEXT_BYTES)


def test_what_is_prepared_for_a_gpu_is_prepared_on_it_and_checked_once(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each part says on what: the first ones of small files also where torch has no GPU."""
    checks: list[str] = []

    def check(snapshot: Snapshot, spec: ModelSpec) -> Published:
        checks.append(spec.repository)
        return RECIPE.check(snapshot, spec)

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
    counting = replace(RECIPE, check=check)
    read = settings.read({**environ, "PRECISION_MODE": "4bit", "USE_LIGHTNING_LORA": "false"})
    (spec,) = CATALOGUE.resolve(read.model, read, has_gpu=True)
    with suppress(Exception):  # without a GPU
        obtain(spec, counting, read, Gpu("a GPU", (9, 0), 80 * GB, 40 * GB), CATALOGUE)
    assert checks == ["alice/foo"]
    made = (read.home / layout.COMPONENTS).glob(f"*/{layout.MANIFEST}")
    assert {layout.read_component(path.parent).prepared_on for path in made} == {"cuda 9.0"}


class TestAsBefore:
    """Sizes that 0.1.0 kept, by the last name of the repository."""

    def leave(self, environ: dict[str, str], name: str, beside: int) -> Path:
        """Leave a bundle of alice's model as 0.1.0 did; return the volume."""
        folder = obtained(environ).folder
        record = json.loads((folder / layout.MANIFEST).read_bytes())
        del record["asked"]
        (folder / layout.MANIFEST).write_text(json.dumps(record))
        folder.rename(folder.with_name(name))
        home = Path(environ["MODEL_DIR"])
        (kept,) = (home / needs.SIZES_FOLDER).iterdir()
        kept.rename(kept.with_name(f"{name}-{beside}.json"))
        shutil.rmtree(home / metadata.KEPT)
        return home

    @pytest.fixture
    def volume(self, environ: dict[str, str]) -> Path:
        """A volume of alice's model as 0.1.0 left it."""
        return self.leave(environ, "foo-bf16", 1)

    def test_they_serve_the_model_of_their_bundles(
        self, environ: dict[str, str], volume: Path
    ) -> None:
        """Nobody asks the hub, whichever precision is chosen from them."""
        assert offline(environ, 40 * GB).folder == volume / layout.BUNDLES / "foo-bf16"

    def test_they_serve_one_with_its_lora_in_the_weights_and_none_beside_them(
        self, environ: dict[str, str]
    ) -> None:
        """The number of LoRAs beside the weights was in the name of the sizes."""
        fused = {**environ, "LIGHTNING_FUSED": "true"}
        volume = self.leave(fused, "foo-bf16-lightning8", 0)
        folder = volume / layout.BUNDLES / "foo-bf16-lightning8"
        assert offline(fused, 40 * GB).folder == folder

    def test_they_serve_no_other_model_of_the_name(
        self, environ: dict[str, str], volume: Path
    ) -> None:
        """Nor its own once another owner's bundle had the name at another precision."""
        own = {**environ, "MODEL": "bob/foo"}
        with pytest.raises(HubUnreachable):
            offline(own, 40 * GB)
        other = obtained(own, PRECISION_MODE="4bit").folder
        shutil.rmtree(volume / metadata.KEPT)
        assert offline(environ, 40 * GB).facts["precision"] == "bf16"
        other = other.rename(other.with_name("foo-4bit"))
        with pytest.raises(HubUnreachable):
            offline(environ, 40 * GB)
        shutil.rmtree(other)
        assert offline(environ, 40 * GB).facts["precision"] == "bf16"


def test_two_models_of_one_name_have_sizes_of_their_own(environ: dict[str, str]) -> None:
    """And so have two sets of LoRAs, beside the weights or in them."""
    obtained(environ, USE_LIGHTNING_LORA="false")
    obtained(environ)
    obtained(environ, MODEL="bob/foo")
    obtained(environ, LIGHTNING_STEPS="4,8")
    obtained(environ, LIGHTNING_FUSED="true")
    names = {path.name for path in (Path(environ["MODEL_DIR"]) / needs.SIZES_FOLDER).iterdir()}
    assert names == {
        "alice--foo-bf16.json",
        "bob--foo-bf16.json",
        "alice--foo-bf16-steps4-8.json",
        "alice--foo-bf16-steps0.json",
        "alice--foo-bf16-lightning8.json",
    }
