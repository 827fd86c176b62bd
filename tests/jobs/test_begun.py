"""Jobs that begin from a picture, from their input to the reply, with the embedded models."""

import asyncio
import base64
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from worker import boot, settings
from worker.jobs.serve import Worker
from worker.settings import Settings
from worlds.standin import answered


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    home = tmp_path_factory.mktemp("home")
    return settings.read({"MODEL": "tiny", "MODEL_DIR": str(home), "SHRINK": "true"})


@pytest.fixture(scope="module")
def models(chosen: Settings) -> Iterator[Any]:
    opened: Any = boot.boot(chosen)
    yield opened
    for name in ("tiny-image", "tiny-edit"):
        opened.take(name).release()


def picture(size: tuple[int, int]) -> Image.Image:
    pixels = np.random.default_rng(5).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def text_of(image: Image.Image) -> str:
    data = io.BytesIO()
    image.save(data, "PNG")
    return base64.b64encode(data.getvalue()).decode()


SOURCE = picture((100, 90))
JOB: dict[str, Any] = {"prompt": "a red circle", "seed": 3, "image": text_of(SOURCE)}
HOLE = Image.new("L", SOURCE.size)
HOLE.paste(255, (40, 30, 70, 60))


def serve(models: Any, chosen: Settings, **fields: Any) -> tuple[dict[str, Any], Image.Image]:
    """Return the reply to a job, and its first picture."""
    worker = Worker(chosen, models)
    reply = asyncio.run(answered(worker, {"id": "1", "input": {**JOB, **fields}}))
    assert "error" not in reply, reply
    data = base64.b64decode(reply["images"][0]["base64"])
    return reply, Image.open(io.BytesIO(data))


def test_a_variation_reports_its_strength_and_how_much_noise_that_was(
    models: Any, chosen: Settings
) -> None:
    """In the reply and in the file; a picture from text has neither."""
    reply, shown = serve(models, chosen, denoise=0.25, steps=4)
    assert (reply["task"], reply["model"]["id"]) == ("img2img", "tiny-image")
    assert (reply["strength"], reply["start_noise"]) == (0.25, 0.5)
    assert reply["num_inference_steps"] == 4
    assert (shown.info["strength"], shown.info["start_noise"]) == ("0.25", "0.5")
    reply, shown = serve(models, chosen, image=None)
    assert not {"strength", "start_noise"} & (set(reply) | set(shown.info))


@pytest.mark.parametrize("model", ["tiny-image", "tiny-edit"])
def test_every_pixel_outside_of_a_mask_is_the_sources(
    models: Any, chosen: Settings, model: str
) -> None:
    """In what is delivered, at the picture's own size, which no model makes."""
    reply, shown = serve(models, chosen, mask=text_of(HOLE), mask_blur=4, model=model)
    assert (reply["task"], reply["model"]["id"], shown.size) == ("inpaint", model, SOURCE.size)
    before, after = np.asarray(SOURCE, int), np.asarray(shown.convert("RGB"), int)
    kept = np.ones((90, 100), bool)
    kept[26:64, 36:74] = False
    assert (after[kept] == before[kept]).all()
    assert (after[30:60, 40:70] != before[30:60, 40:70]).mean() > 0.9
    loose, again = serve(models, chosen, mask=text_of(HOLE), model=model, preserve_unmasked=False)
    assert loose["strength"] == 1.0
    assert (np.asarray(again.convert("RGB"), int)[kept] != before[kept]).mean() > 0.5


@pytest.mark.parametrize("model", ["tiny-image", "tiny-edit"])
def test_margins_are_added_and_every_pixel_of_the_picture_stays(
    models: Any, chosen: Settings, model: str
) -> None:
    margins = {"left": 20, "bottom": 7}
    reply, shown = serve(models, chosen, outpaint=margins, model=model)
    assert (reply["task"], shown.size) == ("outpaint", (120, 97))
    assert shown.convert("RGB").crop((20, 0, 120, 90)).tobytes() == SOURCE.tobytes()
    far = np.asarray(shown.convert("RGB"), int)[:80, :10]
    edge = np.asarray(SOURCE, int)[:80, :1].repeat(10, axis=1)
    assert np.abs(far - edge).mean() > 5


def test_a_preset_and_a_reduced_size_are_in_what_was_adjusted(
    models: Any, chosen: Settings
) -> None:
    limit = models.served[0].offers["text-to-image"].max_pixels
    reply, shown = serve(models, chosen, image=None, preset="fast", width=4096, height=2048)
    assert reply["adjusted"]["preset"] == [
        "fast",
        {"num_inference_steps": 4, "true_cfg_scale": 1.0, "lightning": True},
    ]
    assert shown.width * shown.height <= limit
    assert reply["adjusted"]["width"] == [4096, shown.width]
    assert reply["adjusted"]["height"] == [2048, shown.height]
