"""Sizes: what is drawn, what is delivered and what is said, from what was asked."""

from dataclasses import dataclass, field, replace

import pytest
from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus import calculate_dimensions
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import InvalidInput
from worker.tasks.picture import PictureOffer, offer_of
from worker.tasks.size import LARGEST, NAMED, RATIOS, Dimensions, Size, choose, fit_to_area
from worlds import published

IMAGE, EDIT = offer_of(published.IMAGE), offer_of(published.EDIT)


@dataclass(frozen=True)
class Wish:
    """The part of a request that decides on the size."""

    size: Size = field(default_factory=Size)
    model: PictureOffer = IMAGE


def dimensions(wish: Wish, references: list[tuple[int, int]]) -> Dimensions:
    return choose(wish.size, wish.model, references[-1] if references else None)


def test_text_to_image_defaults_to_the_models_own_square() -> None:
    assert dimensions(Wish(), []) == Dimensions(1024, 1024)
    assert dimensions(Wish(model=replace(IMAGE, area=96 * 96)), []) == Dimensions(96, 96)


def test_asked_sides_are_floored_to_multiples_of_16_and_reported() -> None:
    found = dimensions(Wish(Size(width=1023, height=1472)), [])
    assert (found.width, found.height) == (1008, 1472)
    assert found.adjusted == {"width": (1023, 1008)}
    assert found.final is None


def test_the_widespread_typo_1140_is_floored() -> None:
    found = dimensions(Wish(Size(width=1472, height=1140)), [])
    assert (found.width, found.height) == (1472, 1136)


@pytest.mark.parametrize(("ratio", "size"), IMAGE.sizes.items())
def test_an_aspect_ratio_is_the_models_published_size(ratio: str, size: tuple[int, int]) -> None:
    assert dimensions(Wish(Size(aspect_ratio=ratio)), []) == Dimensions(*size)


def test_a_ratio_is_what_its_name_says() -> None:
    for name, (wide, high) in RATIOS.items():
        assert name == f"{wide}:{high}"


@pytest.mark.parametrize(
    ("name", "ratio", "longest"),
    [
        ("square_hd", (1, 1), 1024),
        ("square", (1, 1), 512),
        ("portrait_4_3", (3, 4), 1024),
        ("portrait_16_9", (9, 16), 1024),
        ("landscape_4_3", (4, 3), 1024),
        ("landscape_16_9", (16, 9), 1024),
    ],
)
def test_a_named_size_is_fals(name: str, ratio: tuple[int, int], longest: int) -> None:
    """A portrait's numbers are in the order of a landscape's."""
    wide, high = NAMED[name]
    assert (wide * ratio[1], max(wide, high)) == (high * ratio[0], longest)


@pytest.mark.parametrize("ratio", RATIOS)
def test_an_aspect_ratio_without_a_published_size_is_made_at_the_models_area(ratio: str) -> None:
    found = dimensions(Wish(Size(aspect_ratio=ratio), replace(IMAGE, sizes={})), [])
    wide, high = RATIOS[ratio]
    assert (found.width, found.height) == calculate_dimensions(1024 * 1024, wide / high)


def test_one_side_alone_gets_the_other_from_the_aspect() -> None:
    assert dimensions(Wish(Size(width=512)), []) == Dimensions(512, 512)
    assert dimensions(Wish(Size(width=1024, aspect_ratio="16:9")), []) == Dimensions(1024, 576)
    assert dimensions(Wish(Size(height=576), EDIT), [(100, 100), (1600, 900)]) == Dimensions(
        1024, 576
    )


def test_an_edit_takes_the_last_pictures_aspect_at_the_models_area() -> None:
    found = dimensions(Wish(model=EDIT), [(100, 900), (3000, 2000)])
    assert (found.width, found.height) == calculate_dimensions(1024 * 1024, 3000 / 2000)
    assert found.final is None
    assert found.warnings == ()


@given(width=st.integers(1, 20_000), height=st.integers(1, 20_000))
def test_moderate_aspects_give_exactly_the_stock_pipelines_size(width: int, height: int) -> None:
    """Below 64 pixels a side the stock formula's result is refused by our limits, so we differ."""
    stock = calculate_dimensions(1024 * 1024, width / height)
    found = fit_to_area(1024 * 1024, width / height)
    if min(stock) >= 64:
        assert found == stock
    else:
        assert min(found) == 64


def test_a_short_side_of_just_64_pixels_is_the_stock_pipelines() -> None:
    assert fit_to_area(1024 * 1024, 200) == calculate_dimensions(1024 * 1024, 200) == (14496, 64)
    assert fit_to_area(1024 * 1024, 1 / 200) == (64, 14496)


REFERENCE = st.tuples(st.integers(1, 60_000), st.integers(1, 60_000))
SIDE = st.none() | st.integers(64, LARGEST)
SIZES = st.builds(
    Size,
    width=SIDE,
    height=SIDE,
    aspect_ratio=st.none() | st.sampled_from(sorted(RATIOS)),
    as_input=st.booleans(),
)
AREAS = st.integers(8, 128).map(lambda side: (side * 16) ** 2)


@given(size=SIZES, last=st.none() | REFERENCE, area=AREAS, room=st.integers(64 * 64, 5_000_000))
def test_whatever_is_asked_can_be_generated_or_is_refused(
    size: Size, last: tuple[int, int] | None, area: int, room: int
) -> None:
    """Every size is in 64..limit, a multiple of 16, and delivered exactly where that is asked."""
    model = replace(EDIT, area=area, max_pixels=room)
    try:
        found = dimensions(Wish(size, model), [last] if last else [])
    except InvalidInput:
        asked = size.width or size.height or size.as_input
        assert asked, "a size that is left to us is never refused"
        return
    assert found.width >= 64
    assert found.height >= 64
    assert found.width % 16 == found.height % 16 == 0
    assert found.width * found.height <= room
    if size.as_input:
        assert (found.final or (found.width, found.height)) == last


def test_input_draws_at_the_pictures_own_size_when_it_can() -> None:
    assert dimensions(Wish(Size(as_input=True), EDIT), [(1008, 720)]) == Dimensions(1008, 720)


@pytest.mark.parametrize(
    ("last", "drawn"),
    [
        ((1000, 750), (992, 752)),  # no multiple of 16
        ((4000, 3000), (1184, 896)),  # over the limit
        ((200, 150), (1184, 896)),  # too small to be drawn well
    ],
)
def test_input_says_when_the_picture_is_resampled_at_the_end(
    last: tuple[int, int], drawn: tuple[int, int]
) -> None:
    found = dimensions(Wish(Size(as_input=True), EDIT), [last])
    assert (found.width, found.height) == drawn
    assert found.final == last
    assert found.adjusted == {}
    (warning,) = found.warnings
    assert f"{last[0]}x{last[1]}" in warning
    assert "resampled" in warning


def test_a_size_over_the_limit_is_refused_with_the_limit() -> None:
    with pytest.raises(InvalidInput, match="at most 4194304 pixels") as refused:
        dimensions(Wish(Size(width=4096, height=4096, field="width")), [])
    assert refused.value.details[0].field == "width"


def test_the_models_own_size_is_made_smaller_where_the_limit_is_lower_and_said() -> None:
    found = dimensions(Wish(model=replace(IMAGE, max_pixels=512 * 512)), [])
    assert found.width * found.height <= 512 * 512
    assert "262144 pixels" in found.warnings[0]


@pytest.mark.parametrize("last", [(60_000, 1), (1, 60_000)])
def test_an_extreme_aspect_keeps_64_pixels_on_its_short_side(last: tuple[int, int]) -> None:
    found = dimensions(Wish(model=EDIT), [last])
    assert min(found.width, found.height) == 64


def test_input_is_refused_for_a_picture_too_large_to_deliver() -> None:
    assert dimensions(Wish(Size(as_input=True), EDIT), [(4096, 4096)]).final == (4096, 4096)
    with pytest.raises(InvalidInput, match="4097x4096 pixels, at most 16777216"):
        dimensions(Wish(Size(as_input=True), EDIT), [(4097, 4096)])


@pytest.mark.parametrize(
    ("ratio", "height"),
    [
        ("1:1", 2304),
        ("16:9", 1296),
        ("9:16", 4096),
        ("4:3", 1728),
        ("3:4", 3072),
        ("3:2", 1536),
        ("2:3", 3456),
    ],
)
def test_a_ratio_is_width_to_height(ratio: str, height: int) -> None:
    roomy = replace(IMAGE, max_pixels=10**8)
    for size in (Size(width=2304, aspect_ratio=ratio), Size(height=height, aspect_ratio=ratio)):
        assert dimensions(Wish(size, roomy), []) == Dimensions(2304, height)


def test_the_other_side_is_the_nearest_multiple_of_16_and_no_less_than_64() -> None:
    assert dimensions(Wish(Size(width=64, aspect_ratio="16:9")), []) == Dimensions(64, 64)
    assert dimensions(Wish(Size(height=64, aspect_ratio="9:16")), []) == Dimensions(64, 64)
    assert dimensions(Wish(Size(width=128, aspect_ratio="4:3")), []) == Dimensions(128, 96)
    assert dimensions(Wish(Size(width=208, aspect_ratio="4:3")), []) == Dimensions(208, 160)


def test_a_published_size_is_floored_to_multiples_of_16() -> None:
    model = replace(IMAGE, sizes={"16:9": (1000, 575), "9:16": (575, 1000)})
    assert dimensions(Wish(Size(aspect_ratio="16:9"), model), []) == Dimensions(992, 560)
    assert dimensions(Wish(Size(aspect_ratio="9:16"), model), []) == Dimensions(560, 992)


@pytest.mark.parametrize(
    ("area", "long"), [(1024 * 1024, 16384), (1_000_000, 15616), (96 * 96, 128), (32 * 32, 64)]
)
def test_the_long_side_of_an_extreme_aspect_keeps_the_area(area: int, long: int) -> None:
    assert fit_to_area(area, 1e6) == (long, 64)
    assert fit_to_area(area, 1e-6) == (64, long)
    sides = (*fit_to_area(area, 1e6), *fit_to_area(area, 1e-6))
    assert all(isinstance(side, int) for side in sides)  # a warning says 16384, not 16384.0


def test_exactly_the_limit_can_be_generated() -> None:
    """The size generated is checked, not the one requested: up to 15 pixels per side are cut."""
    assert dimensions(Wish(Size(width=2048, height=2048)), []) == Dimensions(2048, 2048)
    found = dimensions(Wish(Size(width=2063, height=2049)), [])
    assert (found.width, found.height) == (2048, 2048)
    assert found.adjusted == {"width": (2063, 2048), "height": (2049, 2048)}
    with pytest.raises(InvalidInput, match=r"\(got 2064x2048 = 4227072\)"):
        dimensions(Wish(Size(width=2064, height=2048)), [])


def test_a_size_of_ours_that_is_exactly_the_limit_is_not_made_smaller() -> None:
    model = replace(IMAGE, max_pixels=1024 * 1024)
    assert dimensions(Wish(model=model), []) == Dimensions(1024, 1024)
    less = dimensions(Wish(model=replace(IMAGE, max_pixels=1024 * 1024 - 1)), [])
    assert (less.width, less.height) == (992, 992)


@pytest.mark.parametrize(
    ("size", "last", "limit", "drawn"),
    [
        (Size(), None, 512 * 512, (512, 512)),
        (Size(aspect_ratio="16:9"), None, 512 * 512, (672, 352)),
        (Size(aspect_ratio="9:16"), None, 512 * 512, (352, 672)),
        (Size(), (60_000, 1), 512 * 512, (4096, 64)),
        (Size(), (1, 60_000), 512 * 512, (64, 4096)),
        (Size(), (60_000, 1), 64 * 64, (64, 64)),
        (Size(), (1, 60_000), 64 * 64, (64, 64)),
        (Size(), (60_000, 1), 5000, (64, 64)),
        (Size(), (1, 60_000), 5135, (64, 80)),
    ],
)
def test_a_size_of_ours_over_the_limit_keeps_its_aspect_as_far_as_64_pixels_allow(
    size: Size, last: tuple[int, int] | None, limit: int, drawn: tuple[int, int]
) -> None:
    model = replace(EDIT, max_pixels=limit)
    found = dimensions(Wish(size, model), [last] if last else [])
    assert (found.width, found.height) == drawn
    (warning,) = found.warnings
    assert f"is over this worker's {limit} pixels; generated at {drawn[0]}x{drawn[1]}" in warning


@pytest.mark.parametrize(
    ("last", "drawn"),
    [
        ((512, 512), (512, 512)),  # a quarter of the model's area
        ((512, 496), (1056, 992)),  # less
        ((2048, 2048), (2048, 2048)),  # the limit
        ((2048, 2064), (1024, 1024)),  # more
    ],
)
def test_input_is_generated_as_it_is_from_a_quarter_of_the_models_area_up_to_the_limit(
    last: tuple[int, int], drawn: tuple[int, int]
) -> None:
    found = dimensions(Wish(Size(as_input=True), EDIT), [last])
    assert (found.width, found.height) == drawn
    assert found.final == (None if drawn == last else last)
    assert bool(found.warnings) == (drawn != last)


def test_a_quarter_of_the_models_area_is_rounded_down() -> None:
    model = replace(EDIT, area=1024 * 1024 + 3)
    assert dimensions(Wish(Size(as_input=True), model), [(512, 512)]) == Dimensions(512, 512)


@pytest.mark.parametrize("last", [(8192, 1024), (1024, 8192)])
@pytest.mark.parametrize("shrink", [False, True])
def test_an_input_with_one_long_side_is_delivered_as_it_is(
    last: tuple[int, int], *, shrink: bool
) -> None:
    assert choose(Size(as_input=True), EDIT, last, shrink=shrink).final == last


def test_a_model_with_a_higher_limit_delivers_larger_inputs() -> None:
    model = replace(EDIT, max_pixels=4097 * 4096)
    assert dimensions(Wish(Size(as_input=True), model), [(4097, 4096)]).final == (4097, 4096)
    with pytest.raises(InvalidInput, match="4097x4097 pixels, at most 16781312"):
        dimensions(Wish(Size(as_input=True), model), [(4097, 4097)])


def test_the_size_of_an_input_that_is_not_there_is_refused_by_its_field() -> None:
    with pytest.raises(InvalidInput, match="there is no input picture") as refused:
        choose(Size(as_input=True, field="image_size"), EDIT, None)
    assert [detail.field for detail in refused.value.details] == ["image_size"]


def test_a_size_over_the_limit_is_reduced_in_proportion_where_that_is_wished() -> None:
    """And what was asked is said with what it became."""
    for asked in ((4096, 4096), (8192, 2048), (2064, 2063)):
        found = choose(Size(*asked), IMAGE, None, shrink=True)
        assert found.width * found.height <= IMAGE.max_pixels
        assert found.width * found.height > 0.9 * IMAGE.max_pixels
        assert abs(found.width / found.height / (asked[0] / asked[1]) - 1) < 0.05
        assert found.adjusted == {
            "width": (asked[0], found.width),
            "height": (asked[1], found.height),
        }
        assert len(found.warnings) == 1
        with pytest.raises(InvalidInput):
            choose(Size(*asked), IMAGE, None)
    within = Size(2048, 2047)
    assert choose(within, IMAGE, None, shrink=True) == choose(within, IMAGE, None)
    assert choose(Size(2048, 2048), IMAGE, None, shrink=True) == Dimensions(2048, 2048)


def test_an_input_over_the_limit_is_delivered_smaller_where_that_is_wished() -> None:
    found = choose(Size(as_input=True), EDIT, (6000, 4000), shrink=True)
    assert found.final is not None
    assert found.final[0] * found.final[1] <= 4096 * 4096
    assert found.final[0] * found.final[1] > 0.99 * 4096 * 4096
    assert abs(found.final[0] / found.final[1] - 1.5) < 0.001
    assert found.warnings[-1] == (
        "size: the input's 6000x4000 is over 16777216 pixels; delivered at"
        f" {found.final[0]}x{found.final[1]}"
    )
    with pytest.raises(InvalidInput):
        choose(Size(as_input=True), EDIT, (6000, 4000))
    within = choose(Size(as_input=True), EDIT, (4096, 4096), shrink=True)
    assert within == choose(Size(as_input=True), EDIT, (4096, 4096))
