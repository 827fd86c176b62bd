"""From wherever the weights are to a warm model, and never the same work twice."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from worker import boot, settings
from worker.__main__ import main
from worker.bundle import layout
from worker.errors import HubUnreachable, WeightsUnavailable
from worker.seam import Models
from worker.tasks.picture import PictureWish
from worlds import hub as worlds_hub
from worlds import making
from worlds.hub import Hub
from worlds.prepared import folder_of

EDIT = "Qwen/Qwen-Image-Edit-2511"
LORAS = "lightx2v/Qwen-Image-Edit-2511-Lightning"
LORA = "Qwen-Image-Edit-2511-Lightning-{}steps-V1.0-bf16.safetensors"
TOKEN = "hf_a-token-that-may-write"

Boot = Callable[..., Models]


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A hub that serves the small edit model, also under the names of a published one."""
    with worlds_hub.running() as running:
        folder = folder_of("tiny-edit")
        running.add("someone/small-edit", folder)
        running.add(EDIT, folder)
        lightning = folder / "lightning"
        running.add(
            LORAS,
            {
                LORA.format(n): (lightning / f"tiny-Lightning-{n}steps.safetensors").read_bytes()
                for n in (4, 8)
            },
        )
        yield running


@pytest.fixture
def environ(tmp_path: Path, hub: Hub) -> dict[str, str]:
    """What a worker on an empty volume has set."""
    return {
        "MODEL": "someone/small-edit",
        "MODEL_DIR": str(tmp_path / "home"),
        "RUNPOD_CACHE_DIR": str(tmp_path / "cache"),
        "HF_ENDPOINT": hub.endpoint,
        "MIN_STORAGE_FREE_GB": "0",
        "DOWNLOAD_RETRIES": "1",
    }


def started(environ: Mapping[str, str]) -> dict[str, Any]:
    """Start a worker and return what op=health reports about its one model."""
    facts: Any = boot.boot(settings.read(environ)).report_health()["models"]
    (only,) = facts.values()
    return dict(only)


def drawn(environ: Mapping[str, str], *, steps: int = 8, lightning: bool = True) -> bytes:
    """Start a worker and draw one picture from its first model."""
    models = boot.boot(settings.read(environ))
    model = models.take(models.served[0].id)
    from PIL import Image  # noqa: PLC0415 - pixels of this test alone

    wish = PictureWish(
        task="edit",
        prompt="make it blue",
        negative_prompt=None,
        references=(Image.linear_gradient("L").resize((96, 96)).convert("RGB"),),
        width=96,
        height=96,
        steps=steps,
        true_cfg_scale=1.0,
        lightning=lightning,
        seed=1,
    )
    return making.drawn(model, wish).tobytes()


def parts_of(environ: Mapping[str, str]) -> dict[str, int]:
    """Return the components on MODEL_DIR and when each was published."""
    root = Path(environ["MODEL_DIR"]) / layout.COMPONENTS
    return {path.name: (path / layout.MANIFEST).stat().st_mtime_ns for path in root.iterdir()}


def test_from_an_empty_volume_to_warm_and_then_without_the_hub(
    hub: Hub, environ: dict[str, str]
) -> None:
    """The first start prepares from the hub; the next one needs no hub and writes nothing."""
    first = started(environ)
    assert (first["source"], first["resident"]) == ("hub", True)
    assert set(first["not_used"]) == {"MODEL_DIR", "MODEL_PATH", "RunPod cache", "image"}
    before = parts_of(environ)
    hub.branches.clear()  # from now on it answers nothing
    hub.commits.clear()
    second = started(environ)
    assert second["source"] == "MODEL_DIR"
    assert parts_of(environ) == before


def test_the_same_picture_from_every_source(environ: dict[str, str], tmp_path: Path) -> None:
    """The hub, MODEL_PATH, RunPod's cache and a given bundle lead to one and the same model."""
    pictures = {"hub": drawn(environ)}
    bundle = next((Path(environ["MODEL_DIR"]) / layout.BUNDLES).iterdir())
    del environ["HF_ENDPOINT"]
    for kind in ("path", "cache", "bundle"):
        given = {**environ, "MODEL_DIR": str(tmp_path / kind)}
        if kind == "path":
            given["MODEL_PATH"] = str(folder_of("tiny-edit"))
        elif kind == "bundle":
            given["MODEL_PATH"] = str(bundle)
        else:
            cached = tmp_path / "cache" / "models--someone--small-edit"
            shutil.copytree(folder_of("tiny-edit"), cached / "snapshots" / "abc123")
            (cached / "refs").mkdir()
            (cached / "refs" / "main").write_text("abc123")
        pictures[kind] = drawn(given)
    assert len(set(pictures.values())) == 1


def test_a_catalogue_name_finds_its_lora_in_its_own_repository(
    hub: Hub, environ: dict[str, str]
) -> None:
    """Lightning comes from where the catalogue says, and only the counts asked for are fetched."""
    environ |= {"MODEL": "qwen-image-edit-2511", "LIGHTNING_STEPS": "4"}
    (folder,) = boot.prepare(settings.read(environ))
    loras = layout.read_bundle(folder).lightning
    assert {n: (lora.repository, lora.filename) for n, lora in loras.items()} == {
        4: (LORAS, LORA.format(4))
    }
    assert not hub.requests("bytes", f"*{LORA.format(8)}")


def test_another_count_adds_its_lora_and_nothing_else(environ: dict[str, str]) -> None:
    """A bundle without the LoRA that is asked for is completed, not made again."""
    boot.prepare(settings.read({**environ, "LIGHTNING_STEPS": "8"}))
    before = parts_of(environ)
    boot.prepare(settings.read({**environ, "LIGHTNING_STEPS": "8,4"}))
    after = parts_of(environ)
    assert before.items() <= after.items()
    assert [name.partition("-")[0] for name in after.keys() - before.keys()] == ["lightning_4"]


def test_two_precisions_share_what_is_equal(environ: dict[str, str]) -> None:
    """The VAE, the LoRAs and the small files are on the volume once."""
    boot.prepare(settings.read({**environ, "PRECISION_MODE": "bf16"}))
    before = parts_of(environ)
    boot.prepare(settings.read({**environ, "PRECISION_MODE": "4bit"}))
    added = parts_of(environ).keys() - before.keys()
    assert sorted(name.partition("-")[0] for name in added) == ["text_encoder", "transformer"]


def damaged(environ: Mapping[str, str], role: str, *, flip: bool) -> Path:
    """Cut the weights of a part short, or flip one bit in them; return the part's folder."""
    root = Path(environ["MODEL_DIR"]) / layout.COMPONENTS
    part = next(root.glob(f"{role}-*"))
    file = next(part.glob(f"{layout.WEIGHTS}-*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data if flip else data[:-100])
    return part


@pytest.mark.parametrize("flip", [False, True], ids=["cut", "flipped"])
def test_a_damaged_part_is_made_anew_and_never_served(
    environ: dict[str, str], *, flip: bool
) -> None:
    """A cut is seen by its size at every start, a flipped bit under VERIFY=full."""
    picture = drawn(environ)
    part = damaged(environ, "transformer", flip=flip)
    before = parts_of(environ)
    assert drawn({**environ, "VERIFY": "full" if flip else "sizes"}) == picture
    after = parts_of(environ)
    assert {name for name in after if after[name] != before.get(name)} == {part.name}


@pytest.mark.filterwarnings("ignore:Use 'content=")  # huggingface_hub 2.4 with httpx2
def test_a_pushed_bundle_is_a_model(
    hub: Hub, environ: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Prepare here, push, and serve it elsewhere without preparing; the picture is the same."""
    # Xet is separate storage; the loopback hub speaks LFS, as mirrors do
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    hub.tokens[TOKEN] = set()
    picture = drawn({**environ, "PRECISION_MODE": "4bit"})
    bundle = next((Path(environ["MODEL_DIR"]) / layout.BUNDLES).iterdir())
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    capsys.readouterr()
    assert main(["push", str(bundle), "me/small-edit-4bit"]) == 0
    assert capsys.readouterr().out.strip() == hub.branches["me/small-edit-4bit"]["main"]
    elsewhere = {
        **environ,
        "MODEL": "me/small-edit-4bit",
        "MODEL_DIR": str(tmp_path / "elsewhere"),
        "HF_TOKEN": TOKEN,
    }
    assert drawn(elsewhere) == picture
    assert not (tmp_path / "elsewhere" / layout.COMPONENTS).exists()


def test_a_fused_lora_serves_itself_and_nothing_else(environ: dict[str, str]) -> None:
    """LIGHTNING_FUSED bakes the one count in; a separate adapter gives nearly the same."""
    fused = drawn({**environ, "LIGHTNING_FUSED": "true", "LIGHTNING_STEPS": "8"})
    separate = drawn(environ)
    worst = max(abs(a - b) for a, b in zip(fused, separate, strict=True))
    assert 0 < worst < 64  # bf16 weights are rounded again; random weights magnify it


def test_a_gated_model_is_for_the_operator_to_fix(hub: Hub, environ: dict[str, str]) -> None:
    """Trying again cannot help: the message says to accept the licence and set HF_TOKEN."""
    hub.gated.add("someone/small-edit")
    with pytest.raises(WeightsUnavailable, match="HF_TOKEN") as caught:
        boot.boot(settings.read(environ))
    assert not caught.value.retryable


def test_a_hub_that_is_down_is_worth_another_start(environ: dict[str, str]) -> None:
    """The platform may start this worker again."""
    with pytest.raises(HubUnreachable) as caught:
        boot.boot(settings.read({**environ, "HF_ENDPOINT": "http://127.0.0.1:9"}))
    assert caught.value.retryable
