"""Colours become sRGB by what the file says of them: by a profile or by numbers."""

import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from PIL import Image, ImageCms

from worker.media import colour
from worker.media.images import decode
from worker.media.primaries import BT709, D65, build_matrix_profile
from worlds.files import chunk, exif, gradient, png, riff, saved
from worlds.profiles import COLORANTS, curves, endless, grey, matrix, printer, profile

ASKED = (40, 200, 60)
# By the definitions of the colour spaces; blue of Display P3 is where a rounding shows most.
RIGHT = {
    "sRGB": (40, 200, 60),
    "Display P3": (0, 204, 12),
    "Adobe RGB": (0, 201, 37),
    "ProPhoto": (0, 229, 0),
}
UNREAD = ["its colour profile cannot be read or does not match: treated as sRGB"]
P3_POINTS = (31_270, 32_900, 68_000, 32_000, 26_500, 69_000, 15_000, 6000)
SRGB_POINTS = (31_270, 32_900, 64_000, 33_000, 30_000, 60_000, 15_000, 6000)


def flat(mode: str = "RGB", colour: Any = ASKED) -> Image.Image:
    return Image.new(mode, (64, 64), colour)


def read(data: bytes) -> tuple[tuple[int, ...], list[str]]:
    """Return a pixel of the picture, and the warnings."""
    warnings: list[str] = []
    pixel = decode(data, warn=warnings.append).getpixel((40, 40))
    assert isinstance(pixel, tuple)
    return pixel, warnings


def near(pixel: tuple[int, ...], right: tuple[int, ...], most: int = 2) -> bool:
    return all(abs(a - b) <= most for a, b in zip(pixel, right, strict=True))


def rows(*pixel: int, bits: int = 8, count: int = 64) -> bytes:
    """Return the scan lines of a PNG of one colour."""
    one = b"".join(value.to_bytes(bits // 8) for value in pixel)
    return (b"\0" + one * count) * count


def numbered(*chunks: tuple[bytes, bytes], colour: tuple[int, ...] = ASKED) -> bytes:
    """Return a PNG of (40, 200, 60) with these chunks."""
    extra = b"".join(chunk(name, content) for name, content in chunks)
    return png(64, 64, raw=rows(*colour), extra=extra)


@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("JPEG", {"quality": 100, "subsampling": 0}),
        ("WEBP", {"lossless": True}),
    ],
)
def test_a_profile_becomes_srgb(kind: str, options: dict[str, Any], name: str) -> None:
    pixel, warnings = read(saved(flat(), kind, icc_profile=matrix(name), **options))
    assert near(pixel, RIGHT[name])
    assert warnings == []


def test_an_avifs_profile_becomes_srgb() -> None:
    bare, _ = read(saved(flat(), "AVIF", quality=100, subsampling="4:4:4"))
    pixel, warnings = read(
        saved(flat(), "AVIF", quality=100, subsampling="4:4:4", icc_profile=matrix("Display P3"))
    )
    same, _ = read(saved(flat(colour=bare), "PNG", icc_profile=matrix("Display P3")))
    assert (pixel, warnings) == (same, [])
    assert pixel[0] == 0
    assert bare[0] >= 38


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_srgbs_own_profile_leaves_every_pixel_as_it_is(kind: str) -> None:
    """Also where its maker's curve differs by a rounding from ours."""
    image = gradient(256, 256)
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    plain = decode(saved(image, kind, **options))
    for own in (matrix("sRGB"), build_matrix_profile(BT709, None)):
        warnings: list[str] = []
        tagged = saved(image, kind, icc_profile=own, **options)
        assert kind == "GIF" or b"acsp" in tagged or b"iCCP" in tagged
        assert decode(tagged, warn=warnings.append).tobytes() == plain.tobytes()
        assert warnings == []


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "LA", "1", "I;16", "CMYK"])
def test_a_profile_of_another_colour_space_is_ignored_with_a_warning(mode: str) -> None:
    kind = "JPEG" if mode == "CMYK" else "PNG"
    image = gradient(mode="L").convert("I;16") if mode == "I;16" else gradient(mode=mode)
    wrong = matrix("Display P3") if mode in {"L", "LA", "1", "I;16", "CMYK"} else grey(1.0)
    plain = decode(saved(image, kind))
    for other in (wrong, printer(lambda _: (50, 0, 0)) if mode != "CMYK" else grey(1.0)):
        warnings: list[str] = []
        decoded = decode(saved(image, kind, icc_profile=other), warn=warnings.append)
        assert decoded.tobytes() == plain.tobytes()
        assert warnings == UNREAD


@pytest.mark.parametrize("transparency", [None, 1, bytes((255, 0, 128))])
def test_a_palettes_colours_are_converted(transparency: Any) -> None:
    image = flat("P", 0)
    image.putpalette([*ASKED, 0, 0, 255, 255, 0, 0])
    image.paste(1, (0, 0, 8, 8))
    options = {} if transparency is None else {"transparency": transparency}
    decoded = decode(saved(image, "PNG", icc_profile=matrix("Display P3"), **options))
    pixel = decoded.getpixel((40, 40))
    assert isinstance(pixel, tuple)
    assert near(pixel, RIGHT["Display P3"])
    if transparency is not None:
        assert decoded.getpixel((3, 3)) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_colours_are_converted_before_transparency_is_laid_over_white(kind: str) -> None:
    image = flat("RGBA", (*ASKED, 128))
    image.paste((*ASKED, 0), (0, 0, 16, 16))
    options: dict[str, Any] = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    decoded = decode(saved(image, kind, icc_profile=matrix("Display P3"), **options))
    half = tuple(round((value * 128 + 255 * 127) / 255) for value in RIGHT["Display P3"])
    pixel = decoded.getpixel((40, 40))
    assert isinstance(pixel, tuple)
    assert near(pixel, half)
    assert decoded.getpixel((3, 3)) == (255, 255, 255)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("colour", [2, 6])
def test_eight_and_sixteen_bits_with_and_without_alpha_are_converted(
    bits: int, colour: int
) -> None:
    scale = 257 if bits == 16 else 1
    full = ((1 << bits) - 1,) if colour == 6 else ()
    raw = rows(*(value * scale for value in ASKED), *full, bits=bits)
    packed = b"k\0\0" + zlib.compress(matrix("Display P3"))
    data = png(64, 64, bits=bits, colour=colour, raw=raw, extra=chunk(b"iCCP", packed))
    assert near(read(data)[0], RIGHT["Display P3"])


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_a_profile_of_grey_is_obeyed(mode: str) -> None:
    """Linear grey 64 of 255 is 137 in sRGB."""
    image = (
        flat("I;16", 64 * 257) if mode == "I;16" else flat(mode, (64, 255) if mode == "LA" else 64)
    )
    image.putalpha(255) if mode == "LA" else None
    pixel, warnings = read(saved(image, "PNG", icc_profile=grey(1.0)))
    assert near(pixel, (137, 137, 137))
    assert warnings == []


def test_the_shade_that_a_grey_picture_makes_transparent_is_its_own() -> None:
    image = flat("L", 64)
    image.paste(9, (0, 0, 16, 16))
    decoded = decode(saved(image, "PNG", transparency=9, icc_profile=grey(1.0)))
    assert decoded.getpixel((3, 3)) == (255, 255, 255)
    assert near(decoded.getpixel((40, 40)), (137, 137, 137))  # type: ignore[arg-type] # of RGB


@pytest.mark.parametrize("options", [{}, {"transparency": 0}])
def test_a_picture_of_one_bit_is_grey(options: dict[str, Any]) -> None:
    image = flat("1", 1)
    image.paste(0, (0, 0, 16, 16))
    pixel, warnings = read(saved(image, "PNG", icc_profile=grey(1.0), **options))
    assert (pixel, warnings) == ((255, 255, 255), [])


def test_a_transparent_grey_is_converted_and_laid_over_white() -> None:
    decoded = decode(saved(flat("LA", (64, 128)), "PNG", icc_profile=grey(1.0)))
    assert near(decoded.getpixel((4, 4)), (196, 196, 196))  # type: ignore[arg-type] # of RGB


def ink(inks: Any) -> tuple[float, float, float]:
    """Return L*a*b* of corners whose colours could not be guessed, black ink being a dark grey."""
    cyan, magenta, yellow, black = inks
    if black:
        return 10, 0, 0
    light = 100 * (1 - 0.4 * cyan) * (1 - 0.5 * magenta) * (1 - 0.1 * yellow)
    return light, 60 * (magenta - cyan), 80 * yellow - 40 * cyan


@pytest.mark.parametrize(
    ("inks", "right", "darkest"),
    [
        ((0, 255, 0, 0), (206, 63, 122), (205, 55, 119)),
        ((255, 0, 0, 0), (0, 172, 214), (0, 171, 213)),
        ((0, 0, 255, 0), (255, 224, 53), (255, 224, 43)),
        ((0, 0, 0, 0), (255, 255, 255), (255, 255, 255)),
        ((0, 0, 0, 255), (27, 27, 27), (0, 0, 0)),
    ],
)
def test_cmyk_with_a_profile_is_printed_as_it_says(
    inks: tuple[int, ...], right: tuple[int, ...], darkest: tuple[int, ...]
) -> None:
    """Worked out from L*a*b* apart from lcms: paper is white, the darkest ink black if known."""
    for of, expected in ((b"prtr", right), (b"scnr", darkest)):
        data = saved(flat("CMYK", inks), "JPEG", quality=100, icc_profile=printer(ink, of))
        pixel, warnings = read(data)
        assert near(pixel, expected), (of, pixel)
        assert warnings == []


def test_cmyk_without_a_profile_is_converted_plainly() -> None:
    """Adobe's files hold what is left of the paper, so 255 for no ink."""
    pixel, warnings = read(saved(flat("CMYK", (0, 255, 0, 0)), "JPEG", quality=100))
    assert (pixel, warnings) == ((255, 0, 255), [])


def test_a_profile_in_many_parts_and_any_order_is_joined() -> None:
    whole = matrix("Display P3") + bytes(130_000)
    whole = len(whole).to_bytes(4) + whole[4:]
    data = saved(flat(), "JPEG", quality=100, subsampling=0)
    parts = [
        b"ICC_PROFILE\0" + bytes((number + 1, 3)) + whole[number * 60_000 : (number + 1) * 60_000]
        for number in range(3)
    ]
    segments = [b"\xff\xe2" + (len(part) + 2).to_bytes(2) + part for part in parts]
    mixed = data[:2] + segments[2] + segments[0] + segments[1] + data[2:]
    assert near(read(mixed)[0], RIGHT["Display P3"])
    assert read(mixed)[1] == []
    missing = data[:2] + segments[2] + segments[0] + data[2:]
    assert read(missing) == (read(data)[0], UNREAD)


BROKEN = {
    "nothing": b"",
    "noise": bytes(range(256)) * 8,
    "only its head": matrix("Display P3")[:128],
    "cut in its tags": matrix("Display P3")[:300],
    "without curves": profile(b"RGB ", b"mntr", b"XYZ ", [(b"rXYZ", b"XYZ " + bytes(16))]),
    "a million tags": matrix("Display P3")[:128] + b"\0\x0f\xff\xff" + bytes(500),
    "of a link": matrix("Display P3").replace(b"mntr", b"link"),
    "of names": matrix("Display P3").replace(b"mntr", b"nmcl"),
    "a table of 255 to the third": profile(
        b"RGB ", b"mntr", b"Lab ",
        [(b"A2B0", b"mft2" + bytes(4) + b"\3\3\xff\0" + bytes(36) + b"\0\2\0\2" + bytes(99))],
    ),
    "a curve of four billion": matrix("sRGB").replace(
        b"curv\0\0\0\0\0\0\4\0", b"curv\0\0\0\0\xff\xff\xff\xff"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_broken_profile_leaves_the_colours_and_gives_a_warning(kind: str, name: str) -> None:
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    image = gradient()
    if kind == "PNG":
        content = chunk(b"iCCP", b"k\0\0" + zlib.compress(BROKEN[name]))
        data = saved(image, "PNG")
        tagged = data[:33] + content + data[33:]
    elif kind == "JPEG":
        data = saved(image, "JPEG")
        content = b"ICC_PROFILE\0\1\1" + BROKEN[name]
        tagged = data[:2] + b"\xff\xe2" + (len(content) + 2).to_bytes(2) + content + data[2:]
    else:
        data = saved(image, "WEBP", exif=exif(1), **options)
        tagged = riff((b"ICCP", BROKEN[name]))[12:]
        flags = bytes((data[20] | 0x20,))  # a profile is there
        tagged = data[:20] + flags + data[21:30] + tagged + data[30:]
    warnings: list[str] = []
    assert decode(tagged, warn=warnings.append).tobytes() == decode(data).tobytes()
    assert warnings == UNREAD


def test_a_profile_packed_by_an_unknown_method_is_broken() -> None:
    for method, right in ((b"\0", (RIGHT["Display P3"], [])), (b"\1", (ASKED, UNREAD))):
        pixel, warnings = read(
            numbered((b"iCCP", b"k\0" + method + zlib.compress(matrix("Display P3"))))
        )
        assert near(pixel, right[0])
        assert warnings == right[1]


@pytest.mark.parametrize(("more", "warnings"), [(0, []), (1, UNREAD)])
def test_a_pngs_profile_may_have_four_megabytes(more: int, warnings: list[str]) -> None:
    long = matrix("Display P3").ljust((4 << 20) + more, b"\0")
    pixel, found = read(numbered((b"iCCP", b"k\0\0" + zlib.compress(long))))
    assert near(pixel, ASKED if more else RIGHT["Display P3"])
    assert found == warnings


def test_a_profile_that_would_take_hours_takes_none() -> None:
    """A thousand steps of floating point tables take lcms 18 s; the plain ones are used."""
    for steps in (curves(20_000), endless(100_000)):
        for name in (b"D2B0", b"D2B1", b"D2B3"):
            hostile = matrix("Display P3", more=[(name, steps)])
            start = time.process_time()
            pixel, warnings = read(saved(flat(), "PNG", icc_profile=hostile))
            assert time.process_time() - start < 5
            assert near(pixel, RIGHT["Display P3"])
            assert warnings == []


def test_of_a_profile_only_the_names_of_its_floating_point_tables_change() -> None:
    tags = [b"D2B0....", b"rXYZD2B1", b"D2B3...."]
    made = bytes(127) + b"\1\0\0\0\3" + b"".join(tag.ljust(12, b".") for tag in tags)
    hidden = colour._hide_float_tables(made + b"D2B0 in the data")
    assert hidden == made.replace(b"D2B0", b"x2B0").replace(b"D2B3", b"x2B3") + b"D2B0 in the data"
    assert colour._hide_float_tables(made[:140]) == made[:140].replace(b"D2B0", b"x2B0")
    many = bytes(131) + b"\x0c" + b"rXYZ".ljust(12, b".") * 11 + b"D2B0".ljust(12, b".")
    assert colour._hide_float_tables(many) == many.replace(b"D2B0", b"x2B0")


def test_profiles_are_applied_from_many_threads_at_once() -> None:
    image = gradient(300, 200)
    files = [saved(image, "PNG", icc_profile=matrix(name)) for name in COLORANTS] * 8
    expected = [decode(data).tobytes() for data in files]
    assert len(set(expected)) == len(COLORANTS)
    with ThreadPoolExecutor(8) as threads:
        assert [picture.tobytes() for picture in threads.map(decode, files)] == expected


@pytest.mark.parametrize(
    ("numbers", "right"),
    [
        ((1, 13), ASKED),
        ((2, 2), ASKED),
        ((1, 1), ASKED),
        ((12, 13), (0, 204, 12)),
        ((12, 1), (0, 204, 12)),
        ((12, 8), (34, 232, 122)),
        ((9, 13), (0, 211, 0)),
        ((1, 8), (110, 229, 133)),
        ((1, 4), (35, 201, 57)),
        ((1, 5), (17, 189, 36)),
        ((5, 13), (0, 200, 64)),
        ((6, 13), (63, 197, 58)),
        ((7, 13), (63, 197, 58)),
        ((11, 13), (0, 204, 12)),
        ((1, 6), ASKED),
        ((1, 14), ASKED),
        ((1, 15), ASKED),
        ((9, 8), (0, 239, 118)),
    ],
)
def test_numbers_of_colours_are_obeyed(numbers: tuple[int, int], right: tuple[int, ...]) -> None:
    """Right by H.273's tables 2 and 3, worked out apart from lcms."""
    pixel, warnings = read(numbered((b"cICP", bytes((*numbers, 0, 1)))))
    assert near(pixel, right), pixel
    assert warnings == []


def test_a_white_of_its_own_becomes_white() -> None:
    """Of DCI-P3 (11), whose white is greenish; right as above."""
    for given, right in (
        ((200, 200, 200), (200, 200, 200)),
        ((200, 60, 40), (212, 42, 24)),
        ((60, 40, 200), (62, 36, 208)),
    ):
        data = numbered((b"cICP", bytes((11, 13, 0, 1))), colour=given)
        assert near(read(data)[0], right, 1)


def test_numbers_of_colours_that_have_no_place_in_8_bits_give_a_warning() -> None:
    for numbers in ((9, 16), (9, 18), (22, 13), (3, 13), (1, 3)):
        assert read(numbered((b"cICP", bytes((*numbers, 0, 1))))) == (ASKED, UNREAD)


def test_chromaticities_and_gamma_are_obeyed() -> None:
    points = struct.pack(">8I", *P3_POINTS)
    assert near(read(numbered((b"cHRM", points)))[0], RIGHT["Display P3"])
    linear = struct.pack(">I", 100_000)
    assert near(read(numbered((b"gAMA", linear)))[0], (110, 229, 133))
    assert near(read(numbered((b"cHRM", points), (b"gAMA", linear)))[0], (34, 232, 122))
    assert near(read(numbered((b"gAMA", struct.pack(">I", 55_556))))[0], (53, 210, 77))
    longer = (b"cHRM", points + b"more"), (b"gAMA", linear + b"more")
    assert near(read(numbered(*longer))[0], (34, 232, 122))


@pytest.mark.parametrize("gamma", [45_455, 45_000, 47_727, 43_183])
def test_a_gamma_of_about_a_screens_means_srgb(gamma: int) -> None:
    chunks = (b"cHRM", struct.pack(">8I", *SRGB_POINTS)), (b"gAMA", struct.pack(">I", gamma))
    image = png(64, 64, raw=rows(3, 9, 200), extra=b"".join(chunk(*pair) for pair in chunks))
    assert read(image) == ((3, 9, 200), [])
    for beyond in (43_182, 47_728):
        assert read(numbered((b"gAMA", struct.pack(">I", beyond))))[0] != ASKED


@pytest.mark.parametrize(
    "chunks",
    [
        ((b"gAMA", bytes(4)),),
        ((b"gAMA", b"\0"),),
        ((b"gAMA", b"\xff" * 4),),
        ((b"gAMA", b"\0\0\0\1"),),
        ((b"cHRM", bytes(32)),),
        ((b"cHRM", b"\xff" * 32),),
        ((b"cHRM", b"abc"),),
        ((b"cHRM", struct.pack(">8I", *P3_POINTS)[:31]),),
        ((b"cHRM", struct.pack(">8I", *(30_000,) * 8)),),
        ((b"cICP", b"\x0c\x0d"),),
        ((b"sRGB", b"\0"), (b"gAMA", struct.pack(">I", 100_000))),
    ],
    ids=range(11),
)
def test_numbers_that_mean_no_colours_leave_the_picture_readable(chunks: Any) -> None:
    assert decode(numbered(*chunks)).size == (64, 64)
    if chunks[0][0] != b"gAMA" or chunks[0][1] in (bytes(4), b"\0"):
        assert read(numbered(*chunks)) == (ASKED, [])


def test_of_several_chunks_about_colour_the_first_in_rank_counts() -> None:
    """PNG, 4.3: cICP, iCCP, sRGB, then cHRM and gAMA."""
    numbers = (b"cICP", bytes((1, 13, 0, 1)))
    tagged = (b"iCCP", b"k\0\0" + zlib.compress(matrix("Display P3")))
    srgb = (b"sRGB", b"\0")
    linear = (b"gAMA", struct.pack(">I", 100_000))
    assert read(numbered(linear, srgb, tagged, numbers))[0] == ASKED
    assert near(read(numbered(linear, srgb, tagged))[0], RIGHT["Display P3"])
    assert read(numbered(linear, srgb))[0] == ASKED


def test_a_profile_from_numbers_has_the_published_colorants() -> None:
    """Display P3's, as Apple's profile has them."""
    made = build_matrix_profile(((0.68, 0.32), (0.265, 0.69), (0.15, 0.06), D65), None)
    for letter, expected in zip("rgb", COLORANTS["Display P3"], strict=True):
        entry = made.index(f"{letter}XYZ".encode())
        at = int.from_bytes(made[entry + 4 : entry + 8])
        values = struct.unpack(">3i", made[at + 8 : at + 20])
        assert [v / 65536 for v in values] == pytest.approx(expected, abs=2e-4)


def find_tag(data: bytes, name: bytes) -> bytes:
    """Return the content of a profile's tag."""
    for at in range(132, 132 + 12 * int.from_bytes(data[128:132]), 12):
        if data[at : at + 4] == name:
            start, size = (int.from_bytes(data[at + n : at + n + 4]) for n in (4, 8))
            return data[start : start + size]
    raise KeyError(name)


def test_a_profile_from_numbers_has_the_curve_and_the_white_of_lcmss_own() -> None:
    ours = build_matrix_profile(BT709, None)
    theirs = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for name in (b"wtpt", b"rTRC", b"gTRC", b"bTRC"):
        assert find_tag(ours, name) == find_tag(theirs, name)
    assert ours[10:24] == theirs[10:24]  # version 4's form, and the kinds of colours
    assert ours[68:80] == theirs[68:80]  # the white of the connection space
    assert int.from_bytes(ours[:4]) == len(ours)


def test_a_difference_of_more_than_a_rounding_is_converted() -> None:
    """A red that is a thousandth off makes 2 of 255 somewhere, and half of that makes 1."""
    image = gradient(256, 256)
    for off, same in ((0.0005, True), (0.001, False)):
        points = ((0.64 + off, 0.33), *BT709[1:])
        tagged = saved(image, "PNG", icc_profile=build_matrix_profile(points, None))
        assert (decode(tagged).tobytes() == image.tobytes()) is same
