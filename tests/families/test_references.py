"""A picture of a wish is digested and resized once, and is known by its object."""

from dataclasses import dataclass
from typing import Any

import pytest
from PIL import Image

from worker.families.ahead import Ahead, gather_pictures
from worker.families.references import ReferencePictures
from worlds.wishes import drawing

SIZE = (32, 16)


def test_a_picture_is_resized_once_to_each_size() -> None:
    pictures, image = ReferencePictures(), drawing(64, 48, 1)
    resized = pictures.resize(image, SIZE)
    assert resized.tobytes() == image.resize(SIZE, Image.Resampling.LANCZOS).tobytes()
    assert pictures.resize(image, SIZE) is resized
    assert pictures.resize(image, (16, 32)).size == (16, 32)


def test_what_was_resized_is_found_and_any_other_is_as_it_is() -> None:
    pictures, image, other = ReferencePictures(), drawing(64, 48, 1), drawing(64, 48, 1)
    resized = pictures.resize(image, SIZE)
    assert pictures.find(image, SIZE) is resized
    assert pictures.find(image, (16, 32)) is image
    assert pictures.find(other, SIZE) is other


@pytest.mark.parametrize(
    "other",
    [drawing(64, 48, 2), Image.frombytes("RGB", (48, 64), drawing(64, 48, 1).tobytes())],
)
def test_a_digest_is_of_the_pixels_and_where_they_are(other: Image.Image) -> None:
    pictures = ReferencePictures()
    digest = pictures.digest(drawing(64, 48, 1))
    assert pictures.digest(drawing(64, 48, 1)) == digest
    assert pictures.digest(other) != digest


@dataclass
class Waiting:
    """A wish, as far as what was done ahead is looked for."""

    ahead: Any


def test_what_was_done_for_each_wish_is_known_for_all() -> None:
    images = [drawing(64, 48, seed) for seed in (1, 2)]
    each = [ReferencePictures() for _ in images]
    resized = [one.resize(image, SIZE) for one, image in zip(each, images, strict=True)]
    waiting = [*(Waiting(Ahead(one, ())) for one in each), Waiting(None)]
    found = gather_pictures(waiting)
    assert [found.find(image, SIZE) for image in images] == resized
