"""A picture in the job: every form of base64 that has one meaning is read, and no other."""

import asyncio
import base64
from typing import Final
from urllib.parse import quote

import pytest

from worker import settings
from worker.errors import ImageTooLarge, InvalidInput
from worker.media.fetch import fetch_all
from worker.media.inline import decode_base64, is_complete
from worker.tasks import reference
from worker.tasks.request import Request, parse
from worlds.published import EDIT

# Holds every digit of the alphabet, and ends in a group of two bytes: one character of padding.
DATA: Final = bytes(range(256)) * 40 + b"\xfb\xff\xfe\xff"
TEXT: Final = base64.b64encode(DATA).decode()
SAFE: Final = base64.urlsafe_b64encode(DATA).decode()
URI: Final = "data:image/png;base64,"


def lines(text: str, length: int, end: str) -> str:
    return end.join(text[at : at + length] for at in range(0, len(text), length))


FORMS: Final = {
    "plain": TEXT,
    "URL-safe": SAFE,
    "both alphabets": SAFE[: len(SAFE) // 2] + TEXT[len(TEXT) // 2 :],
    "without padding": TEXT.rstrip("="),
    "URL-safe without padding": SAFE.rstrip("="),
    "lines of MIME": base64.encodebytes(DATA).decode(),
    "lines of PEM": lines(TEXT, 64, "\r\n"),
    "lines of one": lines(TEXT, 1, "\r\n"),
    "lines over 1024": lines(TEXT, 4001, "\n"),
    "lines over 1024, old Macintosh": lines(TEXT, 2000, "\r"),
    "lines without padding": lines(TEXT.rstrip("="), 3000, "\n") + "\n",
    "data URI": URI + TEXT,
    "data URI in capitals": "DATA:IMAGE/PNG;BASE64," + TEXT,
    "data URI without a type": "data:;base64," + TEXT,
    "data URI of another type": "data:text/html;base64," + TEXT,
    "data URI with a charset": "data:image/png;charset=utf-8;base64," + TEXT,
    "data URI with parameters": "data:image/png;name=a%2Cb.png;x=1;base64," + TEXT,
    "data URI with a space": "data:image/png; base64," + TEXT,
    "data URI, URL-safe": URI + SAFE.rstrip("="),
    "data URI in lines": URI + lines(TEXT, 1500, "\r\n"),
    "data URI, percent-encoded": URI + quote(TEXT, safe=""),
    "data URI, percent-encoded in small letters": URI
    + TEXT.replace("+", "%2b").replace("/", "%2f").replace("=", "%3d"),
    "data URI, its padding percent-encoded": URI + TEXT.replace("=", "%3D"),
    "data URI, its lines percent-encoded": URI + quote(lines(TEXT, 76, "\r\n"), safe=""),
    "data URI, URL-safe and percent-encoded": URI + SAFE.replace("-", "%2D"),
    "data URI, every character percent-encoded": URI + "".join(f"%{ord(x):02X}" for x in TEXT),
}


def decoded(value: object, limit: int = len(DATA)) -> bytes:
    """Read a picture as a job's, and decode it."""
    source = reference.read_source(value)
    assert source.kind == "base64"
    return decode_base64(source.value, limit)


@pytest.mark.parametrize("padding", ["==", "\n==", "=\n=", "=\r\n=\r\n", "=\r=\r", "", "\n"])
@pytest.mark.parametrize("start", ["", URI])
def test_a_line_may_end_anywhere_in_the_padding(start: str, padding: str) -> None:
    text = base64.b64encode(DATA[:-1]).decode()
    assert text.endswith("==")
    assert decoded(start + text[:-2] + padding) == DATA[:-1]


@pytest.mark.parametrize(
    "padding", ["===", "=\n==", "=\n=a", "=a=", *(f"={end}" for end in "A0+/-_")]
)
def test_nothing_but_two_signs_ends_base64(padding: str) -> None:
    with pytest.raises(ValueError, match="must be"):
        reference.read_source(base64.b64encode(DATA[:-1]).decode()[:-2] + padding)


def read(job_input: dict[str, str]) -> list[bytes]:
    """Read a job and what its pictures hold."""
    given = settings.read({})
    request = parse(job_input, (EDIT,), given)
    assert isinstance(request, Request)
    return asyncio.run(fetch_all(request.asked.sources, given))


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_every_form_with_one_meaning_is_read(form: str) -> None:
    assert decode_base64(FORMS[form], len(DATA)) == DATA
    assert decoded(FORMS[form]) == DATA
    assert decoded({"data": FORMS[form]}) == DATA


@pytest.mark.parametrize(
    "form",
    [
        quote(URI + TEXT, safe=""),
        lines(TEXT, 76, " "),  # what a shell makes of a file in lines
        lines(TEXT, 76, "\n    "),
        lines(TEXT, 76, "  \r\n\t"),
        lines(TEXT, 4000, "\t"),
        URI + lines(TEXT, 76, " "),
        URI + " " + TEXT,
        TEXT[:8000] + " " + TEXT[8000:],
        URI + "\n  " + lines(TEXT, 76, "\n  ") + "\n",
    ],
)
def test_layout_is_taken_out_where_the_input_is_read(form: str) -> None:
    assert decoded(form) == DATA


@pytest.mark.parametrize("blank", [" ", "\t", "\n  ", "\r\n"])
@pytest.mark.parametrize("length", [60, 64, 76, 1028, 5000, 6832])
def test_layout_is_taken_out_where_the_input_is_decoded(length: int, blank: str) -> None:
    assert decode_base64(lines(TEXT, length, blank), len(DATA)) == DATA


@pytest.mark.parametrize("value", ["", " \n", {"data": "\t"}])
def test_an_empty_picture_is_reported_as_empty(value: object) -> None:
    with pytest.raises(ValueError, match=r"^is empty$"):
        reference.read_source(value)


@pytest.mark.parametrize("length", [4, 56, 63])
def test_blanks_in_lines_that_no_tool_writes_are_refused(length: int) -> None:
    with pytest.raises(InvalidInput, match="spaces"):
        decode_base64(lines(TEXT, length, " "), len(DATA))


def test_the_last_line_may_be_as_long_as_the_others_and_no_longer() -> None:
    text = base64.b64encode(bytes(90)).decode()
    assert decode_base64(text[:60] + " " + text[60:], 90) == bytes(90)
    with pytest.raises(InvalidInput, match="spaces"):
        decode_base64(text[:60] + " " + text[60:] + "AAAA", 93)


@pytest.mark.parametrize("count", range(1, 10))
def test_any_length_is_read_with_its_padding_or_without(count: int) -> None:
    data = b"\xff" * count
    text = base64.b64encode(data).decode()
    for form in (text, text.rstrip("="), text.replace("/", "_"), URI + text.replace("=", "%3D")):
        assert decode_base64(form, count) == data


def test_a_last_group_has_two_digits_at_least_and_its_own_padding_or_none() -> None:
    complete = [(n, p) for n in range(4, 8) for p in range(4) if is_complete(n, p)]
    assert complete == [(4, 0), (6, 0), (6, 2), (7, 0), (7, 1)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "A",
        "AAAAA",
        "A===",
        "AAA==",
        "AA=",
        "AAAA=",
        "AAAA==",
        "AAAA====",
        "AA=A",
        "AA==AA==",
        "=AAA",
        "====",
        "AAAA AAAA",
        "AAA.",
        "AA,A",
        "AAA\u00e9",
        "AAA\uff21",
        "AAAA\x00",
        "AA%3D%3D",
        "data:",
        "data:image/png;base64",
        "data:image/png;base64,",
        "data:image/png,AAAA",
        "data:base64,AAAA",
        "data:image/png;base65,AAAA",
        "data:image/png;_base64,AAAA",
        "data:image/png;base64;charset=utf-8,AAAA",
        "data:,data:;base64,AAAA",
        "data:;base64,AA%3D",
        "data:;base64,AA%3",
        "data:;base64,AA%zz",
        "data:;base64,AAA%E4%B8%80",
        "data:;base64,AAAA%00",
    ],
)
def test_what_is_not_base64_is_invalid(text: str) -> None:
    with pytest.raises(InvalidInput):
        decode_base64(text, 1000)


@pytest.mark.parametrize(
    "text",
    [
        TEXT.replace("+", " "),  # decoded as a form: which blank was a plus?
        URI + TEXT.replace("+", " "),
        URI + TEXT.replace("+", " ").replace("=", "%3D"),
        lines(TEXT, 76, " ") + TEXT,
        lines(TEXT, 76, "  "),
        lines(TEXT, 75, " "),
        TEXT[:76] + " " + TEXT[76:],
        TEXT[:6000] + " " + TEXT[6000:],
        TEXT[:8000] + " " + TEXT[8000:-1],
        TEXT[:76] + "\u00a0" + TEXT[76:],
        TEXT[:76] + "\n" + TEXT[76:152] + " " + TEXT[152:],
        TEXT[:40] + " " + TEXT[40:50] + " " + TEXT[50:],
        TEXT[:-2] + "=",
        TEXT[:-3],
        TEXT + "=",
        quote(TEXT, safe=""),
        "data:" + "x" * 300 + ";base64," + TEXT,
    ],
)
def test_what_has_two_meanings_or_none_is_refused_by_its_field(text: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        read({"prompt": "a", "image_base64": text})
    assert [detail.field for detail in refused.value.details] in (["image_base64"], ["images[0]"])


@pytest.mark.parametrize("limit", [75, 76, 77, 1000, 1001, 1002])
def test_a_byte_more_than_the_limit_is_too_large_whatever_three_divides(limit: int) -> None:
    for over in (1, 2, 3, 4):
        text = base64.b64encode(bytes(limit + over)).decode()
        full = base64.urlsafe_b64encode(b"\xff" * (limit + over)).decode()
        for form in (
            text,
            text.rstrip("="),
            lines(text, 5, "\n"),
            URI + quote(text, safe=""),
            full,
        ):
            with pytest.raises(ImageTooLarge, match=f"at most {limit} bytes"):
                decode_base64(form, limit)
    text = base64.b64encode(bytes(limit)).decode()
    for form in (text, text.rstrip("="), lines(text, 1, "\r\n"), URI + quote(text, safe="")):
        assert decode_base64(form, limit) == bytes(limit)


def test_base64_is_measured_before_it_is_decoded() -> None:
    assert len(decode_base64("AAAA" * 25, 75)) == 75
    for text in ("AAAA" * 26, "!" * 200, "AAAA" * 25 + "AA==", "\n" * 10_000, "!" * 102):
        with pytest.raises(ImageTooLarge):
            decode_base64(text, 75)


def test_layout_may_take_three_characters_for_each_of_base64() -> None:
    """As text whose every character is percent-encoded, with a line break next to it."""
    for limit, most in ((75, 400), (76, 416), (77, 416), (78, 416)):
        with pytest.raises(InvalidInput, match="empty"):
            decode_base64("\n" * most, limit)
        with pytest.raises(ImageTooLarge):
            decode_base64("\n" * (most + 1), limit)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("data:;base64,", "is empty"),
        ("AAA.", "is not valid base64"),
        ("data:image/png,AAAA", "a data URI must be"),
        ("data:image/png;base64", "a data URI must be"),
        ("AA AA", "has spaces inside"),
        ("_ AAA", "has spaces inside"),
    ],
)
def test_what_is_wrong_with_it_is_said(text: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        decode_base64(text, 100)


def test_a_picture_written_in_two_forms_is_one_picture() -> None:
    """Names of one field must agree, and do so with and without a header or lines."""
    forms = (TEXT, URI + lines(TEXT, 2000, "\n"), lines(TEXT, 76, " "))
    given = dict(zip(("image", "image_base64", "init_image"), forms, strict=True))
    assert read({"prompt": "a", **given}) == [DATA]
