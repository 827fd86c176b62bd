"""What a file has next to its picture never decides whether the picture is read."""

import io
import struct
import time
import tracemalloc
import zlib
from typing import Any

import pytest
from PIL import Image

from worker.errors import ImageUnreadable, WorkerError
from worker.media import gif, jpeg, webp
from worker.media import png as pngs
from worker.media.images import decode
from worlds.files import chunk, exif, gradient, png, riff, saved, webp_canvas

PICTURE = gradient()
PNG = saved(PICTURE, "PNG")
WEBP = saved(PICTURE, "WEBP", lossless=True)
PIXELS = PICTURE.tobytes()
NAMES = [b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf", b"gAMA", b"cHRM", b"sRGB", b"cICP", b"pHYs"]
NAMES += [b"tIME", b"bKGD", b"hIST", b"sPLT", b"sBIT", b"acTL", b"fcTL", b"caBX", b"prVt", b"tRNS"]


def after_head(*chunks: bytes, data: bytes = PNG) -> bytes:
    return data[:33] + b"".join(chunks) + data[33:]


def before_end(*chunks: bytes) -> bytes:
    return PNG[:-12] + b"".join(chunks) + PNG[-12:]


def broken(name: bytes, content: bytes) -> bytes:
    """Return a chunk whose checksum is wrong."""
    return chunk(name, content)[:-4] + b"\x12\x34\x56\x78"


def packed(size: int) -> bytes:
    return zlib.compress(bytes(size))


@pytest.mark.parametrize("size", [1_000_000, 2_000_000, 9_000_000, 80_000_000])
@pytest.mark.parametrize(
    ("name", "head"),
    [
        (b"zTXt", b"workflow\0\0"),
        (b"iTXt", b"workflow\0\1\0\0\0"),
        (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0"),
        (b"zTXt", b"Raw profile type exif\0\0"),
        (b"iCCP", b"profile\0\0"),
    ],
)
def test_text_and_profiles_of_any_size_are_read_in_little_memory(
    name: bytes, head: bytes, size: int
) -> None:
    data = after_head(chunk(name, head + packed(size)))
    tracemalloc.start()
    try:
        assert decode(data).tobytes() == PIXELS
        assert tracemalloc.get_traced_memory()[1] < 12_000_000
    finally:
        tracemalloc.stop()
    assert decode(before_end(chunk(name, head + packed(size)))).tobytes() == PIXELS


def test_plain_text_of_many_megabytes_is_read() -> None:
    """Over 64 MB of text in all, more than Pillow allows, before and after pixels."""
    texts = chunk(b"tEXt", b"prompt\0" + b"a" * 7_000_000) * 10
    assert decode(after_head(texts)).tobytes() == PIXELS
    assert decode(before_end(texts)).tobytes() == PIXELS


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("content", [b"", b"\0", b"k\0\0", b"k\0\7xx", b"\xff" * 40, bytes(26)])
def test_an_ancillary_chunk_of_nonsense_is_as_none(name: bytes, content: bytes) -> None:
    for bent in (
        after_head(broken(name, content)),
        before_end(broken(name, content)),
        before_end(chunk(name, content)),
    ):
        assert decode(bent).size == PICTURE.size
        if name not in {b"tRNS", b"gAMA"} or bent == after_head(broken(name, content)):
            assert decode(bent).tobytes() == PIXELS
    if name not in {b"tRNS", b"gAMA"}:
        assert decode(after_head(chunk(name, content))).tobytes() == PIXELS


@pytest.mark.parametrize("count", [5000, 200_000])
@pytest.mark.parametrize("name", [b"tEXt", b"zTXt", b"iTXt", b"prVt", b"eXIf"])
def test_thousands_of_chunks_are_read(name: bytes, count: int) -> None:
    content = {b"zTXt": b"key\0\0" + packed(9)}.get(name, b"k\0value of it")
    start = time.process_time()
    assert decode(after_head(chunk(name, content) * count)).tobytes() == PIXELS
    assert time.process_time() - start < 20


@pytest.mark.parametrize("clear", [b"", b"\0", b"\0\1\0\2\0"])
def test_a_transparent_colour_that_is_cut_short_is_as_none(clear: bytes) -> None:
    assert decode(after_head(chunk(b"tRNS", clear))).tobytes() == PIXELS
    shade = saved(PICTURE.convert("L"), "PNG")
    bent = after_head(chunk(b"tRNS", clear[:1]), data=shade)
    assert decode(bent).tobytes() == PICTURE.convert("L").convert("RGB").tobytes()


def test_a_transparent_colour_counts_only_with_its_checksum() -> None:
    data = saved(Image.new("RGB", (32, 32), (1, 2, 3)), "PNG")
    clear = struct.pack(">3H", 1, 2, 3)
    assert decode(after_head(chunk(b"tRNS", clear), data=data)).getpixel((3, 3)) == (255,) * 3
    assert decode(after_head(broken(b"tRNS", clear), data=data)).getpixel((3, 3)) == (1, 2, 3)


@pytest.mark.parametrize("name", [b"IHDR", b"PLTE"])
def test_a_critical_chunk_with_a_wrong_checksum_is_unreadable(name: bytes) -> None:
    data = saved(PICTURE.convert("P"), "PNG")
    at = data.index(name)
    end = at + 4 + int.from_bytes(data[at - 4 : at])
    with pytest.raises(ImageUnreadable):
        decode(data[:end] + bytes(4) + data[end + 4 :])


@pytest.mark.parametrize("missing", [1, 4, 11, 12, 13, 16])
def test_a_png_whose_pixels_are_complete_needs_no_end(missing: int) -> None:
    assert decode(PNG[:-missing]).tobytes() == PIXELS
    with pytest.raises(ImageUnreadable):
        decode(PNG[: len(PNG) - 200])


def test_pixels_in_many_chunks_are_joined() -> None:
    body = PNG[41 : 41 + int.from_bytes(PNG[33:37])]
    single = b"".join(chunk(b"IDAT", body[at : at + 1]) for at in range(len(body)))
    assert decode(PNG[:33] + single + PNG[-12:]).tobytes() == PIXELS
    apart = single.replace(b"\0\0\0\1IDAT", chunk(b"tEXt", b"a\0b") + b"\0\0\0\1IDAT")
    assert decode(PNG[:33] + apart).tobytes() == PIXELS


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_place_of_the_orientation_in_a_png_is_read(orientation: int) -> None:
    tagged = exif(orientation)[6:]
    xmp = f'<x xmlns:tiff="" tiff:Orientation="{orientation}"/>'.encode()
    hexed = b"\nexif\n  99\n" + tagged.hex().encode() + b"\n"
    expected = decode(saved(PICTURE, "PNG", exif=exif(orientation)))
    for content in (
        chunk(b"eXIf", tagged),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0en\0key\0" + zlib.compress(xmp)),
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(hexed)),
        chunk(b"tEXt", b"Raw profile type exif\0" + hexed),
    ):
        for data in (after_head(content), before_end(content)):
            assert decode(data).tobytes() == expected.tobytes()
    for content in (
        broken(b"eXIf", tagged),
        chunk(b"tEXt", b"XML:com.adobe.xmp\0" + xmp),
        chunk(b"tEXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp),
        chunk(b"iTXt", b"XML:com.adobe.other\0\0\0\0\0" + xmp),
        chunk(b"tEXt", b"Raw profile type other\0" + hexed),
    ):
        assert decode(after_head(content)).tobytes() == PIXELS
    assert decode(PNG + chunk(b"eXIf", tagged)).tobytes() == PIXELS


@pytest.mark.parametrize("written", [b"\nexif\n  4\nzz", b"\nexif\n  4\n\xff\xfe", b"", b"\n\n\n"])
def test_exif_that_is_no_hexadecimal_text_says_nothing(written: bytes) -> None:
    assert (
        decode(after_head(chunk(b"tEXt", b"Raw profile type exif\0" + written))).tobytes() == PIXELS
    )


def test_the_chunk_of_exif_counts_before_its_hexadecimal_text() -> None:
    hexed = b"\nexif\n  99\n" + exif(3)[6:].hex().encode() + b"\n"
    text = chunk(b"tEXt", b"Raw profile type exif\0" + hexed)
    data = after_head(chunk(b"eXIf", exif(6)[6:]), text)
    assert decode(data).tobytes() == decode(saved(PICTURE, "PNG", exif=exif(6))).tobytes()


def test_the_first_frame_of_a_moving_png_is_placed_where_it_belongs() -> None:
    """As Pillow has it: what the frame leaves out is black."""
    small = saved(Image.new("RGB", (16, 16), "red"), "PNG")
    frame = struct.pack(">5I2H2B", 0, 16, 16, 8, 4, 1, 1, 0, 0)
    head = saved(Image.new("RGB", (48, 32)), "PNG")[:33]
    data = head + chunk(b"fcTL", frame) + small[33:]
    decoded = decode(data)
    assert (decoded.size, decoded.getpixel((9, 9))) == ((48, 32), (255, 0, 0))
    assert decoded.getpixel((40, 25)) == (0, 0, 0)
    assert decoded.tobytes() == Image.open(io.BytesIO(data)).convert("RGB").tobytes()


@pytest.mark.parametrize(
    ("size", "place"),
    [
        ((48, 16), (0, 0)),
        ((48, 16), (0, 16)),
        ((16, 32), (32, 0)),
        ((1, 32), (0, 0)),
        ((48, 1), (0, 31)),
    ],
)
def test_the_first_frame_of_a_moving_png_may_reach_the_edges(
    size: tuple[int, int], place: tuple[int, int]
) -> None:
    small = saved(Image.new("RGB", size, "red"), "PNG")
    frame = struct.pack(">5I2H2B", 0, *size, *place, 1, 1, 0, 0)
    head = saved(Image.new("RGB", (48, 32)), "PNG")[:33]
    decoded = decode(head + chunk(b"fcTL", frame) + small[33:])
    expected = Image.new("RGB", (48, 32))
    expected.paste((255, 0, 0), (*place, place[0] + size[0], place[1] + size[1]))
    assert decoded.tobytes() == expected.tobytes()


def test_of_two_frames_before_any_pixels_the_second_says_where_they_are() -> None:
    """As Pillow has it; each has the number that is due."""
    small = saved(Image.new("RGB", (16, 16), "red"), "PNG")
    pixels = small[41 : 41 + int.from_bytes(small[33:37])]
    first = struct.pack(">5I2H2B", 0, 48, 32, 0, 0, 1, 1, 0, 0)
    second = struct.pack(">5I2H2B", 1, 16, 16, 8, 4, 1, 1, 0, 0)
    frames = chunk(b"fcTL", first) + chunk(b"fcTL", second) + chunk(b"fdAT", bytes(4) + pixels)
    decoded = decode(saved(Image.new("RGB", (48, 32)), "PNG")[:33] + frames + small[-12:])
    expected = Image.new("RGB", (48, 32))
    expected.paste((255, 0, 0), (8, 4, 24, 20))
    assert decoded.tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    "frame",
    [
        struct.pack(">5I2H2B", 1, 64, 48, 0, 0, 1, 1, 0, 0),  # not the first
        struct.pack(">5I2H2B", 0, 65, 48, 0, 0, 1, 1, 0, 0),
        struct.pack(">5I2H2B", 0, 0, 48, 0, 0, 1, 1, 0, 0),
        struct.pack(">5I2H2B", 0, 64, 0, 0, 0, 1, 1, 0, 0),
        struct.pack(">5I2H2B", 0, 64, 48, 1, 0, 1, 1, 0, 0),
        struct.pack(">5I2H2B", 0, 64, 48, 0, 1, 1, 1, 0, 0),
        struct.pack(">5I2H2B", 0, 64, 49, 0, 0, 1, 1, 0, 0),
        struct.pack(">5I2H2B", 0, 64, 48, 0, 0, 1, 1, 0, 0)[:-1],
    ],
    ids=range(8),
)
def test_a_frame_that_cannot_be_is_as_none(frame: bytes) -> None:
    assert decode(after_head(chunk(b"fcTL", frame))).tobytes() == PIXELS


@pytest.mark.parametrize(
    "early",
    [
        chunk(b"fcTL", struct.pack(">5I2H2B", 0, 64, 48, 0, 0, 1, 1, 0, 0)),
        chunk(b"tRNS", b"\0\1\0\2\0\3"),
        chunk(b"tRNS", b""),
    ],
)
def test_what_comes_before_the_size_does_not_count(early: bytes) -> None:
    assert decode(PNG[:8] + early + PNG[8:]).tobytes() == PIXELS


def test_a_moving_png_with_only_frames_gives_the_first() -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    data = saved(frames[0], "PNG", save_all=True, append_images=frames[1:])
    still = data.replace(b"IDAT", b"prVt")
    assert decode(still).getpixel((3, 3)) == (0, 0, 255)


@pytest.mark.parametrize("name", [b"EXIF", b"XMP ", b"ICCP", b"prVt"])
@pytest.mark.parametrize("content", [b"", b"\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"<" * 999])
@pytest.mark.parametrize("flags", [0, 0x2C])
def test_a_webp_is_read_whatever_is_next_to_its_picture(
    name: bytes, content: bytes, flags: int
) -> None:
    picture = (WEBP[12:16], WEBP[20 : 20 + int.from_bytes(WEBP[16:20], "little")])
    canvas = webp_canvas(64, 48, flags)
    for whole in (
        riff(canvas, (name, content), picture),
        riff(canvas, picture, (name, content)),
        riff(canvas, picture),
        riff(canvas, picture, *[(name, content)] * 3000),
    ):
        assert decode(whole).tobytes() == PIXELS
    ends = riff(canvas, picture, (name, content + bytes(100)))
    for missing in (1, 50, 100, 104):
        assert decode(ends[:-missing]).tobytes() == PIXELS
    lies = bytearray(riff(canvas, picture, (name, content)))
    for size in (0, 12, 2**32 - 1):
        lies[4:8] = size.to_bytes(4, "little")
        assert decode(bytes(lies)).tobytes() == PIXELS


@pytest.mark.parametrize("bit", range(8))
def test_each_flag_of_a_webp_is_of_one_chunk(bit: int) -> None:
    """And is not kept, as the chunk is not; the others are."""
    picture = (WEBP[12:16], WEBP[20 : 20 + int.from_bytes(WEBP[16:20], "little")])
    more = (b"ICCP", b"profile"), (b"EXIF", b"exif"), (b"XMP ", b"xmp")
    found = webp.strip(riff(webp_canvas(64, 48, 1 << bit), picture, *more))
    assert found.profile == (b"profile" if bit == 5 else None)
    assert found.exif == (b"exif" if bit == 3 else None)
    assert found.xmp == (b"xmp" if bit == 2 else None)
    assert found.pixels[20] == (0 if bit in {2, 3, 5} else 1 << bit)


def test_a_webp_without_a_canvas_has_nothing_next_to_its_picture() -> None:
    picture = (WEBP[12:16], WEBP[20 : 20 + int.from_bytes(WEBP[16:20], "little")])
    found = webp.strip(riff(picture, (b"ICCP", b"profile"), (b"EXIF", exif(6)), (b"XMP ", b"xmp")))
    assert (found.profile, found.exif, found.xmp) == (None, None, None)


def test_a_webps_chunk_counts_as_soon_as_its_head_is_complete() -> None:
    """A profile without its content gives a warning; what is left of a chunk's head gives none."""
    picture = (WEBP[12:16], WEBP[20 : 20 + int.from_bytes(WEBP[16:20], "little")])
    whole = riff(webp_canvas(64, 48, 0x20), picture)
    for end, count in ((b"ICCP" + bytes(4), 1), (b"ICCP" + bytes(3), 0), (b"", 0)):
        warnings: list[str] = []
        assert decode(whole + end, warn=warnings.append).tobytes() == PIXELS
        assert len(warnings) == count


def test_a_webp_that_is_cut_in_its_picture_is_unreadable() -> None:
    with pytest.raises(ImageUnreadable):
        decode(WEBP[:-20])
    moving = saved(PICTURE, "WEBP", save_all=True, append_images=[gradient(64, 48, "L")])
    first = decode(moving)
    assert decode(moving[:-20]).tobytes() == first.tobytes()
    with pytest.raises(ImageUnreadable):
        decode(moving[:100])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_a_webp_is_read_from_exif_or_xmp(orientation: int) -> None:
    xmp = f'<x xmlns:tiff="" tiff:Orientation="{orientation}"/>'.encode()
    expected = decode(saved(PICTURE, "PNG", exif=exif(orientation))).tobytes()
    for options in ({"exif": exif(orientation)}, {"xmp": xmp}):
        data = bytearray(saved(PICTURE, "WEBP", lossless=True, **options))
        assert decode(bytes(data)).tobytes() == expected
        data[20] = 0  # the canvas says that there is nothing else
        assert decode(bytes(data)).tobytes() == PIXELS


TINY: dict[str, tuple[Any, bytes, bytes, bytes]] = {
    "png": (pngs.strip, PNG[:33], chunk(b"prVt", b"abc"), PNG[33:]),
    "png text": (pngs.strip, PNG[:33], chunk(b"tEXt", b"k\0a longer text"), PNG[33:]),
    "png pixels": (pngs.strip, PNG[:33], chunk(b"IDAT", b""), PNG[33:]),
    "gif blocks": (gif.strip, b"GIF89a" + bytes(7) + b"!\xfe", b"\1a", b"\0;"),
    "gif long blocks": (gif.strip, b"GIF89a" + bytes(7) + b"!\xfe", b"\x0c" + b"a" * 12, b"\0;"),
    "gif extensions": (gif.strip, b"GIF89a" + bytes(7), b"!\xff\1a\0", b";"),
    "webp": (webp.strip, WEBP[:12], b"prVt\0\0\0\0", WEBP[12:]),
    "webp exif": (webp.strip, WEBP[:12], b"EXIF\2\0\0\0ab", WEBP[12:]),
}


@pytest.mark.parametrize("name", TINY)
def test_the_time_to_read_small_parts_grows_as_their_bytes(name: str) -> None:
    """Twenty times the bytes take about twenty times as long; a square would take 400 times."""
    strip, head, part, tail = TINY[name]

    def seconds(size: int) -> float:
        data = head + part * (size // len(part)) + tail
        least = 9.0
        for _ in range(3):
            start = time.process_time()
            strip(data)
            least = min(least, time.process_time() - start)
        return max(least, 0.001)

    assert seconds(2_000_000) < 100 * seconds(100_000)
    assert strip(head + part * 5 + tail).pixels == strip(head + tail).pixels


@pytest.mark.parametrize("length", range(12))
def test_small_parts_are_left_out_whatever_their_length(length: int) -> None:
    text = bytes(range(65, 65 + length))
    for name in (b"tEXt", b"prVt"):
        data = after_head(chunk(name, text) * 3)
        assert pngs.strip(data) == pngs.strip(PNG)
    one = b"!\xfe" + bytes((max(1, length),)) + b"a" * max(1, length) + b"\0"
    still = saved(PICTURE, "GIF")
    assert gif.strip(still[:781] + one * 3 + still[781:]) == gif.strip(still)
    piece = b"prVt" + length.to_bytes(4, "little") + text + b"\0" * (length % 2)
    assert webp.strip(WEBP[:12] + piece * 3 + WEBP[12:]) == webp.strip(WEBP)


@pytest.mark.parametrize("name", [b"tRNS", b"iCCP", b"eXIf", b"cICP", b"sRGB", b"cHRM", b"gAMA"])
@pytest.mark.parametrize("length", range(9))
def test_no_small_chunk_that_counts_is_left_out(name: bytes, length: int) -> None:
    """The pattern that skips small chunks must not skip these: the walk meets each of them."""
    data = after_head(chunk(name, bytes(length)))
    assert [found for found, _, _ in pngs._iterate_chunks(data)] == [b"IHDR", name, b"IDAT"]


def test_what_a_gifs_comment_holds_is_no_part_of_the_file() -> None:
    """A zero in a block ends no comment, and a comma begins no picture."""
    still = saved(PICTURE, "GIF")
    plain = gif.strip(still)
    for length in range(1, 256):
        block = bytes((length,)) + b"\0".ljust(length, b",")
        for blocks in (block, b"\1a" + block):
            data = still[:781] + b"!\xfe" + blocks + b"\0" + still[781:]
            assert gif.strip(data) == plain, length


def test_what_a_webps_unknown_chunk_holds_is_no_chunk() -> None:
    """Whatever it is called, and though it looks like one from its second byte on."""
    content = b"\0VP8 " + (6).to_bytes(4, "little") + bytes(7)
    plain = webp.strip(WEBP)
    for first in range(32, 127):
        piece = bytes((first,)) + b"abc" + len(content).to_bytes(4, "little") + content
        assert webp.strip(WEBP[:12] + piece + WEBP[12:]) == plain, chr(first)


def test_what_a_webps_chunk_of_over_16_million_bytes_holds_is_no_chunk() -> None:
    """Its length has a fourth byte; as its file ends before it does, there is no picture."""
    data = WEBP[:12] + b"prVt" + (1 << 24).to_bytes(4, "little") + WEBP[12:]
    assert webp.strip(data).pixels == data


def test_a_png_ends_at_what_is_no_chunk() -> None:
    """Even if there is one a byte later."""
    for byte in range(1, 256):
        data = after_head(bytes((byte,)) + chunk(b"prVt", b""))
        assert not pngs.strip(data).pixels.endswith(PNG[33:])


@pytest.mark.parametrize("name", [b"pr\0t", b"pr t", b"prV\xff"])
@pytest.mark.parametrize("length", [0, 8, 9])
def test_a_png_ends_at_a_name_that_is_none(name: bytes, length: int) -> None:
    """However small the chunk is; Pillow has it so too."""
    end = chunk(name, bytes(length))
    assert decode(before_end(end)).tobytes() == PIXELS
    with pytest.raises(ImageUnreadable):
        decode(after_head(end))


STILLS = {
    "png": (pngs.strip, [saved(gradient(n, 17, mode), "PNG") for n in (16, 17) for mode in "LP"]),
    "jpeg": (jpeg.strip, [saved(gradient(n, 17), "JPEG", progressive=n > 16) for n in (16, 17)]),
    "gif": (gif.strip, [saved(gradient(n, 17, mode), "GIF") for n in (16, 17) for mode in "LP"]),
    "webp": (
        webp.strip,
        [
            saved(gradient(n, 17, mode), "WEBP", quality=n, lossless=lossless)
            for n in range(16, 22)
            for mode in ("RGB", "RGBA")
            for lossless in (False, True)
        ],
    ),
}


@pytest.mark.parametrize("kind", STILLS)
def test_a_file_of_nothing_but_its_picture_stays_as_it_is(kind: str) -> None:
    strip, files = STILLS[kind]
    assert [strip(data).pixels for data in files] == files


def test_colours_and_frames_after_the_pixels_do_not_count() -> None:
    data = saved(PICTURE.convert("P"), "PNG")
    frame = chunk(b"fcTL", struct.pack(">5I2H2B", 0, 16, 16, 8, 4, 1, 1, 0, 0))
    for late in (chunk(b"PLTE", bytes(768)), frame):
        assert decode(data[:-12] + late + data[-12:]).tobytes() == decode(data).tobytes()


def test_a_webp_whose_canvas_is_cut_is_refused() -> None:
    picture = (WEBP[12:16], WEBP[20 : 20 + int.from_bytes(WEBP[16:20], "little")])
    for canvas in (b"", b"\0", bytes(9)):
        with pytest.raises(WorkerError):
            decode(riff((b"VP8X", canvas), picture))


def test_a_png_of_only_small_chunks_is_unreadable_at_once() -> None:
    with pytest.raises(ImageUnreadable):
        decode(PNG[:8] + chunk(b"prVt", b"") * 400_000)
    with pytest.raises(ImageUnreadable):
        decode(png(64, 64)[:33] + chunk(b"tEXt", b"k\0v") * 100_000)
