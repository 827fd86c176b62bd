"""What is offered of a model of pictures: what its row says, within settings and memory."""

from dataclasses import fields, replace
from types import SimpleNamespace
from typing import Any

import pytest

from worker import settings
from worker.families.catalogue import CATALOGUE
from worker.families.family import PictureDefaults
from worker.families.pictures import choose_largest, describe, list_areas
from worker.seam import Served
from worker.tasks.picture import offer_of

ROW = CATALOGUE.find_row("qwen-image")
# As no published model is.
OTHER = PictureDefaults(
    steps=7,
    max_references=2,
    sizes={"1:1": (320, 320), "2:1": (640, 320)},
    true_cfg_scale=1.5,
    negative_prompt="dull",
    strength=0.3,
    area=320 * 320,
    takes_loras=False,
    takes_cfg=False,
    guidance=2.5,
    weighs_references=True,
    rank_bytes=11,
)


def described(defaults: PictureDefaults, left: int | None = None, **more: Any) -> Served:
    given = settings.read({"MAX_INPUT_IMAGES": "1", **more.pop("environ", {})})
    return describe(
        replace(ROW, defaults=defaults, **more),
        given,
        revision="a",
        precision="4bit",
        lightning=(8, 4),
        working=lambda pixels: 2 * pixels,
        left=left,
    )


def test_what_is_offered_is_what_the_row_says() -> None:
    served = described(OTHER)
    offer = offer_of(served)
    same = {field.name for field in fields(offer)} & {field.name for field in fields(OTHER)}
    for name in same - {"max_references"}:
        assert getattr(offer, name) == getattr(OTHER, name)
    assert (offer.max_references, offer.lightning_steps) == (1, (8, 4))
    assert offer.no_loras == "qwen-image takes none"
    assert offer_of(described(replace(OTHER, takes_loras=True))).no_loras is None
    assert offer_of(described(OTHER, tasks=("text-to-image",))).strength is None
    assert set(served.offers) == set(ROW.tasks)


def test_the_working_memory_is_that_of_the_largest_picture() -> None:
    for environ, left, largest in (
        ({}, None, 4 * 320 * 320),
        ({}, 2 * 640 * 320, 640 * 320),
        ({"MAX_PIXELS": "4096"}, None, 4096),
    ):
        served = described(OTHER, left, environ=environ)
        assert offer_of(served).max_pixels == largest
        assert served.working == 2 * largest


@pytest.mark.parametrize(
    ("area", "largest", "areas"),
    [
        (101, (10, 20), [101, 200, 227, 404]),
        (100, (30, 30), [100, 225, 400]),
        (100, (5, 10), [100, 225, 400]),
    ],
    ids=["between", "beyond", "below"],
)
def test_areas_are_the_model_s_own_and_those_of_larger_sides(
    area: int, largest: tuple[int, int], areas: list[int]
) -> None:
    """One and a half and twice its side, and the largest of its sizes up to that."""
    assert list_areas(SimpleNamespace(area=area, sizes={"a": (10, 10), "b": largest})) == areas


@pytest.mark.parametrize(
    ("left", "largest"), [(None, 400), (400, 400), (399, 225), (100, 100), (99, 100), (0, 100)]
)
def test_the_largest_area_that_fits_is_served_or_the_smallest(
    left: int | None, largest: int
) -> None:
    assert choose_largest([100, 225, 400], lambda area: area, left) == largest
