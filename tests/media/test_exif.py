"""What a JPEG or WEBP records of how it was made, for the page and for other programs."""

import io
import json

import pytest
from PIL import Image

from worker.media.exif import MOST_BYTES, write_exif
from worker.media.images import encode
from worker.media.parameters import write_parameters

PICTURE = Image.new("RGB", (64, 32), "red")
RECORD = {
    "prompt": "ein Füchslein, 狐\nand a hare",
    "negative_prompt": "blur",
    "seed": "9007199254740993",
    "steps": "8",
    "true_cfg_scale": "4.0",
    "model": "a, model",
    "precision": "bf16",
}
DESCRIPTION, EXIF_IFD, VERSION, COMMENT = 0x010E, 0x8769, 0x9000, 0x9286


def read(data: bytes) -> tuple[str, str]:
    """Return the description and the comment of a file, as Pillow reads them."""
    found = Image.open(io.BytesIO(data)).getexif()
    comment: bytes = found.get_ifd(EXIF_IFD).get(COMMENT, b"")
    assert comment[:8] in (b"", b"UNICODE\0")
    return found.get(DESCRIPTION, "").encode("latin-1").decode(), comment[8:].decode("utf-16-be")


@pytest.mark.parametrize("form", ["jpeg", "webp"])
def test_a_file_has_its_record_exactly_and_in_the_form_of_other_programs(form: str) -> None:
    record, comment = read(encode(PICTURE, form, metadata=RECORD))  # type: ignore[arg-type]
    assert json.loads(record) == RECORD
    assert comment == write_parameters(RECORD, PICTURE.size)
    assert not Image.open(io.BytesIO(encode(PICTURE, form))).getexif()  # type: ignore[arg-type]


def test_a_png_has_the_text_of_other_programs_next_to_its_own() -> None:
    found = Image.open(io.BytesIO(encode(PICTURE, "png", metadata=RECORD))).info
    assert found == {**RECORD, "parameters": write_parameters(RECORD, PICTURE.size)}


def test_the_text_of_other_programs_ends_with_a_line_of_pairs() -> None:
    assert write_parameters(RECORD, (64, 32)).split("\n") == [
        *RECORD["prompt"].split("\n"),
        "Negative prompt: blur",
        'Steps: 8, CFG scale: 4.0, Seed: 9007199254740993, Size: 64x32, Model: "a, model"',
    ]
    assert write_parameters({"prompt": "x", "negative_prompt": " "}, (1, 2)) == "x\nSize: 1x2"


def test_every_name_that_other_programs_know_is_theirs_and_in_their_order() -> None:
    record = {"software": "a_b 1", "strength": "0.5", "seed": "7", "precision": "bf16"}
    text = write_parameters({**record, "prompt": "x"}, (1, 2))
    assert text == "x\nSeed: 7, Size: 1x2, Denoising strength: 0.5, Version: a_b 1"


@pytest.mark.parametrize(
    ("model", "written"),
    [
        ("plain_name", "plain_name"),
        ("a, b", '"a, b"'),
        ("a:b", '"a:b"'),
        ("a\nb", '"a\\nb"'),
        ("\u72d0, \u00e4", '"\u72d0, \u00e4"'),
    ],
)
def test_a_value_that_could_be_read_as_two_is_quoted(model: str, written: str) -> None:
    text = write_parameters({"model": model}, (1, 2))
    assert text == f"\nSize: 1x2, Model: {written}"


def test_a_comment_is_of_the_type_that_readers_expect() -> None:
    assert b"\x92\x86\x00\x07" in write_exif({"prompt": "x"}, "x")
    found = Image.open(io.BytesIO(encode(PICTURE, "jpeg", metadata=RECORD))).getexif()
    assert found.get_ifd(EXIF_IFD)[VERSION] == b"0232"


def test_a_value_of_three_bytes_stands_in_its_entry_filled_to_four() -> None:
    """TIFF 6.0, 2: what follows the entry would otherwise stand a byte too early."""
    found = Image.Exif()
    found.load(write_exif({}, "a comment"))
    assert found[DESCRIPTION] == "{}"
    assert found.get_ifd(EXIF_IFD)[COMMENT][8:].decode("utf-16-be") == "a comment"


@pytest.mark.parametrize("prompt", ["x", "xx"])
def test_every_value_begins_at_an_even_place(prompt: str) -> None:
    """TIFF 6.0, 2: a value's offset is a word's."""
    data = write_exif({"prompt": prompt}, "a comment")
    assert data.index(b"UNICODE\0") % 2 == data.index(b"MM") % 2
    assert len(data) % 2 == 0
    assert data.startswith(b"Exif\0\0MM\0*")
    assert b"UNICODE" not in write_exif({"prompt": prompt}, "")
    assert write_exif({"prompt": prompt * 70_000}, "") == b""


def test_what_is_too_long_for_a_segment_is_left_out_and_the_picture_is_still_made() -> None:
    long = {"prompt": "\U0001f98a" * 5000, "negative_prompt": "\x01" * 2000}
    record, comment = read(encode(PICTURE, "jpeg", metadata=long))
    assert json.loads(record) == long
    assert comment == write_parameters(long, PICTURE.size)
    longest = MOST_BYTES - len(write_exif({"a": ""}, ""))
    for more, expected in ((0, {"a": "b" * longest}), (2, None)):
        record, comment = read(encode(PICTURE, "jpeg", metadata={"a": "b" * (longest + more)}))
        assert (json.loads(record) if record else None, comment) == (expected, "")
