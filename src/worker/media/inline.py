"""A picture inside the job, base64 or a data URI -> bytes."""

import binascii
from typing import Final

from worker.errors import ImageTooLarge, InvalidInput

NOT_BASE64: Final = "a picture is not valid base64"
LINE_BREAKS: Final = str.maketrans("", "", "\r\n")


def decode_base64(text: str, max_bytes: int) -> bytes:
    """Decode standard base64, padded, perhaps in lines, perhaps as a data URI.

    What a data URI says of its type is not believed, only that it is base64. The length is judged
    before anything is decoded. Raises ImageTooLarge, or InvalidInput for anything else than base64.
    """
    if text[:5].lower() == "data:":
        head, comma, text = text.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise InvalidInput('a data URI must be "data:image/...;base64,..."')
    longest = (max_bytes + 2) // 3 * 4
    if len(text) > longest * 1.04:  # lines of 76 characters with CRLF add 2.7 %
        raise ImageTooLarge(f"a picture must have at most {max_bytes} bytes")
    if "\n" in text or "\r" in text:
        text = text.translate(LINE_BREAKS)
    if len(text) > longest:
        raise ImageTooLarge(f"a picture must have at most {max_bytes} bytes")
    if len(text) % 4:  # strict mode overlooks padding after a whole group
        raise InvalidInput(NOT_BASE64)
    try:
        data = binascii.a2b_base64(text.encode("ascii"), strict_mode=True)
    except ValueError:
        raise InvalidInput(NOT_BASE64) from None
    if not data:
        raise InvalidInput("a picture is empty")
    if len(data) > max_bytes:
        raise ImageTooLarge(f"a picture must have at most {max_bytes} bytes")
    return data
