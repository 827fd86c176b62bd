"""What is asked of a picture that begins from another: which fields, which part, which size."""

import asyncio
import base64
import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageChops

from worker import settings
from worker.errors import ImageUnreadable, InvalidInput, UnsupportedTask, WorkerError
from worker.seam import Served
from worker.tasks.picture import PictureWish
from worker.tasks.request import Request, parse
from worker.tasks.task import Settled
from worlds.published import EDIT, IMAGE


def levels(mask: Image.Image, *columns: int) -> list[int]:
    """Return the levels of a mask in these columns of its row 200."""
    return [int(level) for level in np.asarray(mask)[200, list(columns)]]


def text_of(image: Image.Image, form: str = "PNG") -> str:
    """Return a picture as base64."""
    data = io.BytesIO()
    image.save(data, form)
    return base64.b64encode(data.getvalue()).decode()


def noisy(size: tuple[int, int], seed: int = 1) -> Image.Image:
    """Return a picture whose every pixel differs."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def half(size: tuple[int, int]) -> Image.Image:
    """Return a mask whose left half is white."""
    mask = Image.new("L", size)
    mask.paste(255, (0, 0, size[0] // 2, size[1]))
    return mask


SOURCE = noisy((640, 480))
PICTURE, MASK = text_of(SOURCE), text_of(half((640, 480)))
INPAINT: dict[str, Any] = {"prompt": "a hat", "image": PICTURE, "mask": MASK}
OUTPAINT: dict[str, Any] = {"prompt": "a hat", "image": PICTURE, "outpaint": {"left": 64}}
IMG2IMG: dict[str, Any] = {"prompt": "a hat", "image": PICTURE, "strength": 0.5}


def ask(given: Any, *models: Served, **environ: str) -> Request:
    """Return what a job requests of the text-to-image model, unless others are named."""
    request = parse(given, models or (IMAGE,), settings.read(environ))
    assert isinstance(request, Request)
    return request


def settle(given: Any, *models: Served, warned: list[str] | None = None) -> Settled:
    """Return its wish, settled with what its sources hold."""
    request = ask(given, *models)
    fetched = [base64.b64decode(source.value) for source in request.asked.sources]
    warnings: list[str] = [] if warned is None else warned

    async def run() -> Settled:
        given = settings.read({})
        return await request.task.settle(request.asked, fetched, given, warnings.append)

    return asyncio.run(run())


def wish_of(given: Any, *models: Served, warned: list[str] | None = None) -> PictureWish:
    wish = settle(given, *models, warned=warned).wish
    assert isinstance(wish, PictureWish)
    return wish


def refused(given: Any, *models: Served) -> list[str]:
    """Return the faults of an input."""
    with pytest.raises(InvalidInput) as caught:
        settle(given, *models)
    return [f"{detail.field}: {detail.message}" for detail in caught.value.details]


# Which task is meant.


@pytest.mark.parametrize(
    ("given", "task"),
    [
        (IMG2IMG, "img2img"),
        (INPAINT, "inpaint"),
        ({**INPAINT, "strength": 0.5}, "inpaint"),
        (OUTPAINT, "outpaint"),
        ({**OUTPAINT, "strength": 0.5}, "outpaint"),
        ({"prompt": "a hat"}, "text-to-image"),
        ({"prompt": "a hat", "task": "txt2img"}, "text-to-image"),
        ({"prompt": "a hat", "image": PICTURE, "task": "IMG2IMG"}, "img2img"),
        ({"prompt": "a hat", "strength": None, "mask": None}, "text-to-image"),
    ],
)
def test_a_field_asks_for_its_task(given: Any, task: str) -> None:
    request = ask(given)
    assert (request.task.name, request.asked.draft.task) == (task, task)


def test_a_task_has_another_word() -> None:
    given = {"prompt": "a hat", "images": [PICTURE, PICTURE], "task": "multi_reference"}
    assert ask(given, EDIT).task.name == "edit"


@pytest.mark.parametrize("word", ["strength", "prompt_strength", "denoise", "denoising_strength"])
def test_strength_has_the_names_of_other_apis(word: str) -> None:
    assert wish_of({"prompt": "a hat", "image": PICTURE, word: "0.5"}).strength == 0.5


def test_image_strength_is_no_name_of_it() -> None:
    """Where it is one, 1 keeps all of the picture."""
    request = parse({**IMG2IMG, "image_strength": 0.3}, (IMAGE,), settings.read({}))
    assert isinstance(request, Request)
    assert request.warnings == ("image_strength: is not a known field",)


@pytest.mark.parametrize("word", ["mask", "mask_image", "mask_url", "mask_base64"])
def test_a_mask_has_the_names_of_other_apis(word: str) -> None:
    assert wish_of({"prompt": "a hat", "image": PICTURE, word: {"image": MASK}}).mask is not None


def test_the_strength_of_a_model_is_its_own_and_repainting_has_all_of_it() -> None:
    given = {"prompt": "a hat", "image": PICTURE, "task": "img2img"}
    assert wish_of(given).strength == 0.6
    assert wish_of(INPAINT).strength == 1.0
    assert wish_of(OUTPAINT).strength == 1.0
    assert wish_of({**INPAINT, "strength": 0.3}).strength == 0.3


# What is wrong.


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"strength": 0.009}, "strength: must be at least 0.01 (got 0.009)"),
        ({"strength": 0}, "strength: must be at least 0.01 (got 0)"),
        ({"denoise": 1.01}, "denoise: must be at most 1 (got 1.01)"),
        ({"strength": float("nan")}, "strength: must be at least 0.01 (got nan)"),
        ({"strength": True}, "strength: must be a number (got true)"),
        ({"strength": "much"}, "strength: must be a number (got 'much')"),
        ({"image": None}, "images: is required for img2img"),
        ({"image": None, "images": [PICTURE] * 2}, "images: must be one for img2img (got 2)"),
        ({"strength": 0.5, "denoise": 0.6}, "denoise: differs from strength, which means the same"),
        ({"invert_mask": True}, "invert_mask: is for inpaint, not img2img"),
        ({"mask_blur": 3}, "mask_blur: is for inpaint and outpaint, not img2img"),
        ({"preserve_unmasked": False},
         "preserve_unmasked: is for inpaint and outpaint, not img2img"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_strength_is_said(changes: Any, fault: str) -> None:
    given = {name: value for name, value in {**IMG2IMG, **changes}.items() if value is not None}
    assert refused(given) == [fault]


def test_an_edit_has_no_strength() -> None:
    given = {**IMG2IMG, "task": "edit"}
    fault = "strength: is for img2img, inpaint and outpaint, not edit"
    assert refused(given, EDIT) == [fault]
    assert refused({"prompt": "a hat", "strength": 0.5, "task": "text-to-image"}) == [
        fault.replace("edit", "text-to-image")
    ]
    with pytest.raises(UnsupportedTask, match="no model of this worker can do img2img"):
        ask(IMG2IMG, EDIT)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"image": None}, "images: is required for inpaint"),
        ({"mask": None, "task": "inpaint"}, "mask: is required for inpaint"),
        ({"mask": 3}, ('mask: must be an https URL, a data URI, base64, or {"image"|"url"|"data"|'
         '"base64": ...}')),
        ({"mask": "/etc/passwd"},
         "mask: a file path is never read; send an https URL, a data URI or base64"),
        ({"invert_mask": 2}, "invert_mask: must be true or false (got 2)"),
        ({"mask_blur": 65}, "mask_blur: must be at most 64 (got 65)"),
        ({"mask_blur": -1}, "mask_blur: must be at least 0 (got -1)"),
        ({"preserve_unmasked": 1}, "preserve_unmasked: must be true or false (got 1)"),
        ({"task": "outpaint", "outpaint": {"top": 16}}, "mask: is for inpaint, not outpaint"),
        ({"task": "outpaint", "mask": None}, "outpaint: is required for outpaint"),
        ({"mask": text_of(Image.new("L", (640, 480)))},
         ("mask: leaves nothing to repaint: white is repainted, and it is black everywhere;"
         " invert_mask exchanges the two")),
        ({"mask": None, "mask_url": text_of(Image.new("L", (640, 480), 255)), "invert_mask": True},
         ("mask_url: leaves nothing to repaint: white is repainted, and it is black everywhere"
         " once inverted")),
        ({"mask": text_of(half((480, 640)))},
         "mask: is of another shape than the picture: it has 480x640 pixels, the picture 640x480"),
        ({"images": [PICTURE, PICTURE], "image": None},
         "images: must be at most 1 for qwen-image-2512 (got 2)"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_mask_is_said(changes: Any, fault: str) -> None:
    given = {name: value for name, value in {**INPAINT, **changes}.items() if value is not None}
    assert refused(given) == [fault]


def test_a_mask_that_is_no_picture_is_named() -> None:
    given = {**INPAINT, "mask": None, "mask_base64": base64.b64encode(b"no picture" * 9).decode()}
    with pytest.raises(ImageUnreadable) as caught:
        settle(given)
    assert [detail.field for detail in caught.value.details] == ["mask_base64"]
    assert caught.value.message.startswith("mask_base64: ")


@pytest.mark.parametrize(
    ("margins", "fault"),
    [
        ({}, "must add a pixel on one side at least"),
        ({"left": 0}, "must add a pixel on one side at least"),
        ({"left": -1}, "must have whole numbers from 0 to 4096 (got left -1)"),
        ({"top": 4097}, "must have whole numbers from 0 to 4096 (got top 4097)"),
        ({"right": 1.5}, "must have whole numbers from 0 to 4096 (got right 1.5)"),
        ({"bottom": True}, "must have whole numbers from 0 to 4096 (got bottom true)"),
        ({"lefft": 3}, "has no 'lefft': its keys are left, top, right, bottom; did you mean left?"),
        ({3: 3}, "has no 3: its keys are left, top, right, bottom"),
        ([1, 2, 3, 4], "must be an object with left, top, right or bottom (got a list)"),
        ({"left": 4096, "right": 4096, "top": 4096},
         ("makes a picture of 8832x4576: it may have at most 16777216 pixels, and no side 32 times"
         " the other")),
    ],
)  # fmt: skip
def test_what_is_wrong_with_margins_is_said(margins: Any, fault: str) -> None:
    assert refused({**OUTPAINT, "outpaint": margins}) == [f"outpaint: {fault}"]


def test_margins_may_make_a_picture_as_large_as_can_be_delivered() -> None:
    full = {**OUTPAINT, "outpaint": {"left": 3456, "top": 3616}, "size": "512x512"}
    source = wish_of(full).source
    assert source is not None
    assert source.size == (4096, 4096)
    assert "may have at most" in refused({**full, "outpaint": {"left": 3457, "top": 3616}})[0]


def test_margins_that_make_a_strip_are_refused() -> None:
    narrow = text_of(noisy((320, 16)))
    for width, fits in ((192, True), (193, False)):
        given = {"prompt": "a hat", "image": narrow, "outpaint": {"left": width, "right": "0"}}
        if fits:
            assert wish_of(given).final == (512, 16)
        else:
            assert "no side 32 times the other" in refused(given)[0]


# What is made of it.


def test_a_picture_that_is_begun_from_is_no_reference_of_a_model_that_sees_none() -> None:
    for given in (IMG2IMG, INPAINT):
        wish = wish_of(given)
        assert wish.references == ()
        assert wish.source is not None
        assert wish.source.tobytes() == SOURCE.tobytes()
    assert wish_of(IMG2IMG).mask is None


def test_a_variation_is_of_noise_and_the_prompt_alone_where_a_model_edits_too() -> None:
    """As a reference the picture would stay whatever the strength."""
    both = replace(IMAGE, offers={**EDIT.offers, **IMAGE.offers})
    assert wish_of(IMG2IMG, both).references == ()
    assert len(wish_of(INPAINT, both).references) == 1


def test_an_edit_model_sees_the_picture_that_it_repaints_and_the_others() -> None:
    other = noisy((64, 64), 2)
    given = {**INPAINT, "image": None, "images": [PICTURE, text_of(other)]}
    wish = wish_of({k: v for k, v in given.items() if v is not None}, EDIT)
    assert [one.tobytes() for one in wish.references] == [SOURCE.tobytes(), other.tobytes()]
    assert wish.source is wish.references[0]
    assert (wish.width, wish.height) == (640, 480)
    wide = {**given, "images": [PICTURE, text_of(noisy((256, 64)))], "size": "auto"}
    wish = wish_of({k: v for k, v in wide.items() if v is not None}, EDIT)
    assert (wish.width, wish.height) == (1184, 896)  # the aspect of what is repainted


def test_a_mask_fades_around_its_white_and_may_be_inverted() -> None:
    plain = wish_of({**INPAINT, "mask_blur": 0}).mask
    assert plain is not None
    assert plain.tobytes() == half((640, 480)).tobytes()
    for flag in (True, 1):
        inverted = wish_of({**INPAINT, "mask_blur": 0, "inpainting_mask_invert": flag}).mask
        assert inverted is not None
        assert inverted.tobytes() == ImageChops.invert(plain).tobytes()
    faded = wish_of(INPAINT).mask
    assert faded is not None
    values = levels(faded, 319, 320, 327, 328)
    assert values[0] == 255
    assert 255 > values[1] > values[2] > values[3] == 0


def test_a_mask_of_another_resolution_is_resized_and_that_is_said() -> None:
    (fault,) = refused({**INPAINT, "mask": text_of(half((660, 480)))})
    assert "it has 660x480 pixels" in fault
    warned: list[str] = []
    given = {**INPAINT, "mask": text_of(half((320, 240))), "mask_blur": 0}
    mask = wish_of(given, warned=warned).mask
    assert mask is not None
    assert mask.tobytes() == half((640, 480)).tobytes()
    assert warned == ["mask: has 320x240 pixels, the picture 640x480; resized to it"]
    assert wish_of({**INPAINT, "mask": text_of(half((659, 480)))}).mask is not None  # 3 % wider


def test_all_white_repaints_everything() -> None:
    mask = wish_of({**INPAINT, "mask": text_of(Image.new("L", (640, 480), 255))}).mask
    assert mask is not None
    assert mask.getextrema() == (255, 255)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK"])
def test_a_source_may_have_any_mode(mode: str) -> None:
    source = text_of(
        SOURCE.convert(mode), "TIFF" if mode == "x" else "JPEG" if mode == "CMYK" else "PNG"
    )
    wish = wish_of({**INPAINT, "image": source})
    assert wish.source is not None
    assert (wish.source.mode, wish.source.size) == ("RGB", (640, 480))


def test_margins_continue_the_picture_and_leave_every_pixel_of_it() -> None:
    margins = {"left": 64, "top": "16", "bottom": 32}
    wish = wish_of({**OUTPAINT, "outpaint": margins})
    assert wish.source is not None
    assert wish.mask is not None
    assert wish.source.size == wish.mask.size == (704, 528)
    assert wish.source.crop((64, 16, 704, 496)).tobytes() == SOURCE.tobytes()
    assert wish.mask.crop((64, 16, 704, 496)).getextrema() == (0, 0)
    assert wish.source.getpixel((0, 0)) == SOURCE.getpixel((0, 0))
    assert wish.source.getpixel((700, 527)) == SOURCE.getpixel((636, 479))
    # it fades towards the picture, which it does not reach
    values = levels(wish.mask, 63, 57, 56, 55, 0)
    assert 0 < values[0] < values[1] < 255
    assert values[2:] == [values[2], 255, 255]
    sharp = wish_of({**OUTPAINT, "mask_blur": 0}).mask
    assert sharp is not None
    assert levels(sharp, 63, 64) == [255, 0]


@pytest.mark.parametrize(
    ("given", "changes", "size", "final"),
    [
        (INPAINT, {}, (640, 480), None),
        (OUTPAINT, {}, (704, 480), None),
        (OUTPAINT, {"outpaint": {"left": 5}}, (640, 480), (645, 480)),
        (INPAINT, {"size": "auto"}, (1184, 896), None),
        (INPAINT, {"width": 320, "height": 240}, (320, 240), None),
        (INPAINT, {"aspect_ratio": "match_input_image"}, (1184, 896), None),
        (IMG2IMG, {}, (1184, 896), None),
        (IMG2IMG, {"size": "input"}, (640, 480), None),
        (IMG2IMG, {"aspect_ratio": "1:1"}, (1328, 1328), None),
    ],
)
def test_what_is_repainted_keeps_its_size_unless_another_is_asked_for(
    given: Any, changes: Any, size: tuple[int, int], final: tuple[int, int] | None
) -> None:
    wish = wish_of({**given, **changes})
    assert ((wish.width, wish.height), wish.final) == (size, final)


def test_a_picture_too_large_to_deliver_is_refused_with_its_size() -> None:
    big = text_of(Image.new("RGB", (4100, 4100), "red"))
    with pytest.raises(WorkerError) as caught:
        settle({**INPAINT, "image": big, "mask": text_of(half((410, 410)))})
    assert [detail.field for detail in caught.value.details] == ["size"]


def test_all_that_is_known_of_the_pictures_is_said() -> None:
    data = io.BytesIO()
    SOURCE.save(data, "JPEG")
    cut = base64.b64encode(data.getvalue()[:-2]).decode()
    warned: list[str] = []
    wish_of({"prompt": "a hat", "images": [cut, cut]}, EDIT, warned=warned)
    assert [text.partition(":")[0] for text in warned] == ["images[0]", "images[1]"]


def test_all_that_a_size_cannot_be_is_said() -> None:
    """A picture of 17 million pixels is made at the model's area and delivered a bit smaller."""
    given = {**IMG2IMG, "size": "input", "image": text_of(Image.new("1", (4352, 4096)))}
    request = ask(given)
    fetched = [base64.b64decode(source.value) for source in request.asked.sources]
    warned: list[str] = []

    async def run() -> Settled:
        shrinking = settings.read({"SHRINK": "1"})
        return await request.task.settle(request.asked, fetched, shrinking, warned.append)

    assert asyncio.run(run()).wish.final == (4222, 3973)
    assert ["resampled" in text for text in warned] == [True, False]
    assert warned[1].startswith("size: the input's 4352x4096 is over 16777216 pixels")


def test_preserving_may_be_turned_off() -> None:
    assert wish_of(INPAINT).preserves
    assert not wish_of({**INPAINT, "preserve_unmasked": False}).preserves
