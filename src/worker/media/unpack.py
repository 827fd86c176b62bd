"""Undo the Content-Encoding of what a site sent, never to more than the limit."""

import sys
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Final

import brotli

from worker.errors import ImageTooLarge, ImageUnavailable

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

GZIP: Final = b"\x1f\x8b"
ZSTD: Final = b"\x28\xb5\x2f\xfd"
COMPRESS: Final = b"\x1f\x9d"
ZLIB_METHOD: Final = 8
MOST_CODINGS: Final = 3  # a proxy may compress what is already compressed
MOST_MEMBERS: Final = 16  # per file: each copies the rest of it
# RFC 9659: a browser need not accept more, and a frame may request 128 MB and contain nothing.
ZSTD_WINDOW_LOG: Final = 23

# Takes a stream and the most bytes its first member may have; returns the member's bytes, and what
# follows it.
Unpacker = Callable[[bytes, int], tuple[bytes, bytes]]


class _BrokenError(Exception):
    """The stream is incomplete, or not in its coding at all."""


class _TooLongError(Exception):
    """The stream holds more than allowed."""


def compute_max_packed(max_bytes: int) -> int:
    """Return how long a file of `max_bytes` can become if its compression gains nothing.

    zlib, brotli and zstd store what they cannot compress, with at most 5 bytes per 16 KB.
    """
    return max_bytes + max_bytes // 1000 + 1024


def unpack(data: bytes, names: tuple[str, ...], max_bytes: int) -> bytes:
    """Undo the `names` of `parse_codings`, the last first, at no time to more than `max_bytes`.

    What does not begin as its coding does is left as it is: stores label plain pictures wrongly,
    and only content identifies a format. Call it off the event loop.

    Raises ImageTooLarge, or ImageUnavailable for what cannot be unpacked: HTTP would have reported
    a transfer that was cut off, so this is what the site has.
    """
    if len(names) > MOST_CODINGS:
        raise ImageUnavailable(f"the site compressed the picture more than {MOST_CODINGS} times")
    try:
        for name in reversed(names):
            data = CODINGS[name](data, compute_max_packed(max_bytes))
    except _TooLongError:
        too_long = True
    except (_BrokenError, zlib.error, zstd.ZstdError):
        raise ImageUnavailable("the site sent compressed bytes that are broken") from None
    else:
        too_long = len(data) > max_bytes
    if too_long:
        raise ImageTooLarge(f"a picture must have at most {max_bytes} bytes, unpacked")
    return data


def _undo_gzip(data: bytes, max_bytes: int) -> bytes:
    """Undo gzip, or a zlib stream under that name."""
    if data.startswith(GZIP):
        return _unpack_members(data, GZIP, _make_inflater(16 + zlib.MAX_WBITS), max_bytes)
    if _is_zlib(data):
        return _make_inflater(zlib.MAX_WBITS)(data, max_bytes)[0]
    return data


def _undo_deflate(data: bytes, max_bytes: int) -> bytes:
    """Undo deflate: a zlib stream as in RFC 9110, or the bare one that some servers send."""
    if data.startswith(GZIP) or _is_zlib(data):
        return _undo_gzip(data, max_bytes)
    try:  # a bare stream has no signature
        return _make_inflater(-zlib.MAX_WBITS)(data, max_bytes)[0]
    except (_BrokenError, zlib.error):
        return data


def _undo_zstd(data: bytes, max_bytes: int) -> bytes:
    if not data.startswith(ZSTD):
        return data
    return _unpack_members(data, ZSTD, _unpack_zstd_frame, max_bytes)


def _undo_brotli(data: bytes, max_bytes: int) -> bytes:
    try:  # no signature either
        return _unpack_brotli(data, max_bytes)
    except (_BrokenError, brotli.error):
        return data


def _refuse_compress(data: bytes, _: int) -> bytes:
    """Refuse the output of Unix compress: no browser undoes it either."""
    if data.startswith(COMPRESS):
        raise ImageUnavailable("the site sent the picture compressed by Unix compress")
    return data


# By the names of codings.COMPRESSIONS.
CODINGS: Final[Mapping[str, Callable[[bytes, int], bytes]]] = {
    "gzip": _undo_gzip,
    "deflate": _undo_deflate,
    "br": _undo_brotli,
    "zstd": _undo_zstd,
    "compress": _refuse_compress,
}


def _is_zlib(data: bytes) -> bool:
    """Return whether `data` begins with a zlib header (RFC 1950: method 8, a multiple of 31)."""
    return data[:1] != b"" and data[0] & 15 == ZLIB_METHOD and int.from_bytes(data[:2]) % 31 == 0


def _unpack_members(data: bytes, signature: bytes, unpacker: Unpacker, max_bytes: int) -> bytes:
    """Undo one member after another; anything else that follows them is left out."""
    parts: list[bytes] = []
    left = max_bytes
    while data.startswith(signature):
        if len(parts) == MOST_MEMBERS:
            raise _BrokenError
        part, data = unpacker(data, left)
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _make_inflater(window_bits: int) -> Unpacker:
    def inflate(data: bytes, max_bytes: int) -> tuple[bytes, bytes]:
        stream = zlib.decompressobj(window_bits)
        return _check_end(stream, stream.decompress(data, max_bytes + 1), max_bytes)

    return inflate


def _unpack_zstd_frame(data: bytes, max_bytes: int) -> tuple[bytes, bytes]:
    options: dict[int, int] = {zstd.DecompressionParameter.window_log_max: ZSTD_WINDOW_LOG}
    stream = zstd.ZstdDecompressor(options=options)
    return _check_end(stream, stream.decompress(data, max_bytes + 1), max_bytes)


def _check_end(stream: Any, part: bytes, max_bytes: int) -> tuple[bytes, bytes]:
    if len(part) > max_bytes:
        raise _TooLongError
    if not stream.eof:
        raise _BrokenError
    return part, stream.unused_data


def _unpack_brotli(data: bytes, max_bytes: int) -> bytes:
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
