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
# Characters of text per base64 digit: the digit percent-encoded, and a line break next to it.
LONGEST_FORM: Final = 4


def is_base64_uri(head: str) -> bool:
    """Return whether a data URI is base64, by `head`, its part before the comma.

    As browsers read it (WHATWG, "data: URL processor"): "base64" comes last, after a semicolon and
    possibly spaces, in either case; what precedes it may be missing and is ignored.
    """
    _, semicolon, last = unquote(head).rpartition(";")
    return bool(semicolon) and last.strip(" ").lower() == "base64"


def is_complete(digits: int, padding: int) -> bool:
    """Return whether base64 with this many digits and "=" signs, or no "=" at all, is complete.

    One digit in the last group holds no byte; padding that does not fit means a lost character.
    """
    due = -digits % GROUP
    return due < GROUP - 1 and padding in {0, due}


def join_lines(text: str) -> str:
    """Remove white space from base64 where it can only be layout.

    A form that was decoded once too often turns plus signs into spaces, anywhere. A document's
    spaces are next to its line breaks; those of `echo $(base64 FILE)` are between complete groups
    of four in lines of equal length. Raises ValueError for others, with a message for the caller.
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
            "has spaces inside that may have been plus signs; send base64 without spaces, or with"
            " - and _ for + and /"
        )
    return joined


def decode_base64(text: str, max_bytes: int) -> bytes:
    """Decode base64 in any unambiguous form, possibly a data URI.

    Either alphabet of RFC 4648 or both, padded or not, in lines of any length (RFC 2045); a data
    URI may be percent-encoded (RFC 2397), and its media type is ignored. The length is checked
    before anything is decoded. Raises ImageTooLarge, or InvalidInput for anything but base64.
    """
    is_uri = text[:5].lower() == "data:"
    if is_uri:
        head, comma, text = text.partition(",")
        if not comma or not is_base64_uri(head):
            raise InvalidInput('a data URI must be "data:image/...;base64,..."')
    if len(text) > LONGEST_FORM * ((max_bytes + 2) // 3 * GROUP):
        raise _make_too_large(max_bytes)
    if is_uri and "%" in text:
        text = unquote(text).translate(LAYOUT)
    # first as it is: looking for other forms takes 20 ms
    data = _decode_line(text, max_bytes) or _decode_line(_normalise(text, max_bytes), max_bytes)
    if data is None:
        raise InvalidInput("a picture is not valid base64")
    if not data:
        raise InvalidInput("a picture is empty")
    return data


def _normalise(text: str, max_bytes: int) -> str:
    """Convert base64 to one line of the standard alphabet, and check its length."""
    try:
        line = join_lines(text)
    except ValueError as error:
        raise InvalidInput(f"a picture {error}") from None
    if _count_digits(line) * 3 // GROUP > max_bytes:
        raise _make_too_large(max_bytes)
    return line.translate(URL_SAFE)


def _decode_line(line: str, max_bytes: int) -> bytes | None:
    """Decode one line; None if it is not in the standard alphabet, incomplete or too long."""
    digits = _count_digits(line)
    if digits * 3 // GROUP > max_bytes or not is_complete(digits, len(line) - digits):
        return None
    try:
        plain = line.encode() + b"=" * (-len(line) % GROUP)
        return binascii.a2b_base64(plain, strict_mode=True)
    except ValueError:
        return None


def _count_digits(line: str) -> int:
    return len(line.rstrip("="))


def _make_too_large(max_bytes: int) -> ImageTooLarge:
    return ImageTooLarge(f"a picture must have at most {max_bytes} bytes")
