"""Files become upright RGB pictures, checked by content and size before decoding."""

import functools
import io
import itertools
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

import pytest
from PIL import Image, ImageOps, JpegImagePlugin

from worker.errors import ImageTooLarge, ImageUnreadable, InvalidInput
from worker.media import header, images, webp
from worker.media.images import MIME_TYPES, decode, encode
from worker.media.orientation import UPRIGHT, read_orientation
from worlds.files import chunk, exif, gradient, jpeg_claiming, png, riff, saved, webp_canvas
from worlds.profiles import matrix

PICTURE = gradient()


def _lossless(kind: str) -> dict[str, object]:
    return {"lossless": True} if kind == "WEBP" else {}


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_pixels_come_back_as_they_were(kind: str, mode: str) -> None:
    image = PICTURE.convert(mode)
    assert decode(saved(image, kind, **_lossless(kind))).tobytes() == image.convert("RGB").tobytes()


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_a_jpeg_of_any_kind_is_read(options: dict[str, object]) -> None:
    decoded = decode(saved(PICTURE, "JPEG", quality=95, **options))
    assert (decoded.mode, decoded.size) == ("RGB", PICTURE.size)


@pytest.mark.parametrize("mode", ["1", "P", "LA", "I;16", "CMYK", "L"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    kind = "JPEG" if mode == "CMYK" else "PNG"
    image = PICTURE.convert("L").convert("I;16") if mode == "I;16" else PICTURE.convert(mode)
    decoded = decode(saved(image, kind))
    assert (decoded.mode, decoded.size) == ("RGB", PICTURE.size)


def test_sixteen_bits_are_scaled_to_eight_and_not_clipped() -> None:
    row = b"\0" + b"".join(struct.pack(">H", value) for value in range(0, 65536, 1024))
    decoded = decode(png(64, 64, bits=16, colour=0, raw=row * 64))
    assert [decoded.getpixel((x, 0)) for x in (0, 1, 63)] == [(0,) * 3, (4,) * 3, (252,) * 3]
    rgb = decode(
        png(64, 64, bits=16, colour=2, raw=(b"\0" + b"\x80\x00\x40\x00\x20\x00" * 64) * 64)
    )
    assert rgb.getpixel((5, 5)) == (0x80, 0x40, 0x20)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_transparency_is_laid_over_white(kind: str) -> None:
    image = Image.new("RGBA", (64, 64), (255, 0, 0, 255))
    image.paste((0, 0, 255, 0), (0, 0, 32, 64))
    image.paste((0, 0, 0, 128), (0, 0, 64, 16))
    decoded = decode(saved(image, kind, exact=True, **_lossless(kind)))
    assert decoded.getpixel((5, 40)) == (255, 255, 255)
    assert decoded.getpixel((50, 40)) == (255, 0, 0)
    assert decoded.getpixel((5, 5)) == (127, 127, 127)


def test_transparent_colours_of_palette_grey_and_rgb_are_laid_over_white() -> None:
    palette = Image.new("P", (32, 32), 1)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    assert decode(saved(palette, "PNG", transparency=1)).getpixel((3, 3)) == (255, 255, 255)
    assert decode(saved(palette, "PNG", transparency=0)).getpixel((3, 3)) == (0, 255, 0)
    grey = Image.new("L", (32, 32), 7)
    assert decode(saved(grey, "PNG", transparency=7)).getpixel((3, 3)) == (255, 255, 255)
    rgb = Image.new("RGB", (32, 32), (1, 2, 3))
    assert decode(saved(rgb, "PNG", transparency=(1, 2, 3))).getpixel((3, 3)) == (255, 255, 255)
    raw = (b"\0" + b"\x80\x10" * 32) * 32
    for clear, expected in ((b"\x80\x10", 255), (b"\x80\x11", 0x80)):
        wide = png(32, 32, bits=16, colour=0, raw=raw, extra=chunk(b"tRNS", clear))
        assert decode(wide).getpixel((3, 3)) == (expected,) * 3


def test_of_sixteen_bits_every_shade_but_the_transparent_one_is_opaque() -> None:
    raw = (b"\0" + bytes(2 * 32)) * 32
    data = png(32, 32, bits=16, colour=0, raw=raw, extra=chunk(b"tRNS", b"\x80\x11"))
    assert decode(data).getpixel((3, 3)) == (0, 0, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    data = saved(PICTURE, kind, exif=exif(orientation), **_lossless(kind))
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    decoded = decode(data)
    assert decoded.size == ((48, 64) if orientation >= 5 else (64, 48))
    assert decoded.tobytes() == expected.tobytes()
    assert set(UPRIGHT) == set(range(2, 9))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize(
    "broken", [b"", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"MM\0*" * 9]
)
def test_broken_exif_leaves_the_picture_as_it_is(broken: bytes) -> None:
    expected = decode(saved(PICTURE, "JPEG"))
    assert decode(saved(PICTURE, "JPEG", exif=broken)) == expected


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_ignored(orientation: int) -> None:
    expected = decode(saved(PICTURE, "JPEG"))
    assert decode(saved(PICTURE, "JPEG", exif=exif(orientation))) == expected


@pytest.mark.parametrize(
    "written",
    [None, b"Exif\0\0", b"MM\0*" * 9, b"MM\0*\0\0\0\x08\0\1\1\x12\0\2\0\0\0\x026\0\0\0" + bytes(4)],
    ids=["none", "empty", "broken", "a word"],
)
def test_a_picture_is_upright_unless_a_number_says_otherwise(written: bytes | None) -> None:
    assert read_orientation(written, None) == 1
    assert read_orientation(exif(6), None) == 6


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_an_animation_gives_its_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "green", "blue")]
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:], **_lossless(kind))
    assert Image.open(io.BytesIO(data)).n_frames == 3  # type: ignore[attr-defined]
    assert decode(data).getpixel((5, 5)) == (255, 0, 0)


def test_a_telephones_picture_of_several_pictures_gives_the_first() -> None:
    first, second = gradient(64, 48), Image.new("RGB", (32, 24), "red")
    data = saved(first, "MPO", save_all=True, append_images=[second])
    assert decode(data).tobytes() == decode(saved(first, "JPEG")).tobytes()


def test_no_metadata_survives() -> None:
    for kind in ("PNG", "JPEG", "WEBP"):
        data = saved(
            PICTURE, kind, exif=exif(6), icc_profile=b"profile" * 40, xmp=b"<xmp>home</xmp>"
        )
        decoded = decode(data)
        assert decoded.info == {}
        again = b"".join(encode(decoded, name) for name in MIME_TYPES)
        for trace in (b"profile", b"taken at home", b"xmp", b"Exif", b"iCCP"):
            assert trace not in again


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff",
        b"\xff\xd8\xff\xd9",
        b"RIFF\0\0\0\0WEBP",
        b"GIF89a" + bytes(100),
        b"GIF89a",
        saved(PICTURE, "GIF")[:-200],
        saved(PICTURE, "GIF")[:781] + b";" + saved(PICTURE, "GIF")[781:],
        b"\0\0\0\x18ftypisom" + bytes(100),
        b"\0\0\0\x18ftypavif" + bytes(100),
        b"\0\0\0\x18ftypheic" + bytes(100),
        b"\0\0\0\x18ftypmif1" + bytes(100),
        b"BM" + bytes(100),
        b"II*\0" + bytes(100),
        b"%PDF-1.7\n" + bytes(100),
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n",
        bytes(10_000),
        saved(PICTURE, "PNG")[:-200],
        saved(PICTURE, "JPEG")[:-200],
        saved(PICTURE, "WEBP")[:-200],
        saved(PICTURE, "BMP"),
        saved(PICTURE, "TIFF"),
        saved(PICTURE, "PPM"),
        saved(PICTURE, "JPEG2000"),
        saved(PICTURE, "ICO"),
        b"\x00" + saved(PICTURE, "PNG"),
        png(64, 64, raw=b"\0"),
        png(64, 64, bits=3),
        png(64, 64, colour=9),
        png(64, 64, raw=b"\x09" * 64 * 193),
        png(64, 64).replace(b"IDAT", b"IDOT"),
        saved(PICTURE, "PNG").replace(b"IHDR", b"IHDX"),
        riff(webp_canvas(64, 64), (b"JUNK", bytes(10))),
        riff((b"VP8L", b"\x2f" + struct.pack("<I", 63 << 14 | 63) + bytes(20))),
        riff((b"VP8 ", bytes(30))),
    ],
    ids=range(37),
)
def test_anything_else_is_unreadable(data: bytes) -> None:
    with pytest.raises(ImageUnreadable):
        decode(data)


@functools.cache
def _bombs() -> dict[str, bytes]:
    frame = saved(PICTURE, "WEBP", lossless=True)[12:]
    return {
        "png claims": png(60_000, 60_000),
        "png of 2^31": png(2**31 - 1, 2**31 - 1),
        "png is true": png(8000, 8000, colour=0, raw=bytes(8001 * 8000)),
        "jpeg claims": jpeg_claiming(saved(PICTURE, "JPEG"), 65_500, 65_500),
        "gif canvas": b"GIF89a" + struct.pack("<HH", 60_000, 60_000) + saved(PICTURE, "GIF")[10:],
        "avif is true": saved(Image.new("RGB", (1500, 1500)), "AVIF", speed=10),
        "webp canvas": riff(webp_canvas(16_000, 16_000), (frame[:4], frame[8:])),
        "webp canvas of 2^48": riff(webp_canvas(2**24, 2**24)),
        "webp lossless": riff((b"VP8L", b"\x2f" + struct.pack("<I", 0x0FFF_FFFF) + bytes(99))),
        "webp lossy": riff((b"VP8 ", b"\x10\0\0\x9d\x01\x2a\xff\x3f\xff\x3f" + bytes(99))),
    }


@pytest.mark.parametrize("name", _bombs())
def test_a_bomb_is_recognised_by_its_header(name: str) -> None:
    data = _bombs()[name]
    tracemalloc.start()
    try:
        with pytest.raises(ImageTooLarge, match=r"at most (1000000|500000) pixels"):
            decode(data, max_pixels=1_000_000)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("size", [(15, 64), (64, 15), (1, 1)])
def test_a_picture_under_sixteen_pixels_is_invalid(size: tuple[int, int]) -> None:
    with pytest.raises(InvalidInput, match="at least 16"):
        decode(saved(Image.new("RGB", size), "PNG"))
    assert decode(saved(Image.new("RGB", (16, 16)), "PNG")).size == (16, 16)


def test_a_picture_that_is_almost_a_line_is_invalid() -> None:
    assert decode(saved(Image.new("RGB", (512, 16)), "PNG"))
    with pytest.raises(InvalidInput, match="longer side must be at most 32 times"):
        decode(saved(Image.new("RGB", (16, 513)), "PNG"))


def test_the_limit_of_pixels_is_inclusive() -> None:
    data = saved(Image.new("RGB", (100, 100)), "PNG")
    assert decode(data, max_pixels=10_000).size == (100, 100)
    with pytest.raises(ImageTooLarge):
        decode(data, max_pixels=9_999)


def test_a_webp_may_have_half_the_pixels_since_its_decoder_takes_twice_the_memory() -> None:
    data = saved(Image.new("RGB", (100, 100)), "WEBP")
    assert decode(data, max_pixels=20_000).size == (100, 100)
    with pytest.raises(ImageTooLarge):
        decode(data, max_pixels=19_999)


@pytest.mark.parametrize(
    ("mode", "kind", "options"),
    [
        ("RGB", "PNG", {}),
        ("RGBA", "PNG", {}),
        ("1", "PNG", {}),
        ("P", "PNG", {"transparency": 0}),
        ("RGB", "PNG", {"icc_profile": matrix("Display P3")}),
        ("RGBA", "PNG", {"icc_profile": matrix("Display P3")}),
        ("RGB", "JPEG", {"exif": exif(6), "icc_profile": matrix("Display P3")}),
        ("RGB", "JPEG", {"progressive": True}),
        ("P", "GIF", {"transparency": 0}),
        ("P", "GIF", {}),
        ("RGB", "AVIF", {"speed": 10}),
    ],
)
def test_decoding_takes_ten_bytes_a_pixel_at_most(
    mode: str, kind: str, options: dict[str, Any]
) -> None:
    """A file of a few hundred bytes may be a large picture; what it costs is bounded."""
    data = saved(Image.new(mode, (4000, 4000)), kind, **options)
    status = Path("/proc/self/status")

    def megabytes(name: str) -> int:
        line = next(line for line in status.read_text().splitlines() if name in line)
        return int(line.split()[1]) // 1000

    Path("/proc/self/clear_refs").write_text("5")
    before = megabytes("VmRSS")
    decode(data)
    assert megabytes("VmHWM") - before < 16 * 10 + 4


@pytest.mark.parametrize("size", [(16, 16), (17, 31), (500, 333)])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_our_reading_of_a_canvas_is_the_decoders(mode: str, size: tuple[int, int]) -> None:
    for options in ({}, {"lossless": True}, {"exif": exif(3)}):
        assert webp.read_canvas(saved(gradient(*size, mode=mode), "WEBP", **options)) == size


@pytest.mark.parametrize(
    ("head", "canvas"),
    [
        (b"VP8L\0\0\0\0\x2f\xff\xff\xff\xff", (16384, 16384)),
        (b"VP8L\0\0\0\0\x2f\0\0\0\0more", (1, 1)),
        (b"VP8L\0\0\0\0\x2f\0\0\0", None),
        (b"VP8L\0\0\0\0\x2e\0\0\0\0", None),
        (b"VP8X\0\0\0\0\0\0\0\0\xff\xff\xff\1\0\0", (1 << 24, 2)),
        (b"VP8X\0\0\0\0\0\0\0\0\xff\xff\xff\1\0", None),
        (b"VP8 \0\0\0\0abc\x9d\x01\x2a\xff\xff\1\xc0", (16383, 1)),
        (b"VP8 \0\0\0\0abc\x9d\x01\x2a\xff\xff\1", None),
        (b"VP8 \0\0\0\0abc\x9d\x01\x2b\xff\xff\1\xc0", None),
        (b"ANIM", None),
        (b"ANIM\0\0\0\0\x2f" + bytes(9), None),
        (b"", None),
    ],
)
def test_a_canvas_is_read_from_the_first_chunk_if_it_is_complete(
    head: bytes, canvas: tuple[int, int] | None
) -> None:
    assert webp.read_canvas(b"RIFF\0\0\0\0WEBP" + head) == canvas


@pytest.mark.parametrize("colour", ["red", "black", (1, 2, 3, 4)])
def test_a_webp_of_almost_no_bytes_is_read(colour: Any) -> None:
    mode = "RGBA" if isinstance(colour, tuple) else "RGB"
    data = saved(Image.new(mode, (16, 16), colour), "WEBP", lossless=True)
    assert decode(data).size == (16, 16)


def test_no_other_decoder_gets_a_file_than_that_of_its_format() -> None:
    """A Photo CD is recognised 2048 bytes from its start, where a GIF may have anything."""
    data = bytearray(b"GIF89a" + bytes(7) + b"," + bytes(1_200_000))
    data[2048:2052] = b"PCD_"
    assert Image.open(io.BytesIO(data)).format == "PCD"
    with pytest.raises(ImageUnreadable):
        decode(bytes(data))


class Counted:
    """A lock that counts."""

    entered = left = 0

    def __enter__(self) -> None:
        self.entered += 1

    def __exit__(self, *_: object) -> None:
        self.left += 1


@pytest.mark.parametrize(
    ("size", "waits"), [((64, 48), 0), ((48, 64), 0), ((65, 48), 1), ((64, 49), 1)]
)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_only_large_pictures_wait_for_each_other(
    kind: str, size: tuple[int, int], waits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted()
    monkeypatch.setattr(images, "LARGE", 64 * 48)
    monkeypatch.setattr(images, "_one_at_a_time", counted)
    decode(saved(Image.new("RGB", size), kind))
    assert counted.left == counted.entered
    assert bool(counted.entered) == bool(waits)


@pytest.mark.parametrize(("size", "waits"), [((2000, 2000), False), ((2000, 2001), True)])
def test_pictures_over_four_million_pixels_are_large(
    size: tuple[int, int], waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted()
    monkeypatch.setattr(images, "_one_at_a_time", counted)
    decode(saved(Image.new("L", size), "PNG"))
    assert bool(counted.entered) == waits


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "AVIF"])
def test_a_format_is_recognised_by_content(kind: str) -> None:
    assert header.detect_kind(saved(PICTURE, kind)) == kind.lower()


@pytest.mark.parametrize(
    "data",
    [
        b"RIFF\0\0\0\0WAVE",
        b"RAFF\0\0\0\0WEBP",
        b"GIF88a",
        b"\xff\xd8\xfe",
        b"\x89PNG\r\n\x1a\r",
        b"\0\0\0\x18moovavif",
    ],
)
def test_what_only_resembles_a_format_is_none(data: bytes) -> None:
    assert header.detect_kind(data + bytes(20)) is None


@pytest.mark.parametrize(
    "brand",
    [b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"],
)
def test_a_heic_is_recognised_by_any_of_its_brands(brand: bytes) -> None:
    assert header.detect_kind(b"\0\0\0\x18ftyp" + brand + bytes(4) + b"mif1" + b"miaf") == "heic"
    assert header.detect_kind(b"\0\0\0\x18ftypmiaf" + bytes(4) + b"miaf" + brand) == "heic"
    assert header.detect_kind(b"\0\0\0\x10ftypmiaf" + bytes(4) + brand) is None  # after the box


@pytest.mark.parametrize(("others", "kind"), [(123, "heic"), (124, None)])
def test_a_heics_brand_stands_in_its_first_512_bytes(others: int, kind: str | None) -> None:
    head = b"\0\0\2\4ftypmp42" + bytes(4) + b"mp41" * others
    assert header.detect_kind(head + b"heic") == kind


def test_an_avif_among_other_brands_is_one() -> None:
    for brand in (b"avif", b"avis"):
        assert header.detect_kind(b"\0\0\0\x18ftypmif1" + bytes(4) + b"miaf" + brand) == "avif"


def test_every_word_of_what_is_read_names_the_same_formats() -> None:
    """The kinds stand in one constant; the texts that cannot use it say the same."""
    words = header.KINDS.replace(" or ", ", ").split(", ")
    assert tuple(word.lower() for word in words) == get_args(header.Kind)
    root = Path(__file__).parents[2]
    for text in (
        ImageUnreadable.__doc__ or "",
        decode.__doc__ or "",
        (root / "docs" / "security.md").read_text(encoding="utf-8"),
        (root / "docs" / "troubleshooting.md").read_text(encoding="utf-8"),
    ):
        assert header.KINDS in " ".join(text.split())


def test_a_gif_gives_its_first_frame_with_transparency_over_white() -> None:
    frames = [Image.new("P", (32, 32), index) for index in (1, 0)]
    for frame in frames:
        frame.putpalette([0, 0, 255, 255, 0, 0])
    frames[0].paste(0, (0, 0, 16, 32))
    data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:], transparency=0)
    decoded = decode(data)
    assert (decoded.getpixel((3, 3)), decoded.getpixel((30, 3))) == ((255,) * 3, (255, 0, 0))
    plain = saved(PICTURE, "GIF")
    assert decode(plain).tobytes() == Image.open(io.BytesIO(plain)).convert("RGB").tobytes()


@pytest.mark.parametrize(
    "block",
    [
        b"!\xfe" + b"\1a" * 100_000 + b"\0",
        b"!\xfe" + b"\x09" + b"a" * 9 + b"\xff" + b"a" * 255 + b"\0",
        b"!\xff\x0bNETSCAPE2.0\3\1\0\0\0",
        b"!\xff\0" * 100_000,
        b"!\xf9\0",
        b"!\xf9\4\0\0\0\1\0",
        b"!\xf9\1\1\0",
        b"!\xf9\3\1\0\0\0",
        b"!\1\3abc\0",
        b"\0" * 1001,
    ],
    ids=range(10),
)
def test_what_precedes_a_gifs_picture_does_not_matter(block: bytes) -> None:
    data = saved(PICTURE, "GIF")
    at = 13 + 3 * 256
    assert data[10] & 0x87 == 0x87
    assert data[at : at + 1] in b"!,"
    assert decode(data[:at] + block + data[at:]).tobytes() == decode(data).tobytes()


def test_a_colour_once_made_transparent_stays_so() -> None:
    """As Pillow has it, when several blocks speak of the same picture."""
    data = saved(Image.new("L", (32, 32), 7), "GIF")
    at = 13 + (3 << (data[10] & 7) + 1)
    control = b"!\xf9\4%c\0\0%c\0"
    for flags, expected in ((b"\1\0", 255), (b"\1\1", 7), (b"\0\0", 7)):
        blocks = b"".join(
            control % (flag, index) for flag, index in zip(flags, b"\x00\x09", strict=True)
        )
        shown = decode(data[:at] + blocks + data[at:]).getpixel((3, 3))
        assert shown == (expected,) * 3


def test_a_gif_s_canvas_is_white_where_its_first_picture_leaves_it_bare() -> None:
    """As in browsers; the first colour of the table, here red, has no part in it."""
    picture = Image.new("P", (16, 24), 1)
    picture.putpalette([255, 0, 0, 0, 0, 255])
    data = bytearray(saved(picture, "GIF"))
    at = data.index(b",\0\0\0\0")
    data[6:10] = struct.pack("<HH", 40, 48)
    data[at + 1 : at + 5] = struct.pack("<HH", 8, 4)
    decoded = decode(bytes(data))
    expected = Image.new("RGB", (40, 48), "white")
    expected.paste((0, 0, 255), (8, 4, 24, 28))
    assert decoded.tobytes() == expected.tobytes()


def test_what_a_gifs_first_picture_leaves_clear_is_white_too() -> None:
    picture = Image.new("P", (16, 24), 1)
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.paste(0, (0, 0, 16, 8))
    data = bytearray(saved(picture, "GIF", transparency=0))
    at = data.index(b",\0\0\0\0")
    data[6:10] = struct.pack("<HH", 40, 48)
    data[at + 1 : at + 5] = struct.pack("<HH", 8, 4)
    decoded = decode(bytes(data))
    places = ((9, 5), (9, 20), (39, 47))
    assert [decoded.getpixel(place) for place in places] == [
        (255, 255, 255),
        (0, 0, 255),
        (255, 255, 255),
    ]


@pytest.mark.parametrize("flags", [0, 0x7F])
def test_a_gif_may_have_its_colours_with_its_picture(flags: int) -> None:
    data = saved(PICTURE, "GIF")
    table, rest = data[13:781], data[781:]
    at = rest.index(b",\0\0\0\0") + 9
    own = rest[:at] + bytes((rest[at] | 0x87,)) + table + rest[at + 1 :]
    moved = data[:10] + bytes((flags,)) + data[11:13] + own
    assert decode(moved).tobytes() == decode(data).tobytes()


def test_a_gif_whose_frame_leaves_its_canvas_is_checked_by_both() -> None:
    data = bytearray(saved(PICTURE, "GIF"))
    at = data.index(b",\0\0\0\0")
    data[6:10] = struct.pack("<HH", 16, 16)
    assert decode(bytes(data)).size == PICTURE.size
    data[at + 1 : at + 5] = struct.pack("<HH", 60_000, 60_000)
    with pytest.raises(ImageTooLarge):
        decode(bytes(data))


@pytest.mark.parametrize("name", ["png", "jpeg", "webp"])
def test_what_is_encoded_is_of_that_format_and_reads_back(name: header.Format) -> None:
    data = encode(PICTURE, name, 95)
    assert (header.detect_kind(data), decode(data).size) == (name, (64, 48))
    difference = max(
        abs(a - b) for a, b in zip(decode(data).tobytes(), PICTURE.tobytes(), strict=True)
    )
    assert difference == 0 if name == "png" else difference < 24


@pytest.mark.parametrize("name", ["jpeg", "webp"])
def test_quality_buys_bytes(name: header.Format) -> None:
    noise = Image.effect_noise((256, 256), 60).convert("RGB")
    sizes = [len(encode(noise, name, quality)) for quality in (1, 50, 90, 100)]
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize(("quality", "sampling"), [(1, 2), (89, 2), (90, 0), (100, 0)])
def test_a_jpeg_has_its_full_colours_from_quality_90_on(quality: int, sampling: int) -> None:
    opened = Image.open(io.BytesIO(encode(PICTURE, "jpeg", quality)))
    assert JpegImagePlugin.get_sampling(opened) == sampling


def test_of_warnings_only_pillows_are_hidden() -> None:
    """It warns of a caller's broken EXIF; what else is warned of is for the operator."""
    script = (
        "import sys, warnings\n"
        "from worker.media.images import decode\n"
        "decode(sys.stdin.buffer.read())\n"
        "warnings.warn('of ours')\n"
    )
    data = saved(PICTURE, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff")
    with pytest.warns(UserWarning, match="EXIF"):
        read_orientation(b"Exif\0\0II*\0\x08\0\0\0\xff\xff", None)
    done = subprocess.run(
        [sys.executable, "-c", script], input=data, capture_output=True, check=True
    )
    assert done.stderr.count(b"Warning") == done.stderr.count(b"of ours") == 1


def test_a_png_says_how_it_was_made_only_on_request() -> None:
    plain = encode(PICTURE, "png")
    assert b"tEXt" not in plain
    assert b"iTXt" not in plain
    assert b"tIME" not in plain


def test_the_same_picture_gives_the_same_bytes() -> None:
    for name in MIME_TYPES:
        assert encode(PICTURE, name) == encode(PICTURE.copy(), name)


def test_pictures_can_be_decoded_and_encoded_from_many_threads() -> None:
    files = [saved(gradient(200, 100 + i), "PNG", exif=exif(i)) for i in range(1, 9)] * 4
    expected = [decode(data).tobytes() for data in files]
    with ThreadPoolExecutor(8) as threads:
        assert [image.tobytes() for image in threads.map(decode, files)] == expected


def test_encoding_leaves_the_event_loops_thread_free() -> None:
    """The encoder frees the GIL: another thread goes on while a large PNG is made."""
    large = Image.effect_noise((2048, 2048), 60).convert("RGB")
    done = threading.Event()

    def work() -> None:
        encode(large, "png")
        done.set()

    thread = threading.Thread(target=work)
    moments = [time.process_time()]  # which goes on only while the encoder does
    thread.start()
    while not done.wait(0.001):
        moments.append(time.process_time())
    thread.join()
    longest = max(later - sooner for sooner, later in itertools.pairwise(moments))
    assert longest < (moments[-1] - moments[0]) / 2


@pytest.mark.parametrize(("height", "fits"), [(5000, True), (5001, False)])
def test_a_picture_may_have_25_million_pixels_where_nothing_else_is_said(
    height: int, *, fits: bool
) -> None:
    data = saved(Image.new("1", (5000, height)), "PNG")
    if fits:
        assert decode(data).size == (5000, height)
        return
    with pytest.raises(ImageTooLarge, match="at most 25000000 pixels"):
        decode(data)


def test_a_png_is_packed() -> None:
    assert len(encode(Image.new("RGB", (512, 512), "teal"), "png")) < 512 * 512 * 3 / 50
