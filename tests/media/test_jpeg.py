"""A JPEG is read up to its end as libjpeg reads it: many a scan, odd bytes, no end, too large."""

import io
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from worker.errors import ImageTooLarge, ImageUnreadable, InvalidInput
from worker.media import images, jpeg, jpeg_pixels
from worker.media.images import decode
from worlds.files import exif, gradient, jpeg_claiming, saved
from worlds.profiles import matrix

BASELINE = saved(gradient(), "JPEG")
PROGRESSIVE = saved(gradient(), "JPEG", progressive=True)
SCAN = PROGRESSIVE[PROGRESSIVE.rindex(b"\xff\xda") : -2]
SCANS = PROGRESSIVE.count(b"\xff\xda")
END = "the file's last bytes are missing, but all its pixels are there"


def pixels(data: bytes) -> bytes:
    """Return what libjpeg makes of a file, in RGB."""
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as opened:
        return opened.convert("RGB").tobytes()


def segment(marker: int, content: bytes) -> bytes:
    return bytes((0xFF, marker)) + (len(content) + 2).to_bytes(2) + content


def more_scans(data: bytes, count: int, before: bytes = b"") -> bytes:
    """Return the progressive file with its last scan repeated, up to `count` scans in all."""
    return data[:-2] + (before + SCAN) * (count - SCANS) + data[-2:]


@pytest.mark.parametrize("kind", ["JPEG", "MPO"])
@pytest.mark.parametrize(
    "after",
    [
        random.Random(1).randbytes(5_000_000),
        b"\0\0\0\x18ftypmp42" + b"\xff\xda" * 100_000,
        BASELINE,
        more_scans(PROGRESSIVE, 200),
        b"MotionPhoto_Data" + bytes(100) + b"SEFT",
    ],
    ids=["a clip of noise", "a clip of scans", "a gain map", "a picture of 200 scans", "a trailer"],
)
def test_what_follows_the_picture_does_not_count(kind: str, after: bytes) -> None:
    data = saved(gradient(), kind)
    assert decode(data + after).tobytes() == pixels(data)


def test_scans_inside_a_segment_do_not_count() -> None:
    """A thumbnail is a whole JPEG inside EXIF; a preview is one in any other segment."""
    segments = segment(0xE1, b"Exif\0\0" + PROGRESSIVE * 60) + segment(0xE2, b"\xff\xda" * 30_000)
    segments += segment(0xFE, b"\xff\xd9\xff\xda" * 15_000)
    data = BASELINE[:2] + segments + BASELINE[2:]
    assert decode(data).tobytes() == pixels(data)
    between = more_scans(PROGRESSIVE, SCANS + 1, segment(0xE5, b"\xff\xda" * 100))
    assert decode(between).tobytes() == pixels(between)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_a_jpeg_may_be_in_its_xmp_or_in_two_parts_of_exif(
    orientation: int,
) -> None:
    xmp = f'<x xmlns:tiff="" tiff:Orientation="{orientation}"/>'.encode()
    whole = exif(orientation)
    halves = segment(0xE1, whole[:20]) + segment(0xE1, whole[:6] + whole[20:])
    expected = decode(BASELINE[:2] + segment(0xE1, whole) + BASELINE[2:]).tobytes()
    assert (expected == pixels(BASELINE)) == (orientation == 1)
    for said in (segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp), halves):
        assert decode(BASELINE[:2] + said + BASELINE[2:]).tobytes() == expected
    other = segment(0xE3, whole) + segment(0xE3, b"http://ns.adobe.com/xap/1.0/\0" + xmp)
    assert decode(BASELINE[:2] + other + BASELINE[2:]).tobytes() == pixels(BASELINE)


def test_what_stands_between_scans_is_not_read() -> None:
    between = more_scans(PROGRESSIVE, SCANS + 1, segment(0xE1, exif(6)))
    assert decode(between).size == (64, 48)
    assert decode(PROGRESSIVE[:2] + segment(0xE1, exif(6)) + PROGRESSIVE[2:]).size == (48, 64)


@pytest.mark.parametrize(
    "before",
    [
        b"",
        b"\xff",
        b"\xff" * 9,
        b"\0\0",
        b"\xff\0" * 5,
        b"\xff\xd3",
        b"\xff\x01",
        segment(0xFE, b""),
        b"\xff\xfe\0\0",
        b"\xff\xfe\0\1",
        segment(0xE0, b"x"),
        segment(0xFE, b"x" * 40),
        b"\xff\xdc\0\0",
        b"\xff\xdc\0\1",
    ],
    ids=range(14),
)
def test_a_scan_too_many_is_refused_wherever_it_is(before: bytes) -> None:
    assert SCANS < jpeg.MAX_SCANS
    most = more_scans(PROGRESSIVE, jpeg.MAX_SCANS, before)
    assert decode(most).size == (64, 48)
    with pytest.raises(ImageUnreadable, match="at most 32 scans"):
        decode(more_scans(PROGRESSIVE, jpeg.MAX_SCANS + 1, before))
    with pytest.raises(ImageUnreadable, match="at most 32 scans"):
        decode(more_scans(PROGRESSIVE, 5000, before)[:-2])


HOSTILE: dict[str, Callable[[int], bytes]] = {
    "comments": lambda size: b"\xff\xfe\0\2" * (size // 4),
    "comments of ten bytes": lambda size: segment(0xFE, bytes(10)) * (size // 14),
    "fill bytes": lambda size: b"\xff" * size,
    "restart marks": lambda size: b"\xff\xd0" * (size // 2),
    "zeros": bytes,
    "noise": lambda size: random.Random(1).randbytes(size),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_the_time_to_read_segments_grows_as_their_bytes(name: str) -> None:
    """Twenty times the bytes take about twenty times as long; a square would take 400 times."""

    def seconds(size: int) -> float:
        data = BASELINE[:2] + HOSTILE[name](size) + BASELINE[2:]
        least = min(_timed(lambda: jpeg.strip(data)) for _ in range(3))
        return max(least, 0.001)

    assert seconds(4_000_000) < 100 * seconds(200_000)


def _timed(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def _segment_ends(data: bytes) -> list[int]:
    return [
        after for marker, _, after in jpeg._iterate_segments(data) if marker not in {0xDA, 0xD9}
    ]


@pytest.mark.parametrize("data", [BASELINE, PROGRESSIVE], ids=["baseline", "progressive"])
@pytest.mark.parametrize(
    "odd",
    [
        b"\0\0",
        b"\0",
        b"abc",
        b"\xff",
        b"\xff\xff",
        b"\xff\0",
        b"\xff\xd5",
        bytes(999),
        b"\xff\xdc\0\0",
    ],
)
def test_odd_bytes_between_segments_are_skipped_as_libjpeg_does(data: bytes, odd: bytes) -> None:
    """For every place between the segments before the first scan."""
    first = data.index(b"\xff\xda")
    for at in _segment_ends(data):
        if at <= first:
            bent = data[:at] + odd + data[at:]
            assert decode(bent).tobytes() == pixels(bent) == pixels(data)


@pytest.mark.parametrize(
    "segments",
    [
        segment(0xE0, b"JFIF"),
        segment(0xE0, b"JFIF\0\1"),
        segment(0xE0, b""),
        segment(0xEE, b"Adobe"),
        segment(0xEE, b"Adobe\0\x64"),
        segment(0xED, b"Photoshop 3.0\x008BIM\x03"),
        segment(0xED, b"Photoshop 3.0\x008BIM\x03\xed"),
        segment(0xE1, b"Exif\0\0"),
        segment(0xE1, b"Exif\0\0MM\0*" + b"\xff" * 40),
        segment(0xE1, b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(60_000)) * 20,
        segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<not xml"),
        segment(0xE2, b"MPF\0II*\0\x08\0\0\0\3\0\0\xb0\7\0\4\0\0\x000100"),
        segment(0xE2, b"MPF\0"),
        segment(0xE2, b"ICC_PROFILE\0"),
        segment(0xE2, b"ICC_PROFILE\0\1\2abc"),
        segment(0xFE, b""),
        b"\xff\xfe\0\0",
        b"\xff\xe1\0\1",
        segment(0xE7, b"a") * 20_000,
    ],
    ids=range(19),
)
def test_no_segment_that_decides_no_pixel_can_refuse_the_picture(segments: bytes) -> None:
    for data in (BASELINE, PROGRESSIVE, saved(gradient(64, 48, "CMYK"), "JPEG")):
        assert decode(data[:2] + segments + data[2:]).tobytes() == pixels(data)


@pytest.mark.parametrize("transform", [0, 1, 2])
def test_the_segments_that_decide_the_colours_are_obeyed(transform: int) -> None:
    """Adobe's says whether three or four planes are RGB, YCbCr, CMYK or YCCK."""
    adobe = segment(0xEE, b"Adobe\0\x64\0\0\0\0" + bytes((transform,)))
    for mode in ("RGB", "CMYK"):
        data = saved(gradient(mode=mode), "JPEG")
        at = 20 if data[2:4] == b"\xff\xe0" else 2
        for bent in (data[:2] + adobe + data[at:], data[:2] + data[at:], data):
            assert decode(bent).tobytes() == pixels(bent)


def test_jfif_says_that_three_planes_are_ycbcr_whatever_they_are_called() -> None:
    """Without it, planes called R, G and B are what they are called."""
    assert BASELINE[2:6] == b"\xff\xe0\0\x10"
    named = bytearray(BASELINE)
    frame, scan = named.index(b"\xff\xc0"), named.index(b"\xff\xda")
    named[frame + 10 : frame + 19 : 3] = named[scan + 5 : scan + 11 : 2] = b"RGB"
    assert decode(bytes(named)).tobytes() == pixels(BASELINE)
    bare = bytes(named[:2] + named[20:])
    assert decode(bare).tobytes() == pixels(bare) != pixels(BASELINE)


def test_tables_may_come_as_a_file_of_their_own_before_the_picture() -> None:
    at = BASELINE.index(b"\xff\xc0")
    data = BASELINE[:at] + b"\xff\xd9\xff\xd8" + BASELINE[at:]
    assert decode(data).tobytes() == pixels(data) == pixels(BASELINE)


def picture(seed: int) -> bytes:
    """Return a JPEG of one of many kinds."""
    chance = random.Random(seed)
    mode = chance.choice(["L", "RGB", "CMYK"])
    strength = chance.choice([5, 80])
    count = 48 * 48 * len(Image.new(mode, (1, 1)).getbands())
    noise = bytes(min(255, max(0, round(chance.gauss(128, strength)))) for _ in range(count))
    options: dict[str, Any] = {
        "quality": chance.choice([30, 75, 100]),
        "progressive": chance.random() < 0.5,
        "optimize": chance.random() < 0.5,
        "restart_marker_blocks": chance.choice([0, 0, 2]),
    }
    return saved(Image.frombytes(mode, (48, 48), noise), "JPEG", **options)


@pytest.mark.parametrize("seed", range(24))
def test_a_file_that_is_cut_is_complete_or_refused(seed: int) -> None:
    """Without its end mark it is accepted with a warning; no cut changes a pixel silently."""
    data = picture(seed)
    for missing in (1, 2):
        warnings: list[str] = []
        assert decode(data[:-missing], warn=warnings.append).tobytes() == pixels(data)
        assert warnings == [END]
    taken = 0
    for missing in range(3, min(80, len(data) // 3)):
        try:
            cut = decode(data[:-missing])
        except ImageUnreadable:
            continue
        taken += 1
        assert cut.tobytes() == pixels(data), missing
    assert taken < 3, "the last byte may hold nothing but padding"


def test_a_complete_file_gives_no_warning() -> None:
    warnings: list[str] = []
    other = segment(0xE2, b"MPF\0" + bytes(40)) + segment(0xE3, b"ICC_PROFILE\0\1\1abc")
    for data in (BASELINE, BASELINE[:2] + other + BASELINE[2:]):
        decode(data, warn=warnings.append)
    assert warnings == []


@pytest.mark.parametrize("colour", ["black", "white", "red"])
def test_a_file_that_is_cut_before_any_of_its_restart_marks_is_refused(colour: str) -> None:
    image = Image.new("RGB", (160, 80), colour)
    data = saved(image, "JPEG", restart_marker_blocks=2)
    marks = [at for at in range(len(data)) if data[at] == 0xFF and 0xD0 <= data[at + 1] <= 0xD7]
    assert len(marks) > 16
    for at in marks[-16:]:
        for end in (at, at + 1, at + 2):
            with pytest.raises(ImageUnreadable):
                decode(data[:end])


def test_a_progressive_file_that_lacks_entire_scans_is_refused() -> None:
    at = len(PROGRESSIVE)
    for _ in range(SCANS):
        at = PROGRESSIVE.rindex(b"\xff\xda", 0, at)
        with pytest.raises(ImageUnreadable):
            decode(PROGRESSIVE[:at])


def test_a_file_that_lacks_the_scans_of_its_colours_is_refused() -> None:
    planes = _in_scans(gradient())
    assert decode(planes + b"\xff\xd9").tobytes()
    assert decode(planes).size == (64, 48)
    with pytest.raises(ImageUnreadable):
        decode(planes[: planes.rindex(b"\xff\xda")])


def _in_scans(image: Image.Image) -> bytes:
    """Return a baseline JPEG without its end mark, each plane of it a scan of its own."""
    planes = [saved(plane, "JPEG", quality=90) for plane in image.convert("YCbCr").split()]
    first = planes[0]
    head, frame = first[: first.index(b"\xff\xc0")], first.index(b"\xff\xc0")
    tables = first[frame + 13 : first.index(b"\xff\xda")]
    size = first[frame + 4 : frame + 9]
    components = b"".join(bytes((number, 0x11, 0)) for number in (1, 2, 3))
    scans = b""
    for number, plane in enumerate(planes, 1):
        body = plane[plane.index(b"\xff\xda") + 10 : -2]
        scans += segment(0xDA, bytes((1, number, 0, 0, 63, 0))) + body
    return head + segment(0xC0, size + b"\3" + components) + tables + scans


def _of_kind(data: bytes, kind: int) -> bytes:
    """Return the file with its frame's marker exchanged for another."""
    at = data.index(b"\xff\xc0")
    return data[: at + 1] + bytes((kind,)) + data[at + 2 :]


@pytest.mark.parametrize("kind", range(0xBF, 0xD0))
def test_every_kind_of_frame_says_how_many_planes_a_file_has(kind: int) -> None:
    """T.81, table B.1: C0 to CF but C4, C8 and CC; every fourth from C2 on is progressive."""
    is_frame = kind >= 0xC0 and kind not in {0xC4, 0xC8, 0xCC}
    planes = _in_scans(gradient()) + b"\xff\xd9"
    assert jpeg.strip(_of_kind(planes, kind)).buffered is is_frame
    whole = jpeg.strip(_of_kind(BASELINE, kind))
    assert whole.buffered is (is_frame and kind % 4 == 2)


def _scanned(*scans: tuple[int, int, int]) -> jpeg.Jpeg:
    """Return what is read of a file of one plane with scans of these parameters, and no pixels."""
    frame = segment(0xC2, b"\x08\0\x10\0\x10\1\1\x11\0")
    parts = [segment(0xDA, bytes((1, 1, 0, *parameters))) for parameters in scans]
    return jpeg.strip(b"\xff\xd8" + frame + b"".join(parts) + b"\xff\xd9")


@pytest.mark.parametrize(
    ("scans", "complete"),
    [
        ([(0, 63, 0)], True),
        ([(0, 62, 0)], False),
        ([(1, 63, 0)], False),
        ([(0, 0, 0), (1, 63, 0)], True),
        ([(0, 0, 0), (2, 63, 0)], False),
        ([(0, 63, 1)], False),
        ([(0, 63, 2), (0, 63, 0x21), (0, 63, 0x10)], True),
        ([(0, 63, 2), (0, 63, 0x21)], False),
        ([(0, 63, 8)], False),
    ],
)
def test_a_file_is_complete_once_its_scans_give_every_coefficient_to_the_last_bit(
    scans: list[tuple[int, int, int]], complete: bool
) -> None:
    assert _scanned(*scans).complete is complete


@pytest.mark.parametrize("marker", [*range(0xE0, 0xF0), 0xFE])
def test_every_segment_of_an_application_and_every_comment_is_left_out(marker: int) -> None:
    data = BASELINE[:2] + segment(marker, b"x" * 40) + BASELINE[2:]
    assert jpeg.strip(data) == jpeg.strip(BASELINE)


@pytest.mark.parametrize("marker", [0xDF, 0xF0, 0xFD])
def test_a_segment_of_any_other_kind_is_kept_for_the_decoder(marker: int) -> None:
    data = BASELINE[:2] + segment(marker, b"x" * 40) + BASELINE[2:]
    assert jpeg.strip(data).pixels == data


def test_a_file_that_ends_in_the_header_of_its_scan_is_not_complete() -> None:
    head = BASELINE[: BASELINE.index(b"\xff\xda")]
    scan = segment(0xDA, b"\3\1\0\2\0\3\0\0\x3f\0")
    assert jpeg.strip(head + scan).complete
    for missing in (1, 2, 3):
        assert not jpeg.strip(head + scan[:-missing]).complete


def test_the_first_part_of_a_profile_says_how_many_there_are() -> None:
    data = BASELINE
    for number, content in ((2, b"\2\3end"), (1, b"\1\2begin, ")):
        assert number == content[0]
        data = data[:2] + segment(0xE2, b"ICC_PROFILE\0" + content) + data[2:]
    assert jpeg.strip(data).profile == b"begin, end"


def test_a_fraction_fits_by_its_sides_rounded_up() -> None:
    data = saved(gradient(333, 205), "JPEG")
    assert decode(data, 167 * 103).size == (167, 103)
    assert decode(data, 167 * 103 - 1).size == (84, 52)


@pytest.mark.parametrize(
    ("most", "fraction", "size"),
    [
        (76_800, 1, (320, 240)),
        (76_799, 2, (160, 120)),
        (19_200, 2, (160, 120)),
        (19_199, 4, (80, 60)),
        (1200, 8, (40, 30)),
    ],
)
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_over_the_limit_is_read_at_a_fraction(
    most: int, fraction: int, size: tuple[int, int], progressive: bool
) -> None:
    warnings: list[str] = []
    image = gradient(320, 240)
    decoded = decode(saved(image, "JPEG", progressive=progressive), most, warnings.append)
    assert decoded.size == size
    small = image.resize(size, Image.Resampling.BOX)
    difference = [abs(a - b) for a, b in zip(decoded.tobytes(), small.tobytes(), strict=True)]
    assert sum(difference) / len(difference) < 4
    if fraction == 1:
        assert warnings == []
    else:
        note = (
            f"read at 1/{fraction} of its 320 x 240 pixels, as {size[0]} x {size[1]},"
            ' which is also its size for size "input"'
        )
        assert warnings == [note]


def test_a_fraction_of_an_odd_size_is_rounded_up_and_turned() -> None:
    data = saved(gradient(333, 205), "JPEG", exif=exif(6), icc_profile=matrix("Display P3"))
    assert decode(data, 333 * 205 - 1).size == (103, 167)
    assert decode(data[:-2], 333 * 205 - 1).size == (103, 167)


def test_a_jpeg_over_the_limit_waits_for_other_large_pictures() -> None:
    """However small it comes out: its decoder may hold much."""
    done = threading.Event()

    def work() -> None:
        decode(saved(gradient(320, 240), "JPEG"), 20_000)
        done.set()

    with images._one_at_a_time:
        thread = threading.Thread(target=work)
        thread.start()
        assert not done.wait(0.5)
    assert done.wait(60)
    thread.join()


def test_a_jpeg_that_no_fraction_brings_under_the_limit_is_too_large() -> None:
    data = saved(gradient(320, 240), "JPEG")
    with pytest.raises(ImageTooLarge, match=r"at most 1199 pixels, a JPEG 76736"):
        decode(data, 1199)
    claims = jpeg_claiming(BASELINE, 20_000, 10_001)
    with pytest.raises(ImageTooLarge, match=r"at most 25000000 pixels, a JPEG 200000000"):
        decode(claims)


def test_a_fraction_is_checked_by_its_own_sides() -> None:
    with pytest.raises(InvalidInput, match="at least 16"):
        decode(saved(Image.new("RGB", (600, 30)), "JPEG"), 6000)


@pytest.mark.parametrize(
    ("options", "size"),
    [({"progressive": True}, 230_400), ({"progressive": True, "subsampling": 0}, 460_800)],
)
def test_the_coefficients_that_a_progressive_file_holds_are_bounded(
    options: dict[str, Any], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2 bytes for each, so 3 a pixel with halved colours and 6 without; only over the limit."""
    data = saved(gradient(320, 240), "JPEG", **options)
    monkeypatch.setattr(jpeg_pixels, "MAX_COEFFICIENT_BYTES", size)
    assert decode(data, 20_000).size == (160, 120)
    monkeypatch.setattr(jpeg_pixels, "MAX_COEFFICIENT_BYTES", size - 1)
    with pytest.raises(ImageTooLarge, match=f"progressive JPEG of 320 x 240 takes {size} bytes"):
        decode(data, 20_000)
    assert decode(data).size == (320, 240)


@pytest.mark.parametrize(
    ("subsampling", "size", "fits"),
    [
        (2, (20_000, 10_000), True),
        (0, (10_000, 10_000), True),
        (0, (10_016, 10_000), False),
    ],
)
def test_a_progressive_file_may_take_600_mb(
    subsampling: int, size: tuple[int, int], fits: bool
) -> None:
    small = saved(gradient(), "JPEG", progressive=True, subsampling=subsampling)
    source = jpeg.strip(jpeg_claiming(small, *size))
    if fits:
        assert jpeg_pixels.Reader(source, 25_000_000).stored == size
    else:
        with pytest.raises(ImageTooLarge, match="progressive"):
            jpeg_pixels.Reader(source, 25_000_000)


def test_a_file_of_planes_holds_its_coefficients_and_one_scan_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(jpeg_pixels, "MAX_COEFFICIENT_BYTES", 0)
    assert decode(saved(gradient(320, 240), "JPEG"), 20_000).size == (160, 120)
    with pytest.raises(ImageTooLarge, match="progressive"):
        decode(_in_scans(gradient(320, 240)) + b"\xff\xd9", 20_000)
