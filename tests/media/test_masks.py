"""Masks: white is repainted, or what is transparent; they fade outwards; grids see all of it."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from worker.errors import ImageTooLarge, ImageUnreadable
from worker.media import images, masks
from worker.media.picture import Original, Picture

LEVELS = (0, 100, 127, 128, 200, 255)


def levels(values: Any = LEVELS) -> Image.Image:
    """Return a picture of mode L with one column of 4 pixels for each level, 16 rows."""
    row = np.repeat(np.array(values, np.uint8), 4)
    return Image.fromarray(np.tile(row, (16, 1)))


def decoded(image: Image.Image, form: str = "PNG", **more: Any) -> list[int]:
    """Return a mask's first value of each column, as it is read from a file."""
    data = io.BytesIO()
    image.save(data, form, **more)
    mask = images.decode_mask(data.getvalue())
    assert mask.mode == "L"
    return [int(level) for level in np.asarray(mask)[0, ::4]]


WHITE = [0, 0, 0, 255, 255, 255]


@pytest.mark.parametrize("mode", ["L", "RGB", "LA", "RGBA", "CMYK"])
def test_light_is_white_in_every_mode(mode: str) -> None:
    form = "JPEG" if mode == "CMYK" else "PNG"
    split = decoded(levels((0, 90, 200, 255) * 2).convert(mode), form)
    assert split == [0, 0, 255, 255] * 2


def test_half_of_255_is_where_white_begins() -> None:
    assert decoded(levels()) == WHITE
    wide = Image.fromarray(np.asarray(levels(), np.uint16) * 257)
    assert decoded(wide) == WHITE
    assert decoded(levels().convert("1", dither=Image.Dither.NONE)) == WHITE
    grey = levels().convert("P")
    assert decoded(grey) == WHITE


def test_a_jpegs_black_is_black() -> None:
    """Whose every level is a little off."""
    assert decoded(levels((0, 255) * 3), "JPEG", quality=30) == [0, 255] * 3


@pytest.mark.parametrize("under", ["white", "black"])
def test_where_the_alpha_varies_the_transparent_is_white(under: str) -> None:
    """Whatever its colours: OpenAI's masks are the picture with a hole in it."""
    for mode in ("RGBA", "LA"):
        hole = Image.new("RGBA", (24, 16), under).convert(mode)
        hole.putalpha(levels())
        assert decoded(hole) == [255, 255, 255, 0, 0, 0]


@pytest.mark.parametrize("alpha", [0, 1, 255])
def test_an_alpha_that_is_the_same_everywhere_says_nothing(alpha: int) -> None:
    flat = levels().convert("RGBA")
    flat.putalpha(alpha)
    assert decoded(flat) == WHITE


def test_a_palette_with_a_transparent_entry_is_read_by_it() -> None:
    image = levels((0, 255) * 3).convert("P", palette=Image.Palette.ADAPTIVE, colors=2)
    dark = image.getpixel((0, 0))
    assert decoded(image, transparency=dark) == [255, 0] * 3


def test_a_mask_is_turned_upright_as_its_picture_is() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    data = io.BytesIO()
    levels().save(data, "PNG", exif=exif)
    mask = images.decode_mask(data.getvalue())
    assert mask.size == (16, 24)
    assert [mask.getpixel((0, 4 * row)) for row in range(6)] == WHITE


def test_a_mask_is_refused_as_a_picture_is() -> None:
    with pytest.raises(ImageUnreadable):
        images.decode_mask(b"no picture")
    data = io.BytesIO()
    levels().save(data, "PNG")
    with pytest.raises(ImageTooLarge):
        images.decode_mask(data.getvalue(), max_pixels=24 * 16 - 1)


def spot(size: int, *places: tuple[int, int]) -> Image.Image:
    mask = Image.new("L", (size, size))
    for place in places:
        mask.putpixel(place, 255)
    return mask


@pytest.mark.parametrize("pixels", [0, 1, 2, 3, 8, 63, 64])
def test_a_mask_fades_outwards_over_so_many_pixels(pixels: int) -> None:
    """The white stays white, each step outwards is no lighter, and beyond them all is black."""
    faded = np.asarray(masks.feather(spot(200, (100, 100)), pixels), int)
    row = faded[100, 100:]
    assert row[0] == 255
    assert (np.diff(row) <= 0).all()
    assert (row[pixels + 1 :] == 0).all()
    if pixels > 1:
        assert row[pixels - 1] > 0
        assert row[pixels // 2 + 1] < 255
    for turned in (faded.T, faded[1:, 1:][::-1]):  # to a level: each pass rounds
        assert np.abs(faded[-len(turned) :, -turned.shape[1] :] - turned).max() <= 1


@pytest.mark.parametrize("pixels", [2, 8, 9, 64])
def test_a_mask_begins_to_fade_next_to_its_white(pixels: int) -> None:
    """Where the pixels are odd, the one that has no half next to it stays white."""
    row = np.asarray(masks.feather(spot(200, (100, 100)), pixels), int)[100, 100:]
    assert row[: 1 + pixels % 2].tolist() == [255] * (1 + pixels % 2)
    assert row[1 + pixels % 2] < 255


def test_a_mask_fades_at_the_edge_as_elsewhere() -> None:
    corner = np.asarray(masks.feather(spot(64, (0, 0)), 8), int)
    assert corner[0, 0] == 255
    assert (corner[9:] == 0).all()
    assert (masks.feather(Image.new("L", (20, 20), 255), 8).getextrema()) == (255, 255)
    assert masks.feather(Image.new("L", (20, 20)), 8).getextrema() == (0, 0)


@pytest.mark.parametrize("size", [(64, 48), (60, 50), (7, 5), (1000, 999), (8, 1)])
def test_a_cell_has_something_in_it_where_any_pixel_that_it_touches_has(
    size: tuple[int, int],
) -> None:
    """Worked out pixel by pixel, for grids finer and coarser than the mask."""
    columns, rows = 8, 6
    for place in ((0, 0), (size[0] // 2, size[1] // 2), (size[0] - 1, size[1] - 1)):
        mask = Image.new("L", size)
        mask.putpixel(place, 1)
        expected = np.zeros((rows, columns), bool)
        for row in range(rows):
            for column in range(columns):
                across = place[0] < (column + 1) * size[0] / columns
                across &= place[0] + 1 > column * size[0] / columns
                down = place[1] < (row + 1) * size[1] / rows
                down &= place[1] + 1 > row * size[1] / rows
                expected[row, column] = across and down
        assert (masks.pool(mask, columns, rows) == expected).all()
        assert expected.any()


def test_a_grid_over_black_is_empty_and_over_white_full() -> None:
    assert not masks.pool(Image.new("L", (30, 20)), 12, 8).any()
    assert masks.pool(Image.new("L", (30, 20), 255), 12, 8).all()
    assert masks.pool(Image.new("L", (30, 20), 255), 12, 8).shape == (8, 12)


def test_a_mask_without_any_white_is_black() -> None:
    assert masks.is_black(Image.new("L", (9, 9)))
    assert not masks.is_black(spot(9, (8, 8)))


RED, BLUE = Image.new("RGB", (40, 30), "red"), Image.new("RGB", (40, 30), "blue")


def test_what_is_delivered_shows_the_original_where_its_mask_is_black() -> None:
    mask = levels((0, 255)).resize((40, 30), Image.Resampling.NEAREST)
    for painted, final in ((RED, None), (RED.resize((16, 16)), (40, 30))):
        piece = Picture(painted, final, Original(BLUE, mask))
        shown = Image.open(io.BytesIO(piece.encode("png", 95, {}).data))
        assert shown.size == (40, 30)
        assert (shown.getpixel((0, 0)), shown.getpixel((39, 29))) == ((0, 0, 255), (255, 0, 0))


def test_an_original_of_another_size_is_resampled_to_what_is_delivered() -> None:
    mask = levels((0, 255)).resize((80, 60), Image.Resampling.NEAREST)
    shown = Picture(RED, None, Original(BLUE.resize((80, 60)), mask)).show()
    assert shown.size == (40, 30)
    assert (shown.getpixel((0, 0)), shown.getpixel((39, 29))) == ((0, 0, 255), (255, 0, 0))
