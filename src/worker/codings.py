"""What a Content-Encoding says about bytes: which compressions they are in, if any."""

from typing import Final

COMPRESSIONS: Final = frozenset({"br", "compress", "deflate", "gzip", "zstd"})


def parse_codings(header: str) -> tuple[str, ...]:
    """Return the compressions that a Content-Encoding names, in the order they were applied.

    Everything else that sites and clients write there (identity, base64, aws-chunked, none, utf-8,
    nothing) says nothing about the bytes and is ignored.
    """
    words = (word.strip().lower().removeprefix("x-") for word in header.split(","))
    return tuple(word for word in words if word in COMPRESSIONS)
