"""Compressed answers are undone by what they begin with, and never to more than the limit."""

import gzip
import random
import sys
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Final

import brotli
import pytest

from worker import codings
from worker.codings import parse_codings
from worker.errors import ImageTooLarge, ImageUnavailable
from worker.media.unpack import CODINGS, compute_max_packed, unpack
from worlds.files import gradient, saved

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

DATA: Final = random.Random(1).randbytes(30_000) + b"picture" * 10_000


def bare(data: bytes) -> bytes:
    """Compress without zlib's header and checksum, as some servers do for deflate."""
    stream = zlib.compressobj(wbits=-15)
    return stream.compress(data) + stream.flush()


PACKED: Final[dict[str, tuple[str, Callable[[bytes], bytes]]]] = {
    "gzip": ("gzip", gzip.compress),
    "old name of gzip": ("x-gzip", gzip.compress),
    "gzip in two members": ("gzip", lambda d: gzip.compress(d[:9]) + gzip.compress(d[9:])),
    "gzip and zeros after it": ("gzip", lambda d: gzip.compress(d) + bytes(512)),
    "zlib": ("deflate", zlib.compress),
    "bare deflate": ("deflate", bare),
    "zlib called gzip": ("gzip", zlib.compress),
    "gzip called deflate": ("deflate", gzip.compress),
    "br": ("br", lambda d: brotli.compress(d, quality=5)),
    "zstd": ("zstd", zstd.compress),
    "zstd in two frames": ("zstd", lambda d: zstd.compress(d[:9]) + zstd.compress(d[9:])),
    "gzip, then br": ("gzip, br", lambda d: brotli.compress(gzip.compress(d), quality=5)),
    "three": ("zstd,gzip,deflate", lambda d: zlib.compress(gzip.compress(zstd.compress(d)))),
    "capitals among others": (" identity,GZIP , none", gzip.compress),
}


@pytest.mark.parametrize("form", PACKED, ids=str)
def test_a_compression_is_undone_up_to_the_limit_and_no_further(form: str) -> None:
    header, pack = PACKED[form]
    packed = pack(DATA)
    assert unpack(packed, parse_codings(header), len(DATA)) == DATA
    with pytest.raises(ImageTooLarge, match=f"at most {len(DATA) - 1} bytes"):
        unpack(packed, parse_codings(header), len(DATA) - 1)


@pytest.mark.parametrize("form", PACKED, ids=str)
def test_a_bomb_takes_no_more_memory_than_the_limit(form: str) -> None:
    header, pack = PACKED[form]
    packed = pack(bytes(30_000_000))
    tracemalloc.start()
    try:
        with pytest.raises(ImageTooLarge):
            unpack(packed, parse_codings(header), 1_000_000)
        assert tracemalloc.get_traced_memory()[1] < 6_000_000
    finally:
        tracemalloc.stop()


def test_members_that_are_within_the_limit_alone_are_not_unpacked_beyond_it_together() -> None:
    packed = gzip.compress(bytes(900_000)) * 16
    tracemalloc.start()
    try:
        with pytest.raises(ImageTooLarge):
            unpack(packed, ("gzip",), 1_000_000)
        assert tracemalloc.get_traced_memory()[1] < 6_000_000
    finally:
        tracemalloc.stop()


# the time in a gzip header must not get into the names of tests: xdist compares them
GZIPPED = gzip.compress(DATA, mtime=0)


@pytest.mark.parametrize(
    ("header", "packed"),
    [
        ("gzip", GZIPPED[:-9]),
        ("gzip", GZIPPED[:12]),
        ("gzip", b"\x1f\x8b" + bytes(50)),
        ("gzip", GZIPPED[:-8] + bytes(8)),  # a wrong checksum
        ("gzip", gzip.compress(b"", mtime=0) * 17),
        ("deflate", zlib.compress(DATA)[:-9]),
        ("deflate", zlib.compress(DATA)[:-4] + bytes(4)),
        ("zstd", zstd.compress(DATA)[:-9]),
        ("zstd", b"\x28\xb5\x2f\xfd" + bytes(50)),
        ("compress", b"\x1f\x9d\x90" + bytes(50)),
        ("x-compress", b"\x1f\x9d\x90" + bytes(50)),
        ("gzip, gzip, gzip, gzip", GZIPPED),
    ],
)
def test_what_cannot_be_undone_is_final_and_not_requested_again(header: str, packed: bytes) -> None:
    with pytest.raises(ImageUnavailable) as failure:
        unpack(packed, parse_codings(header), 1_000_000)
    assert not failure.value.retryable


@pytest.mark.parametrize(
    ("name", "packed"),
    [
        ("br", brotli.compress(DATA, quality=5)[:-9]),
        ("br", brotli.compress(DATA, quality=5)[:1]),
        ("deflate", bare(DATA)[:-9]),
    ],
)
def test_what_has_no_mark_and_does_not_end_is_taken_as_it_is(name: str, packed: bytes) -> None:
    """Nothing distinguishes a broken stream from a file of another kind under a wrong name."""
    assert unpack(packed, (name,), len(DATA)) == packed


def test_every_member_counts_into_the_limit() -> None:
    for pack in (gzip.compress, zstd.compress):
        name = "gzip" if pack is gzip.compress else "zstd"
        packed = pack(bytes(40_000)) * 3
        assert unpack(packed, (name,), 120_000) == bytes(120_000)
        with pytest.raises(ImageTooLarge):
            unpack(packed, (name,), 119_999)


@pytest.mark.parametrize("data", [b"\x78", b"\x79\x9d", b"\x78\x9d", b"\x1f", b"\x28\xb5\x2f"])
def test_what_only_resembles_a_mark_is_none(data: bytes) -> None:
    assert unpack(data, ("gzip",), 10) == data
    assert unpack(data, ("zstd",), 10) == data


def test_sixteen_members_are_undone() -> None:
    assert unpack(gzip.compress(b"a") * 16, ("gzip",), 16) == b"a" * 16


def test_a_frame_of_zstd_may_not_ask_for_a_large_window() -> None:
    def framed(log: int) -> bytes:
        level: dict[int, int] = {zstd.CompressionParameter.window_log: log}
        stream = zstd.ZstdCompressor(options=level)
        return stream.compress(DATA) + stream.flush()

    assert unpack(framed(23), ("zstd",), len(DATA)) == DATA
    with pytest.raises(ImageUnavailable):
        unpack(framed(24), ("zstd",), len(DATA))


@pytest.mark.parametrize("name", ["gzip", "x-gzip", "deflate", "br", "zstd", "compress"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "AVIF", "BMP", "TIFF"])
def test_a_picture_that_is_not_compressed_stays_as_it_is(name: str, kind: str) -> None:
    data = saved(gradient(64, 48), kind)
    assert unpack(data, parse_codings(name), len(data)) == data
    with pytest.raises(ImageTooLarge):
        unpack(data, parse_codings(name), len(data) - 1)
    assert unpack(b"", parse_codings(name), 10) == b""


@pytest.mark.parametrize(
    "header",
    ["", " ", ",", "identity", "none", "utf-8", "base64", "aws-chunked", "binary", "gzipped", "x-"],
)
def test_a_word_that_is_no_compression_is_none(header: str) -> None:
    assert parse_codings(header) == ()


def test_every_compression_that_is_told_is_undone_or_refused() -> None:
    assert set(CODINGS) == codings.COMPRESSIONS


@pytest.mark.parametrize("count", [1, 1000, 100_000, 3_000_000])
def test_nothing_grows_by_more_than_is_allowed_for(count: int) -> None:
    dense = random.Random(1).randbytes(count)
    for pack in (gzip.compress, zlib.compress, bare, zstd.compress, brotli.compress):
        assert len(pack(dense)) <= compute_max_packed(count)
