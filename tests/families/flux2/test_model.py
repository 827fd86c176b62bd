"""A FLUX.2 is served as any model: opened by boot, warmed, asked for pictures, released."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from worker import boot, settings
from worker.errors import WeightsUnavailable
from worker.families.catalogue import CATALOGUE
from worker.families.flux2.check import check
from worker.families.flux2.compiling import compile_rest
from worker.media.picture import Picture
from worker.seam import Unheard, take_made
from worker.tasks.picture import PictureWish
from worker.weights.snapshot import LocalSnapshot
from worlds.altered import alter
from worlds.small_flux import Kind
from worlds.stock_flux import references
from worlds.wishes import WISH, drawing

THREE = replace(WISH, task="edit", references=references(3), reference_weights=(2.0, 0.5, 0.0))


@pytest.fixture(scope="module")
def models(
    publish: Callable[[Kind], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """A klein and its base, opened as a worker opens them."""
    words = ",".join(str(publish(kind)) for kind in ("klein", "base"))
    home = tmp_path_factory.mktemp("home")
    opened: Any = boot.boot(settings.read({"MODEL": words, "MODEL_DIR": str(home)}))
    yield opened
    for model in ("klein", "base"):
        opened.take(model).release()


def drawn(model: Any, wish: PictureWish) -> bytes:
    (outcome,) = model.make([wish], [Unheard()])
    made = take_made(outcome)
    assert isinstance(made.piece, Picture)
    return made.piece.image.tobytes()


def test_it_offers_every_task_of_pictures_as_its_files_say(models: Any) -> None:
    klein, base = models.served
    assert klein.tasks == ("text-to-image", "edit", "img2img", "inpaint", "outpaint")
    offers = [model.offers["edit"] for model in (klein, base)]
    assert [(offer.steps, offer.takes_cfg, offer.area) for offer in offers] == [
        (4, False, 96 * 96),
        (50, True, 96 * 96),
    ]
    assert klein.working > 0


def test_no_picture_depends_on_the_one_before(models: Any) -> None:
    """Text, references, a beginning, in either order, on one warm model."""
    model = models.take("klein")
    begun = replace(WISH, task="img2img", source=drawing(96, 96, 3), strength=0.5)
    wishes = [WISH, THREE, begun, replace(WISH, width=128, height=64)]
    first = [drawn(model, wish) for wish in wishes]
    assert len(set(first)) == len(wishes)
    assert [drawn(model, wish) for wish in reversed(wishes)] == first[::-1]
    ahead = [model.read_ahead(wish) for wish in wishes]
    model._cache.clear()
    assert [drawn(model, wish) for wish in ahead] == first


@pytest.mark.parametrize(
    "given",
    [
        replace(THREE, reference_weights=()),
        replace(WISH, task="img2img", source=drawing(64, 64, 5), strength=0.5),
    ],
    ids=["references", "source"],
)
def test_what_is_read_ahead_is_all_that_a_turn_resizes(
    models: Any, monkeypatch: pytest.MonkeyPatch, given: PictureWish
) -> None:
    model = models.take("klein")
    wish = model.read_ahead(given)
    model._cache.clear()
    calls = []
    stock = Image.Image.resize

    def resize(image: Image.Image, *sizes: Any, **more: Any) -> Image.Image:
        if sizes[0] != image.size:
            calls.append(sizes)
        return stock(image, *sizes, **more)

    monkeypatch.setattr(Image.Image, "resize", resize)
    drawn(model, wish)
    assert calls == []


def test_a_reference_of_another_shape_is_cropped_not_squeezed(models: Any) -> None:
    """A long one keeps its proportions; one of the output's shape gets the output's size."""
    model = models.take("klein")
    sizes = {
        framing
        for _, framing in model.make_key(
            replace(
                WISH,
                task="edit",
                references=(drawing(192, 192, 1), drawing(300, 100, 2), drawing(8, 4, 3)),
            )
        ).references
    }
    assert sizes == {(96, 96), (160, 48), (16, 16)}


@pytest.mark.parametrize("compiled_batch", [0, 1, 4])
def test_what_jobs_will_need_is_compiled_before_the_first(
    models: Any, monkeypatch: pytest.MonkeyPatch, compiled_batch: int
) -> None:
    """One row and several, with weights of references and without; nothing where it runs plain."""
    model, runs = models.take("klein"), list[tuple[int, bool]]()
    shown: list[Any] = []
    stock = model._parts.forward

    def counted(latents: Any, *given: Any, **more: Any) -> Any:
        runs.append((len(latents), more["shares"] is not None))
        assert more["guidance"] is None  # which a klein does not take
        shown.append(latents)
        return stock(latents, *given, **more)

    monkeypatch.setattr(model._parts, "forward", counted)
    monkeypatch.setattr(model._parts, "compiled_batch", compiled_batch)
    compile_rest(model._parts)
    rows = (1, 3)[:compiled_batch]
    assert runs == [(count, is_weighed) for count in rows for is_weighed in (False, True)]
    compile_rest(model._parts)
    # a graph that is wrong is wrong at every start
    assert all(map(torch.equal, shown, shown[len(runs) // 2 :]))


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("transformer/config.json", {"guidance_embeds": True}, "guidance"),
        ("transformer/config.json", {"axes_dims_rope": [8, 8, 8]}, "axes_dims_rope of 24"),
        ("text_encoder/config.json", {"model_type": "qwen2"}, "of the type qwen2"),
        ("text_encoder/config.json", {"architectures": ["Qwen2ForCausalLM"]}, "Qwen2ForCausalLM"),
        ("scheduler/scheduler_config.json", {"invert_sigmas": True}, "invert_sigmas"),
        ("scheduler/scheduler_config.json", {"_class_name": "Euler"}, "of a Euler"),
        ("scheduler/scheduler_config.json", {"sways": True}, "config.json: sways is set"),
        ("transformer/config.json", {"sways": True}, "transformer/config.json: sways is set"),
        ("vae/config.json", {"sways": True}, "vae/config.json: sways is set"),
        ("vae/config.json", {"_class_name": "AutoencoderKL"}, "vae/config.json is of a Auto"),
        (
            "transformer/config.json",
            {"quantization_config": {"quant_method": "gguf"}},
            "GGUF, says",
        ),
        ("vae/config.json", {"latent_channels": 4}, "vae"),
        ("model_index.json", {"transformer": ["diffusers", "Other"]}, "Other"),
    ],
)
def test_what_cannot_be_served_is_refused_before_it_is_prepared(
    publish: Callable[[Kind], Path], tmp_path: Path, file: str, change: Any, message: str
) -> None:
    """By small files and headers, naming what is wrong."""
    folder = Path(shutil.copytree(publish("klein"), tmp_path / "model"))
    known = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(known | change))
    with pytest.raises(WeightsUnavailable, match=message):
        check(LocalSnapshot(folder, "x/y"), CATALOGUE.describe_folder(folder))


@pytest.mark.parametrize("role", ["transformer", "text_encoder", "vae"])
@pytest.mark.parametrize(
    ("name", "message"),
    [("x.weight.absmax", r"{role}/.*bitsandbytes 4-bit"), ("x.weight", r"x\.weight of {role}/")],
    ids=["quantised", "unknown"],
)
def test_a_tensor_that_a_component_has_no_place_for_is_refused(
    publish: Callable[[Kind], Path], tmp_path: Path, role: str, name: str, message: str
) -> None:
    """By its headers; one that a quantiser writes is told as that."""
    folder = Path(shutil.copytree(publish("klein"), tmp_path / "model"))
    (weights,) = (folder / role).glob("*.safetensors")
    alter(weights, lambda tensors: tensors.update({name: ("F32", [1], bytes(4))}))
    with pytest.raises(WeightsUnavailable, match=message.format(role=role)):
        check(LocalSnapshot(folder, "x/y"), CATALOGUE.describe_folder(folder))


def test_another_tokenizer_is_refused(publish: Callable[[Kind], Path], tmp_path: Path) -> None:
    """One without a chat template, and one with another."""
    folder = Path(shutil.copytree(publish("klein"), tmp_path / "model"))
    template = folder / "tokenizer" / "chat_template.jinja"
    template.write_text(template.read_text().replace("<think>", "<thought>"))
    with pytest.raises(WeightsUnavailable, match="another chat template"):
        check(LocalSnapshot(folder, "x/y"), CATALOGUE.describe_folder(folder))
    template.unlink()
    with pytest.raises(WeightsUnavailable, match="no chat template"):
        check(LocalSnapshot(folder, "x/y"), CATALOGUE.describe_folder(folder))
    (folder / "tokenizer" / "tokenizer.json").write_text("[]")
    with pytest.raises(WeightsUnavailable, match=r"tokenizer/ cannot.* not those of a FLUX\.2$"):
        check(LocalSnapshot(folder, "x/y"), CATALOGUE.describe_folder(folder))
