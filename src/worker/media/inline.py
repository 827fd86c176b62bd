"""A picture inside the job, base64 or a data URI -> bytes."""

import binascii
import re
from typing import Final
from urllib.parse import unquote

from worker.errors import ImageTooLarge, InvalidInput

LAYOUT: Final = str.maketrans("", "", " \t\r\n")
BLANKS: Final = re.compile(r"[ \t\r\n]+")
LINE_END: Final = re.compile(r"[\r\n]+")
SHORTEST_LINE: Final = 60  # tools write lines of 64 or 76 digits, or longer ones
URL_SAFE: Final = str.maketrans("-_", "+/")  # RFC 4648, section 5
GROUP: Final = 4  # digits that hold three bytes
# Characters of text for one of base64: each of them percent-encoded, and a line break beside.
LONGEST_FORM: Final = 4


def is_base64_uri(head: str) -> bool:
    """Tell whether a data URI whose part before the comma is `head` holds base64.

    As browsers read it (WHATWG, "data: URL processor"): "base64" stands last, behind a semicolon
    and perhaps spaces, in either case; what stands before it may be missing and is not looked at.
    """
    _, semicolon, last = unquote(head).rpartition(";")
    return bool(semicolon) and last.strip(" ").lower() == "base64"


def is_whole(digits: int, padding: int) -> bool:
    """Tell whether base64 of so many digits can end here, with so many "=" or without any.

    One digit in the last group holds no byte; padding that does not fit tells of a lost character.
    """
    due = -digits % GROUP
    return due < GROUP - 1 and padding in {0, due}


def in_one_line(text: str) -> str:
    """Take white space out of base64, where it cannot be anything but layout.

    A form that was decoded once too often has made blanks of the plus signs, at any places. Those
    of a document stand beside its line breaks; those of `echo $(base64 FILE)` between whole groups
    of four in lines of one length. Raises ValueError, with a message for the caller, for others.
    """
    if " " not in text and "\t" not in text:
        return text.replace("\n", "").replace("\r", "")
    pieces = BLANKS.split(text)
    joined = "".join(pieces)
    *lines, last = map(len, pieces)
    in_groups = (
        len(set(lines)) == 1
        and lines[0] >= max(last, SHORTEST_LINE)
        and all(count % GROUP == 0 for count in (lines[0], last))
        and len(text) == len(joined) + len(lines)
    )
    if not in_groups and any(BLANKS.search(line.strip(" \t")) for line in LINE_END.split(text)):
        raise ValueError(
            "has blanks inside, perhaps once plus signs; send base64 without blanks, or with"
            " - and _ for + and /"
        )
    return joined


def decode_base64(text: str, max_bytes: int) -> bytes:
    """Decode base64 in any form that has one meaning, perhaps as a data URI.

    Either alphabet of RFC 4648 or both, padded or without padding, in lines of any length
    (RFC 2045); a data URI may be percent-encoded (RFC 2397). What it says of its type is not
    believed. The length is judged before anything is decoded. Raises ImageTooLarge, or
    InvalidInput for anything else than base64.
    """
    is_uri = text[:5].lower() == "data:"
    if is_uri:
        head, comma, text = text.partition(",")
        if not comma or not is_base64_uri(head):
            raise InvalidInput('a data URI must be "data:image/...;base64,..."')
    if len(text) > LONGEST_FORM * ((max_bytes + 2) // 3 * GROUP):
        raise _too_large(max_bytes)
    if is_uri and "%" in text:
        text = unquote(text, errors="replace").translate(LAYOUT)
    data = _decoded(text, max_bytes)  # first as it is: looking for other forms takes 20 ms
    if data is None:
        data = _decoded(_plain(text, max_bytes), max_bytes)
    if data is None:
        raise InvalidInput("a picture is not valid base64")
    if not data:
        raise InvalidInput("a picture is empty")
    return data


def _plain(text: str, max_bytes: int) -> str:
    """Bring base64 into one line of the standard alphabet, and judge its length."""
    try:
        line = in_one_line(text)
    except ValueError as error:
        raise InvalidInput(f"a picture {error}") from None
    if _digits(line) * 3 // GROUP > max_bytes:
        raise _too_large(max_bytes)
    return line.translate(URL_SAFE)


def _decoded(line: str, max_bytes: int) -> bytes | None:
    """Decode one line; None when it is not of the standard alphabet, not whole, or too long."""
    digits = _digits(line)
    if digits * 3 // GROUP > max_bytes or not is_whole(digits, len(line) - digits):
        return None
    try:
        plain = line.encode("ascii") + b"=" * (-len(line) % GROUP)
        return binascii.a2b_base64(plain, strict_mode=True)
    except ValueError:
        return None


def _digits(line: str) -> int:
    return len(line.rstrip("="))


def _too_large(max_bytes: int) -> ImageTooLarge:
    return ImageTooLarge(f"a picture must have at most {max_bytes} bytes")
