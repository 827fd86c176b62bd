"""What a site sent under a Content-Encoding -> the file itself, never larger than the limit."""

import sys
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Final

import brotli

from worker.errors import ImageNotThere, ImageTooLarge

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

GZIP: Final = b"\x1f\x8b"
ZSTD: Final = b"\x28\xb5\x2f\xfd"
COMPRESS: Final = b"\x1f\x9d"
ZLIB_METHOD: Final = 8
MOST_CODINGS: Final = 3  # a proxy may compress what is compressed
MOST_MEMBERS: Final = 16  # of a file: each copies the rest of it
# RFC 9659: a browser need not take more, and a frame may ask for 128 MB and hold nothing.
ZSTD_WINDOW_LOG: Final = 23

# One member of a stream, and the most bytes it may have -> its bytes, and what follows it.
Unpacker = Callable[[bytes, int], tuple[bytes, bytes]]


class _BrokenError(Exception):
    """The stream is not whole, or not of its coding at all."""


class _TooLongError(Exception):
    """The stream holds more than it may."""


def codings(header: str) -> tuple[str, ...]:
    """Return the compressions that a Content-Encoding names, in the order they were applied.

    Everything else that sites write there (identity, base64, aws-chunked, none, utf-8, nothing)
    says nothing about the bytes and is left out.
    """
    words = (word.strip().lower().removeprefix("x-") for word in header.split(","))
    return tuple(word for word in words if word in CODINGS)


def most_packed(max_bytes: int) -> int:
    """Return how long a file of `max_bytes` can become by a compression that gains nothing.

    zlib, brotli and zstd store what they cannot compress, with 5 bytes for 16 KB at most.
    """
    return max_bytes + max_bytes // 1000 + 1024


def unpack(data: bytes, names: tuple[str, ...], max_bytes: int) -> bytes:
    """Undo the `names` of `codings`, the last first, at no time to more than `max_bytes`.

    What does not begin as its coding does is taken as it is: stores keep plain pictures under a
    wrong name, and content alone tells a format. Call it off the event loop.

    Raises ImageTooLarge, or ImageNotThere for what cannot be unpacked: HTTP would have told of a
    transfer that was cut, so this is what the site holds.
    """
    if len(names) > MOST_CODINGS:
        raise ImageNotThere(f"the site compressed the picture more than {MOST_CODINGS} times")
    try:
        for name in reversed(names):
            data = CODINGS[name](data, most_packed(max_bytes))
    except _TooLongError:
        too_long = True
    except (_BrokenError, zlib.error, zstd.ZstdError):
        raise ImageNotThere("the site sent compressed bytes that are broken") from None
    else:
        too_long = len(data) > max_bytes
    if too_long:
        raise ImageTooLarge(f"a picture must have at most {max_bytes} bytes, unpacked")
    return data


def _gzip(data: bytes, max_bytes: int) -> bytes:
    """Undo gzip; a zlib stream under that name, too."""
    if data.startswith(GZIP):
        return _members(data, GZIP, _inflater(16 + zlib.MAX_WBITS), max_bytes)
    if _is_zlib(data):
        return _inflater(zlib.MAX_WBITS)(data, max_bytes)[0]
    return data


def _deflate(data: bytes, max_bytes: int) -> bytes:
    """Undo deflate: a zlib stream as RFC 9110 has it, or the bare one that some servers send."""
    if data.startswith(GZIP) or _is_zlib(data):
        return _gzip(data, max_bytes)
    try:  # a bare stream has no mark to be known by
        return _inflater(-zlib.MAX_WBITS)(data, max_bytes)[0]
    except (_BrokenError, zlib.error):
        return data


def _zstd(data: bytes, max_bytes: int) -> bytes:
    return _members(data, ZSTD, _zstd_frame, max_bytes) if data.startswith(ZSTD) else data


def _br(data: bytes, max_bytes: int) -> bytes:
    try:  # no mark either
        return _brotli(data, max_bytes)
    except (_BrokenError, brotli.error):
        return data


def _compress(data: bytes, _: int) -> bytes:
    """Refuse what Unix compress made: no browser undoes it either."""
    if data.startswith(COMPRESS):
        raise ImageNotThere("the site sent the picture under the compression of Unix compress")
    return data


CODINGS: Final[Mapping[str, Callable[[bytes, int], bytes]]] = {
    "gzip": _gzip,
    "deflate": _deflate,
    "br": _br,
    "zstd": _zstd,
    "compress": _compress,
}


def _is_zlib(data: bytes) -> bool:
    """Tell whether a zlib header begins `data` (RFC 1950: method 8, a multiple of 31)."""
    return data[:1] != b"" and data[0] & 15 == ZLIB_METHOD and int.from_bytes(data[:2]) % 31 == 0


def _members(data: bytes, mark: bytes, unpacker: Unpacker, max_bytes: int) -> bytes:
    """Undo one member after the other; what follows them and is none is left out."""
    parts: list[bytes] = []
    left = max_bytes
    while data.startswith(mark):
        if len(parts) == MOST_MEMBERS:
            raise _BrokenError
        part, data = unpacker(data, left)
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _inflater(window_bits: int) -> Unpacker:
    def inflate(data: bytes, max_bytes: int) -> tuple[bytes, bytes]:
        stream = zlib.decompressobj(window_bits)
        return _whole(stream, stream.decompress(data, max_bytes + 1), max_bytes)

    return inflate


def _zstd_frame(data: bytes, max_bytes: int) -> tuple[bytes, bytes]:
    options: dict[int, int] = {zstd.DecompressionParameter.window_log_max: ZSTD_WINDOW_LOG}
    stream = zstd.ZstdDecompressor(options=options)
    return _whole(stream, stream.decompress(data, max_bytes + 1), max_bytes)


def _whole(stream: Any, part: bytes, max_bytes: int) -> tuple[bytes, bytes]:
    if len(part) > max_bytes:
        raise _TooLongError
    if not stream.eof:
        raise _BrokenError
    return part, stream.unused_data


def _brotli(data: bytes, max_bytes: int) -> bytes:
    stream = brotli.Decompressor()
    unpacked = bytearray()
    while not stream.is_finished():
        part = stream.process(data, output_buffer_limit=max_bytes + 1 - len(unpacked))
        unpacked += part
        data = b""
        if len(unpacked) > max_bytes:
            raise _TooLongError
        if not part:
            raise _BrokenError
    return bytes(unpacked)
