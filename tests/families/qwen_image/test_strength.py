"""Pictures that begin from another and keep what a mask leaves: as the stock pipelines do it."""

import functools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    QwenImageEditInpaintPipeline,
    QwenImageEditPipeline,
    QwenImageImg2ImgPipeline,
    QwenImageInpaintPipeline,
)
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_inpaint as edit_inpaint
from PIL import Image, ImageDraw

from worker.bundle.layout import name_adapter
from worker.errors import CudaOutOfMemory
from worker.families.clock import Clock
from worker.families.memory import Phases
from worker.families.qwen_image.lightning import LIGHTNING
from worker.families.qwen_image.model import QwenImage
from worker.families.sharing import Sharing
from worker.media.masks import feather
from worker.media.picture import Picture
from worker.seam import Control, Outcome, Phase, Unheard, take_made
from worker.tasks.picture import PictureWish
from worlds.making import drawn, made
from worlds.prepared import CPU, SPECS, model, published
from worlds.stock import Pair
from worlds.wishes import WISH as TEXT

CFG: Any = {"negative_prompt": " ", "true_cfg_scale": 4.0}
FAST: Any = {"lightning": True}


def picture(seed: int, size: tuple[int, int] = (96, 96)) -> Image.Image:
    """Return a picture that no other seed gives."""
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def box(left: int, top: int, right: int, bottom: int, size: Any = (96, 96)) -> Image.Image:
    """Return a mask that is white in a rectangle, its last row and column outside."""
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).rectangle((left, top, right - 1, bottom - 1), fill=255)
    return mask


FROM = replace(TEXT, task="img2img", source=picture(1), strength=0.5)
INSIDE = replace(FROM, task="inpaint", mask=box(16, 32, 64, 80), strength=1.0)


@pytest.fixture(scope="module")
def exact() -> Pair:
    """The text-to-image checkpoint in fp32, ours and stock."""
    return Pair("tiny-image", zero_cond_t=False)


@pytest.fixture(scope="module")
def editing() -> Pair:
    """The edit checkpoint in fp32 as the pipeline of the first edition, ours and stock."""
    return Pair("tiny-edit", zero_cond_t=False, pipeline=QwenImageEditPipeline)


@pytest.fixture(scope="module")
def image_model() -> QwenImage:
    """The text-to-image model in bf16."""
    return model("tiny-image", published("tiny-image"))


@pytest.fixture(scope="module")
def edit_model() -> QwenImage:
    """The edit model in bf16."""
    return model("tiny-edit", published("tiny-edit"))


@pytest.fixture(autouse=True)
def stock_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the stock edit pipeline the small model's size of pictures; it reads it at call time."""
    area, sizes = SPECS["tiny-edit"].defaults.area, edit_inpaint.calculate_dimensions
    monkeypatch.setattr(
        edit_inpaint, "calculate_dimensions", lambda _area, ratio: sizes(area, ratio)
    )


def encode_means(pipeline: Any, image: torch.Tensor, generator: Any) -> torch.Tensor:
    """Return the latents of a picture as the stock edit pipelines take those of references.

    Those that begin from a picture sample it instead, from the generator that then makes the noise,
    and multiply by a rounded quotient.
    """
    del generator
    config = pipeline.vae.config
    mean, std = (
        torch.tensor(values).view(1, config.z_dim, 1, 1, 1)
        for values in (config.latents_mean, config.latents_std)
    )
    encoded: torch.Tensor = pipeline.vae.encode(image).latent_dist.mode()
    return (encoded - mean) / std


def stock(pair: Pair, kind: Any, wish: PictureWish) -> torch.Tensor:
    """Return the latents of another stock pipeline over the same parts."""
    components = dict(pair.stock.components)
    if wish.lightning:
        components["scheduler"] = FlowMatchEulerDiscreteScheduler.from_config(dict(LIGHTNING))
        pair.stock.enable_lora()
        pair.stock.set_adapters([name_adapter(wish.steps)], [1.0])
    else:
        components["scheduler"] = pair.base
        pair.stock.disable_lora()
    pipeline = kind(**components)
    pipeline._encode_vae_image = functools.partial(encode_means, pipeline)
    pipeline.set_progress_bar_config(disable=True)
    masked = {} if wish.mask is None else {"mask_image": wish.mask}
    latents: torch.Tensor = pipeline(
        image=wish.source,
        prompt=wish.prompt,
        negative_prompt=wish.negative_prompt,
        true_cfg_scale=wish.true_cfg_scale,
        strength=wish.strength,
        width=wish.width,
        height=wish.height,
        num_inference_steps=wish.steps,
        generator=torch.Generator("cpu").manual_seed(wish.seed),
        output_type="latent",
        **masked,
    ).images
    return latents


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"strength": 0.25}, id="one-step"),
        pytest.param({"strength": 0.5, **CFG}, id="cfg"),
        pytest.param({"strength": 0.75, **FAST}, id="lightning-4"),
        pytest.param({"strength": 0.625, **FAST, "steps": 8}, id="lightning-8"),
        pytest.param({"strength": 0.6, "steps": 5, "source": picture(2, (150, 90))}, id="resized"),
    ],
)
def test_img2img_equals_the_stock_pipeline(exact: Pair, changes: Any) -> None:
    """The final latents are those of QwenImageImg2ImgPipeline, bit for bit."""
    wish = replace(FROM, **changes)
    assert torch.equal(exact.our_latents(wish), stock(exact, QwenImageImg2ImgPipeline, wish))


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="all-steps"),
        pytest.param({"strength": 0.5, **CFG}, id="half-cfg"),
        pytest.param({"strength": 0.75, **FAST}, id="lightning-4"),
        pytest.param({"mask": box(0, 0, 96, 96), "strength": 0.5}, id="all-white"),
    ],
)
def test_inpainting_equals_the_stock_pipeline(exact: Pair, changes: Any) -> None:
    """With a mask on whole latents: QwenImageInpaintPipeline's nearest pixels are our largest."""
    wish = replace(INSIDE, **changes)
    assert torch.equal(exact.our_latents(wish), stock(exact, QwenImageInpaintPipeline, wish))


@pytest.mark.parametrize("changes", [{}, {"strength": 0.5, **CFG}, FAST], ids=["all", "cfg", "4"])
def test_inpainting_with_an_edit_model_equals_the_stock_pipeline(
    editing: Pair, changes: Any
) -> None:
    """QwenImageEditInpaintPipeline, whose prompt sees the picture and which is its reference."""
    wish = replace(INSIDE, references=(picture(1),), **changes)
    assert torch.equal(
        editing.our_latents(wish), stock(editing, QwenImageEditInpaintPipeline, wish)
    )


def our_latents(model: QwenImage, wish: PictureWish) -> torch.Tensor:
    return model.make_latents([wish], Sharing([Unheard()], drops=True), Clock(CPU)).float()


@pytest.mark.parametrize("changes", [{}, CFG, FAST], ids=["base", "cfg", "lightning"])
def test_all_of_the_strength_is_text_to_image_to_the_last_bit(
    image_model: QwenImage, changes: Any
) -> None:
    """In bf16, as it is served."""
    text, begun = replace(TEXT, **changes), replace(FROM, strength=1.0, **changes)
    assert torch.equal(our_latents(image_model, begun), our_latents(image_model, text))
    assert drawn(image_model, begun).tobytes() == drawn(image_model, text).tobytes()


@pytest.mark.parametrize("changes", [{"steps": 20}, FAST], ids=["base", "lightning-4"])
def test_the_distance_to_the_source_falls_with_the_strength_and_without_a_cliff(
    image_model: QwenImage, changes: Any
) -> None:
    """Across the steps of the schedule too: 0.74 to 0.76 is no more than its share."""
    source = image_model._vae.encode(picture(1), 96, 96).float()

    def measure(strength: float) -> tuple[float, torch.Tensor]:
        latents = our_latents(image_model, replace(FROM, strength=strength, **changes))
        return float((latents - source).square().mean().sqrt()), latents

    distances = [measure(strength)[0] for strength in (0.02, 0.1, 0.25, 0.5, 0.75, 1.0)]
    assert distances == sorted(distances)
    assert distances[0] < distances[-1] / 5
    for below, above in ((0.74, 0.75), (0.75, 0.76), (0.4999, 0.5), (0.5, 0.5001)):
        (_, first), (_, second) = measure(below), measure(above)
        assert (first - second).square().mean().sqrt() < distances[-1] / 10


@pytest.mark.parametrize(("changes", "start"), [(FAST, 0.75), ({"steps": 4}, 0.425)])
def test_how_much_noise_it_began_with_is_found(
    image_model: QwenImage, changes: Any, start: float
) -> None:
    """Nothing where it begins from noise alone."""
    found = made(image_model, replace(FROM, strength=0.5, **changes)).found
    assert found["start_noise"] == pytest.approx(start)
    assert made(image_model, replace(FROM, strength=1.0)).found["start_noise"] == 1.0
    assert "start_noise" not in made(image_model, TEXT).found


def test_the_noise_that_is_found_has_four_decimals(image_model: QwenImage) -> None:
    """Of 3s / (1 + 2s), two thirds for a strength of 0.4."""
    assert made(image_model, replace(FROM, strength=0.4, **FAST)).found["start_noise"] == 0.6667


class Listener(Control):
    """Records what a picture reports, and stops it at `stop_at`."""

    def __init__(self, stop_at: tuple[Phase, int] | None = None) -> None:
        self.reports: list[tuple[Phase, int, int]] = []
        self._stop_at = stop_at

    def report(self, phase: Phase, step: int, steps: int) -> None:
        """Record, and raise InterruptedError at the step to stop at."""
        self.reports.append((phase, step, steps))
        if (phase, step) == self._stop_at:
            raise InterruptedError


@pytest.mark.parametrize("wish", [FROM, replace(INSIDE, strength=0.5)], ids=["img2img", "inpaint"])
def test_the_steps_that_run_are_reported_and_a_stop_takes_effect_within_one(
    image_model: QwenImage, wish: PictureWish
) -> None:
    expected = drawn(image_model, wish).tobytes()
    listener = Listener()
    made(image_model, wish, listener)
    assert listener.reports == [
        ("text", 1, 1), ("reference", 1, 1), ("denoise", 1, 2), ("denoise", 2, 2)
    ]  # fmt: skip
    for stop_at in (("reference", 1), ("denoise", 1), ("denoise", 2)):
        listener = Listener(stop_at)
        with pytest.raises(InterruptedError):
            made(image_model, wish, listener)
        assert listener.reports[-1][:2] == stop_at
        assert drawn(image_model, wish).tobytes() == expected


@pytest.mark.parametrize(("place", "name"), [("_vae", "encode"), ("_parts", "forward")])
def test_a_phase_that_runs_out_of_memory_runs_again_from_the_source(
    image_model: QwenImage, monkeypatch: pytest.MonkeyPatch, place: str, name: str
) -> None:
    """And twice is an error."""
    expected = drawn(image_model, INSIDE).tobytes()
    real = getattr(getattr(image_model, place), name)
    for fails in (1, 2):
        calls: list[Any] = []

        def run(*given: Any, fails: int = fails, calls: list[Any] = calls, **named: Any) -> Any:
            calls.append(given)
            # in the midst of the steps: a mask was applied already
            if fails >= len(calls) - (name == "forward") > 0:
                raise torch.OutOfMemoryError("full")
            return real(*given, **named)

        monkeypatch.setattr(image_model, "_phases", Phases(image_model._cache.clear))
        image_model._cache.clear()
        monkeypatch.setattr(getattr(image_model, place), name, run)
        if fails == 1:
            assert drawn(image_model, INSIDE).tobytes() == expected
        else:
            with pytest.raises(CudaOutOfMemory):
                made(image_model, INSIDE)


def image_of(outcome: Outcome) -> bytes:
    piece = take_made(outcome).piece
    assert isinstance(piece, Picture)
    return piece.image.tobytes()


@pytest.fixture(scope="module")
def rows() -> list[PictureWish]:
    """Pictures of one key, whose sources, masks and seeds differ."""
    masks = [box(16, 32, 64, 80), box(0, 0, 40, 96), box(48, 48, 96, 96), box(8, 8, 9, 9)]
    return [
        replace(INSIDE, seed=seed, source=picture(seed), mask=mask, strength=0.6)
        for seed, mask in enumerate(masks)
    ]


@pytest.mark.parametrize("masked", [True, False], ids=["inpaint", "img2img"])
def test_every_row_of_a_batch_is_the_picture_alone(
    image_model: QwenImage, rows: list[PictureWish], *, masked: bool
) -> None:
    """Whichever of them ends on the way."""
    wishes = rows if masked else [replace(one, task="img2img", mask=None) for one in rows]
    assert len({image_model.make_key(one) for one in wishes}) == 1
    alone = [drawn(image_model, one).tobytes() for one in wishes]
    assert len(set(alone)) == len(alone)
    outcomes = list(image_model.make(wishes, [Unheard()] * len(wishes)))
    assert [image_of(one) for one in outcomes] == alone
    controls = [Listener(("denoise", 2)), Unheard(), Listener(("denoise", 1)), Unheard()]
    outcomes = list(image_model.make(wishes, controls))
    assert [image_of(outcomes[row]) for row in (1, 3)] == [alone[1], alone[3]]


def test_pictures_that_begin_elsewhere_share_nothing(image_model: QwenImage) -> None:
    wishes = [
        TEXT,
        FROM,
        replace(FROM, strength=0.51),
        replace(FROM, task="inpaint", mask=INSIDE.mask),
        INSIDE,
    ]
    keys = [image_model.make_key(one) for one in wishes]
    assert len(set(keys)) == len(keys)
    other = replace(INSIDE, mask=box(0, 0, 8, 8), source=picture(9))
    assert image_model.make_key(other) == keys[-1]


@pytest.mark.parametrize("edits", [False, True], ids=["image", "edit"])
@pytest.mark.parametrize("size", [(96, 96), (150, 90)])
def test_what_is_delivered_is_the_source_outside_of_the_mask(
    image_model: QwenImage, edit_model: QwenImage, size: tuple[int, int], *, edits: bool
) -> None:
    """At the source's own size every pixel, and inside of it what the model made."""
    source, mask = picture(3, size), box(30, 20, 70, 60, size)
    wish = replace(INSIDE, source=source, mask=feather(mask, 8), width=96, height=96, final=size)
    if edits:
        wish = replace(wish, references=(source,))
    piece = made(edit_model if edits else image_model, wish).piece
    assert isinstance(piece, Picture)
    shown, before, painted = (
        np.asarray(image, dtype=int)
        for image in (piece.show(), source, piece.image.resize(size, Image.Resampling.LANCZOS))
    )
    outside, inside = np.asarray(wish.mask) == 0, np.asarray(mask) == 255
    assert (shown[outside] == before[outside]).all()
    assert (shown[inside] == painted[inside]).all()
    assert outside.sum() == size[0] * size[1] - 56 * 56
    rim = ~outside & ~inside
    low, high = np.minimum(before, painted) - 1, np.maximum(before, painted) + 1
    assert ((shown >= low) & (shown <= high))[rim].all()
    assert np.abs(shown - before)[inside].mean() > 5
    assert not (painted[outside] == before[outside]).all()
    loose = made(edit_model if edits else image_model, replace(wish, preserves=False)).piece
    assert isinstance(loose, Picture)
    assert loose.original is None


def test_the_other_references_of_an_edit_model_count(edit_model: QwenImage) -> None:
    """And so does the source as one: the prompt sees it."""
    wish = replace(INSIDE, references=(picture(1),))
    with_other = replace(wish, references=(picture(1), picture(5)))
    latents = [our_latents(edit_model, one) for one in (wish, with_other, replace(INSIDE))]
    for first, second in ((0, 1), (0, 2)):
        assert not torch.allclose(latents[first], latents[second], atol=1e-2)


def test_a_mask_of_one_pixel_repaints_one_latent(image_model: QwenImage) -> None:
    """All others are the source's in the end, to the last bit."""
    source = image_model._vae.encode(picture(1), 96, 96).float()
    latents = our_latents(image_model, replace(INSIDE, mask=box(8, 8, 9, 9)))
    changed = (latents != source).any(dim=2).nonzero()[:, 1].tolist()
    assert changed == [0]
    assert int((latents != source).sum()) == 16
