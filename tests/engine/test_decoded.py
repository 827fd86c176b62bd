"""A NaN or flat picture is an error; everything else is a picture."""

import pytest
import torch

from worker.engine.decoded import make_picture
from worker.errors import BadPicture


def test_levels_are_rounded_from_minus_one_to_one() -> None:
    """-1 is black, 1 is white, beyond is clamped."""
    pixels = torch.tensor([-9.0, -1.0, -0.5, 0.0, 0.5, 1.0, 9.0]).expand(3, 1, 7)
    levels = [level for level in (0, 0, 64, 128, 191, 255, 255) for _ in range(3)]
    assert make_picture(pixels).tobytes() == bytes(levels)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_no_number_is_an_error(value: float) -> None:
    """One is enough."""
    pixels = torch.rand(3, 8, 8)
    pixels[1, 2, 3] = value
    with pytest.raises(BadPicture):
        make_picture(pixels)


@pytest.mark.parametrize("level", [-1.0, 0.3, 5.0])
def test_a_flat_picture_is_an_error(level: float) -> None:
    """Every pixel equal, whatever the colour."""
    with pytest.raises(BadPicture):
        make_picture(torch.full((3, 8, 8), level))


def test_a_white_background_is_a_picture() -> None:
    """One pixel that differs makes it one."""
    pixels = torch.ones(3, 8, 8)
    pixels[:, 4, 4] = 0
    assert make_picture(pixels).size == (8, 8)
