"""MODEL=tiny-flux is served, and weights of references are seen in what it makes."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from worker import boot, settings
from worker.media.picture import Picture
from worker.seam import Unheard, take_made
from worlds.wishes import WISH


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The embedded model, opened as a worker opens it."""
    home = str(tmp_path_factory.mktemp("home"))
    opened: Any = boot.boot(settings.read({"MODEL": "tiny-flux", "MODEL_DIR": home}))
    yield opened.take("tiny-flux")
    opened.take("tiny-flux").release()


def pixels(model: Any, **changes: Any) -> Any:
    (outcome,) = model.make([replace(WISH, **changes)], [Unheard()])
    made = take_made(outcome)
    assert isinstance(made.piece, Picture)
    return np.asarray(made.piece.image, dtype=np.float32)


def circle(colour: str) -> Image.Image:
    """Draw a large circle of a colour on white."""
    image = Image.new("RGB", (96, 96), "white")
    ImageDraw.Draw(image).ellipse((20, 20, 76, 76), fill=colour)
    return image


def test_it_draws_what_the_text_says(model: Any) -> None:
    """Red on blue, in four steps; blue on red otherwise."""
    for figure, ground, first in (("red", "blue", 0), ("blue", "red", 2)):
        text = f"a large {figure} circle on a {ground} background"
        shown = pixels(model, prompt=text)
        middle, corner = shown[40:56, 40:56].mean((0, 1)), shown[2:10, 2:10].mean((0, 1))
        assert middle[first] > middle[2 - first] + 60
        assert corner[2 - first] > corner[first] + 60


def test_the_heavier_of_two_references_is_seen_and_back(model: Any) -> None:
    """Red and blue with 2 and 0.5, and with 0.5 and 2: by redness minus blueness."""
    given = {
        "task": "edit",
        "prompt": "a picture like image 1 and image 2",
        "references": (circle("red"), circle("blue")),
    }

    def lean(*weights: float) -> float:
        shown = pixels(model, reference_weights=weights, **given)
        return float((shown[..., 0] - shown[..., 2]).mean())

    first, second = lean(2.0, 0.5), lean(0.5, 2.0)
    assert first > second + 5
    assert lean(2.0, 0.5) == first
