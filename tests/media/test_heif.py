"""AVIF and HEIC are decoded in a child process, which can neither hurt the worker nor grow."""

import base64
import json
import random
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageOps

from worker.errors import ImageTooLarge, ImageUnreadable, InvalidInput
from worker.media import heif, heif_child
from worker.media.images import decode
from worlds import heic
from worlds.files import exif, gradient, saved

AVIF = saved(gradient(), "AVIF", quality=90)


def near(one: Image.Image, other: Image.Image, most: float) -> bool:
    """Tell whether two pictures differ by `most` of 255 on average."""
    if one.size != other.size:
        return False
    pairs = zip(one.tobytes(), other.convert("RGB").tobytes(), strict=True)
    return sum(abs(a - b) for a, b in pairs) / len(one.tobytes()) < most


def lying(data: bytes, width: int, height: int) -> bytes:
    """Return the file with another size in its box; the coded picture stays as large as it is."""
    at = data.index(b"ispe") + 8
    return data[:at] + width.to_bytes(4) + height.to_bytes(4) + data[at + 8 :]


@pytest.mark.parametrize(
    "options", [{}, {"quality": 90, "subsampling": "4:4:4"}, {"range": "limited"}]
)
def test_an_avif_is_read(options: dict[str, Any]) -> None:
    assert near(decode(saved(gradient(), "AVIF", **options)), gradient(), 6)


def test_a_moving_avif_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (64, 48), colour) for colour in ("red", "lime", "blue")]
    data = saved(frames[0], "AVIF", save_all=True, append_images=frames[1:])
    assert near(decode(data), frames[0], 6)


def test_a_transparent_avif_is_laid_over_white() -> None:
    image = Image.new("RGBA", (64, 64), (255, 0, 0, 255))
    image.paste((0, 0, 255, 0), (0, 0, 32, 64))
    decoded = decode(saved(image, "AVIF", quality=100))
    assert near(decoded.crop((0, 0, 24, 64)), Image.new("RGB", (24, 64), "white"), 3)
    assert near(decoded.crop((40, 0, 64, 64)), Image.new("RGB", (24, 64), "red"), 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_an_avif_is_applied(orientation: int) -> None:
    image = gradient()
    tagged = image.copy()
    tagged.getexif()[0x0112] = orientation
    upright = ImageOps.exif_transpose(tagged)
    assert upright is not None
    decoded = decode(saved(image, "AVIF", quality=95, exif=exif(orientation)))
    assert near(decoded, upright, 3)


def test_a_heic_is_read() -> None:
    assert near(decode(heic.PLAIN), gradient(), 6)


def test_a_heic_is_turned_once() -> None:
    """Phones write the turn twice, as HEIF's own and in EXIF."""
    assert near(decode(heic.TURNED), decode(heic.PLAIN).transpose(Image.Transpose.ROTATE_270), 3)


def test_a_transparent_heic_is_laid_over_white() -> None:
    decoded = decode(heic.TRANSPARENT)
    assert near(decoded.crop((0, 0, 24, 64)), Image.new("RGB", (24, 64), "white"), 3)
    assert near(decoded.crop((40, 0, 64, 64)), Image.new("RGB", (24, 64), "red"), 3)


def premultiplied(data: bytes) -> bytes:
    """Return a HEIC of two items that says: the first's colours are multiplied by the second."""
    box = struct.pack(">I4s3H", 14, b"prem", 1, 1, 2)
    references, places = data.index(b"iref") - 4, data.index(b"iloc") + 16
    end = references + int.from_bytes(data[references : references + 4])
    grown = bytearray(data)
    for at in (data.index(b"meta") - 4, references, places, places + 18):
        grown[at : at + 4] = (int.from_bytes(data[at : at + 4]) + len(box)).to_bytes(4)
    return bytes(grown[:end] + box + grown[end:])


def test_a_heic_of_multiplied_colours_is_laid_over_white_too() -> None:
    data = premultiplied(heic.TRANSPARENT)
    assert heif.decode(data, 64 * 64).picture.mode == "RGBa"
    assert near(decode(data), decode(heic.TRANSPARENT), 1)


def test_a_grey_avif_is_read() -> None:
    assert heif.decode(saved(gradient(mode="L"), "AVIF"), 64 * 48).picture.mode == "L"
    assert near(decode(saved(gradient(mode="L"), "AVIF")), gradient(mode="L"), 3)


@pytest.mark.parametrize("data", [heic.DISPLAY_P3, heic.NUMBERED_P3], ids=["profile", "numbers"])
def test_the_colours_of_a_heic_become_srgb(data: bytes) -> None:
    assert near(decode(data), Image.new("RGB", (64, 64), (0, 204, 12)), 2)


def test_the_numbers_of_an_avifs_colours_are_obeyed() -> None:
    """A file of primaries 12 (Display P3) differs from one of 1 in two bytes."""
    image = Image.new("RGB", (64, 64), (40, 200, 60))
    data = saved(image, "AVIF", quality=100, subsampling="4:4:4")
    at = data.index(b"colrnclx") + 8
    assert data[at : at + 4] == bytes((0, 1, 0, 13))
    bare, wide = decode(data), decode(data[:at] + b"\0\x0c" + data[at + 2 :])
    assert near(bare, image, 3)
    same = decode(saved(bare, "PNG").replace(b"", b"", 0))
    assert same.tobytes() == bare.tobytes()
    pixel = wide.getpixel((9, 9))
    assert isinstance(pixel, tuple)
    assert pixel[0] == 0
    assert pixel[1] > 203


@pytest.mark.parametrize("data", [AVIF, heic.PLAIN], ids=["avif", "heic"])
def test_a_file_whose_brand_names_the_other_kind_is_read_even_so(data: bytes) -> None:
    expected = decode(data)
    for brand in (b"avif", b"heic", b"mif1"):
        bent = data[:8] + brand + data[12:]
        assert decode(bent).tobytes() == expected.tobytes()


@pytest.mark.parametrize("data", [AVIF, heic.PLAIN], ids=["avif", "heic"])
def test_a_broken_file_is_unreadable(data: bytes) -> None:
    for bent in (
        data[:-100],
        data[: len(data) // 2],
        data[:40],
        data[:24] + bytes(len(data)),
        data[:200] + random.Random(1).randbytes(len(data)),
        data[:-60] + bytes(30),
    ):
        with pytest.raises(ImageUnreadable):
            decode(bent)


@pytest.mark.parametrize("data", [AVIF, heic.PLAIN], ids=["avif", "heic"])
def test_sizes_are_checked_before_pixels_are_decoded(data: bytes) -> None:
    assert decode(data, 64 * 48).size == (64, 48)
    with pytest.raises(ImageTooLarge, match=r"at most 3071 pixels \(got 64 x 48\)"):
        decode(data, 64 * 48 - 1)
    with pytest.raises(ImageTooLarge, match="60000 x 60000"):
        decode(lying(data, 60_000, 60_000))
    with pytest.raises(InvalidInput, match="at least 16"):
        decode(saved(gradient(15, 64), "AVIF"))


def test_a_picture_over_the_limit_is_not_decoded_to_tell_its_size() -> None:
    script = (
        f"import sys; sys.path[:0] = [{str(heif.CHILD.parent)!r}]\n"
        "import os, heif_child\n"
        "heif_child.AvifImagePlugin.AvifImageFile.load = lambda _: os._exit(9)\n"
        f"heif_child.main({64 * 48 - 1})\n"
    )
    command = [sys.executable, "-c", script]
    answer = subprocess.run(command, input=AVIF, capture_output=True, check=True)
    assert json.loads(answer.stdout) == {"size": [64, 48]}


def test_a_file_that_lies_of_its_size_ends_at_the_limit_of_memory() -> None:
    """Its box says 64 x 48; the decoder needs 200 MB for what is coded, and the child has 64."""
    large = saved(Image.new("RGB", (8000, 8000)), "AVIF", speed=10, quality=1)
    small = lying(large, 64, 48)
    assert decode(small, 30_000_000).size == (64, 48)
    with pytest.raises(ImageUnreadable):
        decode(small, 64 * 48)


def test_a_decoder_that_takes_too_long_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heif, "SECONDS", 0.001)
    start = time.monotonic()
    with pytest.raises(ImageUnreadable):
        decode(AVIF)
    assert time.monotonic() - start < heif_child.CPU_S
    assert not _children()


def _children() -> list[str]:
    """Return what processes this one has, zombies too."""
    tasks = Path("/proc/self/task").glob("*/children")
    found = [number for task in tasks for number in task.read_text().split()]
    names = [Path(f"/proc/{number}/cmdline").read_bytes().decode() for number in found]
    return [name for name in names if "heif_child" in name]


def test_a_decoder_that_dies_fails_one_picture_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = decode(AVIF)
    dying = tmp_path / "dying.py"
    dying.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    with monkeypatch.context() as patched:
        patched.setattr(heif, "CHILD", dying)
        with pytest.raises(ImageUnreadable):
            decode(AVIF)
    assert decode(AVIF).tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    "script",
    [
        "raise SystemExit(1)",
        "print('{\"size\": [60000, 60000]}'); raise SystemExit(1)",
    ],
)
def test_a_decoder_that_fails_makes_its_file_unreadable_whatever_it_has_written(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = tmp_path / "failing.py"
    failing.write_text(script)
    monkeypatch.setattr(heif, "CHILD", failing)
    with pytest.raises(ImageUnreadable):
        heif.decode(AVIF, 64 * 48)


def test_a_picture_without_exif_is_upright() -> None:
    most = 64 * 48
    for stored in (heif.decode(AVIF, most), heif.decode(heic.PLAIN, most)):
        assert (stored.picture.size, stored.orientation) == ((64, 48), 1)


def test_the_largest_size_that_boxes_claim_is_that_of_the_most_pixels() -> None:
    def box(width: int, height: int) -> bytes:
        return b"\0\0\0\x14ispe" + bytes(4) + width.to_bytes(4) + height.to_bytes(4)

    boxes = box(300, 2) + b"between" + box(40, 50) + box(2, 300)
    assert heif_child.read_claimed_size(boxes) == (40, 50)
    assert heif_child.read_claimed_size(b"none") == (0, 0)


def test_the_child_has_nothing_of_the_workers_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    spy = tmp_path / "spy.py"
    spy.write_text(
        f"import os\nopen({str(tmp_path / 'seen')!r}, 'w').write(repr(dict(os.environ)))\n"
    )
    monkeypatch.setattr(heif, "CHILD", spy)
    with pytest.raises(ImageUnreadable):
        decode(AVIF)
    assert "hf_secret" not in (tmp_path / "seen").read_text()
    assert "PATH'" not in (tmp_path / "seen").read_text()


def test_the_child_cannot_take_more_than_its_share() -> None:
    """The limits hold in the child itself: of memory by the pixels asked for, of time, of files."""
    script = (
        f"import sys; sys.path[:0] = [{str(heif.CHILD.parent)!r}]\n"
        "import resource, socket, heif_child\n"
        "heif_child.confine(1_000_000)\n"
        "before = resource.getrlimit(resource.RLIMIT_AS)[0]\n"
        "assert resource.getrlimit(resource.RLIMIT_CPU) == (30, 30)\n"
        "assert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)\n"
        "import os\n"
        "for attempt in (lambda: open('/etc/passwd'), socket.socket, os.pipe):\n"
        "    try:\n"
        "        attempt()\n"
        "    except OSError as error:\n"
        "        assert error.errno == 24, error\n"
        "    else:\n"
        "        raise SystemExit('a descriptor was given')\n"
        "bytearray(80_000_000)\n"
        "try:\n"
        "    bytearray(24_000_000 + 64_000_000 + 1_000_000)\n"
        "except MemoryError:\n"
        "    print('bounded')\n"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert answer.stdout == b"bounded\n"


def test_a_pixel_gets_24_bytes_of_address_space() -> None:
    """In addition to what the child starts with and to 64 MB."""
    script = (
        f"import sys; sys.path[:0] = [{str(heif.CHILD.parent)!r}]\n"
        "import resource, heif_child\n"
        "before = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "heif_child.confine(1_000_000_000)\n"
        "print(resource.getrlimit(resource.RLIMIT_AS)[0] - before)\n"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert 24_064_000_000 <= int(answer.stdout) < 24_100_000_000


def test_pictures_are_decoded_from_many_threads_one_at_a_time() -> None:
    running, most = set[int](), [0]
    lock, plain = threading.Lock(), subprocess.run

    def counted(*given: Any, **options: Any) -> Any:
        with lock:
            running.add(threading.get_ident())
            most[0] = max(most[0], len(running))
        try:
            return plain(*given, **options)
        finally:
            with lock:
                running.discard(threading.get_ident())

    expected = [decode(data).tobytes() for data in (AVIF, heic.PLAIN)] * 4
    with pytest.MonkeyPatch.context() as patched, ThreadPoolExecutor(8) as threads:
        patched.setattr(subprocess, "run", counted)
        pictures = list(threads.map(decode, [AVIF, heic.PLAIN] * 4))
    assert [picture.tobytes() for picture in pictures] == expected
    assert most == [1]


def test_a_profile_of_over_four_megabytes_is_left_out_of_the_answer() -> None:
    data = saved(gradient(), "AVIF", quality=90, icc_profile=bytes((4 << 20) + 1))
    warnings: list[str] = []
    assert decode(data, warn=warnings.append).tobytes() == decode(AVIF).tobytes()
    assert warnings == []
    most = saved(gradient(), "AVIF", quality=90, icc_profile=bytes(4 << 20))
    assert decode(most, warn=warnings.append).tobytes() == decode(AVIF).tobytes()
    assert len(warnings) == 1  # it was read, and is none


def test_the_files_of_these_tests_are_heic() -> None:
    assert base64.b64encode(heic.PLAIN).startswith(b"AAAA")
    assert heic.TURNED.count(b"irot") == 1
    assert heic.NUMBERED_P3[heic.NUMBERED_P3.index(b"colrnclx") + 8 :][:4] == bytes((0, 12, 0, 13))
