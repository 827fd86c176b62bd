"""What the fuzzers feed: JSON, jobs that are almost right, files that are almost pictures."""

import base64
import ipaddress
from collections.abc import Callable
from typing import Any, Final

from hypothesis import strategies as st

from worker.media.address import NOT_PUBLIC_V4
from worker.tasks import registry
from worlds import heic
from worlds.files import chunk, exif, gradient, jpeg_claiming, png, riff, saved, webp_canvas
from worlds.profiles import matrix

SEEDS: Final = [
    *(saved(gradient(24, 20, mode), "PNG") for mode in ("1", "L", "P", "RGB", "RGBA", "LA")),
    saved(gradient(24, 20, "L").convert("I;16"), "PNG"),
    saved(gradient(24, 20), "PNG", save_all=True, append_images=[gradient(24, 20)]),
    saved(gradient(24, 20), "PNG", exif=exif(6), icc_profile=b"profile" * 9),
    saved(gradient(24, 20), "JPEG"),
    saved(gradient(24, 20), "JPEG", progressive=True, exif=exif(8)),
    saved(gradient(24, 20, "L"), "JPEG"),
    saved(gradient(24, 20, "CMYK"), "JPEG"),
    saved(gradient(24, 20), "WEBP"),
    saved(gradient(24, 20, "RGBA"), "WEBP", lossless=True, exif=exif(3)),
    saved(gradient(24, 20), "WEBP", save_all=True, append_images=[gradient(24, 20)]),
    png(24, 20, colour=2, raw=bytes(73 * 20), extra=chunk(b"tRNS", bytes(6))),
    saved(gradient(24, 20), "PNG", icc_profile=matrix("Display P3")),
    png(24, 20, raw=bytes(73 * 20), extra=chunk(b"cICP", b"\x0c\x0d\0\1")),
    png(24, 20, raw=bytes(73 * 20), extra=chunk(b"gAMA", b"abcd")),
    saved(gradient(24, 20), "JPEG", icc_profile=matrix("Adobe RGB"), restart_marker_blocks=1),
    saved(gradient(24, 20), "MPO", save_all=True, append_images=[gradient(24, 20)]),
    saved(gradient(24, 20), "WEBP", icc_profile=matrix("ProPhoto"), xmp=b"<x>"),
    saved(gradient(24, 20), "GIF", transparency=3),
    saved(gradient(24, 20), "GIF", save_all=True, append_images=[gradient(24, 20).rotate(90)]),
    saved(gradient(24, 20), "AVIF"),
    heic.PLAIN,
    jpeg_claiming(saved(gradient(24, 20), "JPEG"), 400, 300),
    riff(webp_canvas(24, 20, 2), (b"ANIM", bytes(6)), (b"ANMF", bytes(40))),
]

SCALARS: Final = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=40)
    | st.text(st.characters(), max_size=40)
    | st.sampled_from(["nan", "-1", "512", "512x512", "auto", "input", "png\n", "\0", "\ud800"])
)
JSON: Final = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=12), inner, max_size=5)
    ),
    max_leaves=25,
)
WORDS: Final = (
    st.sampled_from(["edit", "text-to-image", "generate", "health", "png", "webp", "url", "base64"])
    | st.sampled_from(["1:1", "match_input_image", "auto", "input", "512*512", "data_url", "true"])
    | st.sampled_from(["https://a.test/x.png", "http://127.0.0.1/", "file:///x", "/etc/passwd"])
)


@st.composite
def files(draw: Callable[[Any], Any]) -> bytes:
    """Draw a file: nonsense, or a real picture that was bent here and there."""
    if draw(st.integers(0, 9)) == 0:
        return bytes(draw(st.binary(max_size=400)))
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        match draw(st.integers(0, 5)):
            case 0:
                data[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
            case 1:
                data[at:at] = draw(st.binary(max_size=20))
            case 2:
                del data[at : at + draw(st.integers(1, 40))]
            case 3:
                del data[at:]
            case 4:
                data[at : at + 4] = draw(
                    st.sampled_from([b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff"])
                )
            case _:
                there = draw(st.integers(0, max(0, len(data) - 1)))
                data[at:at] = data[there : there + draw(st.integers(1, 100))]
    return bytes(data)


PICTURES: Final = files().map(lambda data: base64.b64encode(data).decode("ascii"))
VALUES: Final = JSON | WORDS | PICTURES | st.lists(WORDS | PICTURES, max_size=4)
INPUTS: Final = st.dictionaries(
    st.sampled_from(sorted(registry.map_words())) | st.text(max_size=8), VALUES, max_size=8
).flatmap(lambda given: st.sampled_from([given, {"prompt": "a cat", **given}]))


@st.composite
def private_urls(draw: Callable[[Any], Any]) -> str:
    """Draw a URL whose host is, in some spelling, an address that no caller may reach."""
    network = draw(st.sampled_from(NOT_PUBLIC_V4))
    number = draw(st.integers(int(network.network_address), int(network.broadcast_address)))
    host = draw(st.sampled_from(spellings(number)))
    host = draw(st.sampled_from([host, host.upper(), host]))
    if draw(st.booleans()) and host.isascii() and not host.startswith("["):
        at = draw(st.integers(0, len(host) - 1))
        digit = host[at]
        if digit.isdigit():
            other = draw(st.sampled_from(["\uff10", "\u0660", "\u2460", "\U0001d7ce"]))
            host = f"{host[:at]}{chr(ord(other) + int(digit))}{host[at + 1 :]}"
    scheme = draw(st.sampled_from(["https", "http", "HTTPS"]))
    before = draw(st.sampled_from(["", "", "user@", "example.com@", "example.com\\@", "a:b@"]))
    after = draw(st.sampled_from(["", ":443", ":80", ".", ":0443", ":", "%00.example.com"]))
    path = draw(st.sampled_from(["", "/", "/x.png", "?x=1", "#@example.com/", "/@example.com"]))
    return f"{scheme}://{before}{host}{after}{path}"


def spellings(number: int) -> list[str]:
    """Return the ways to write an IPv4 address that some parser, resolver or router accepts."""
    plain = str(ipaddress.IPv4Address(number))
    a, b, c, d = (int(part) for part in plain.split("."))
    teredo = (0x20010000 << 96) | (0x08080808 << 64) | (number ^ 0xFFFFFFFF)
    inside = [
        (0xFFFF << 32) | number,
        (0x0064FF9B << 96) | number,
        (0x2002 << 112) | (number << 80) | 1,
        teredo,
        number,
        (0xFFFF << 48) | number,
        (0x26064700 << 96) | (0x00005EFE << 32) | number,
    ]
    return [
        plain,
        str(number),
        hex(number),
        f"0{number:o}",
        f"{a}.{number & 0xFFFFFF}",
        f"{a}.{b}.{number & 0xFFFF}",
        f"0{a:o}.0{b:o}.0{c:o}.0{d:o}",
        f"0x{a:x}.0x{b:x}.0x{c:x}.0x{d:x}",
        f"{a:04d}.{b}.{c}.{d}",
        *(f"[{ipaddress.IPv6Address(value)}]" for value in inside),
        *(f"[{ipaddress.IPv6Address(value).exploded}]" for value in inside),
        f"[::ffff:{plain}]",
        f"[64:ff9b::{plain}]",
        f"[fe80::{plain}]",
        f"[fd00::{plain}]",
        f"[fec0::{plain}]",
        f"[64:ff9b:1::{plain}]",
    ]
