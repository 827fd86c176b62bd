"""Jobs whose reference is no picture, not quite one, or far more than one."""

import base64
import struct
import zlib
from typing import Final
from urllib.parse import quote

from corpus.case import Case, draw, edit
from PIL import Image

from worlds import heic
from worlds.files import chunk, exif, gradient, jpeg_claiming, png, riff, saved, webp_canvas
from worlds.profiles import curves, grey, matrix

GOOD: Final = saved(gradient(), "PNG")
TEXT: Final = base64.b64encode(GOOD).decode("ascii")
JPEG: Final = saved(gradient(256, 192), "JPEG")
WEBP: Final = saved(gradient(256, 192), "WEBP")
URI: Final = "data:image/png;base64,"
PLUS: Final = base64.b64encode(GOOD + b"\xfb\xef\xbe" * 9).decode("ascii")
AVIF: Final = saved(gradient(256, 192), "AVIF")
PROGRESSIVE: Final = saved(gradient(), "JPEG", progressive=True)
LARGE: Final = "IMAGE_TOO_LARGE"
UNREADABLE: Final = "IMAGE_UNREADABLE"
SMALL_LIMIT: Final = {"MAX_IMAGE_BYTES": "2000"}

BASE64: Final = [
    Case("base64", "empty", draw(image="")),
    Case("base64", "one character", draw(image="A")),
    Case("base64", "words", draw(image="this is not base64 at all, but it is long enough")),
    Case("base64", "blanks for plus signs", draw(image=PLUS.replace("+", " "))),
    Case("base64", "padding of another length", draw(image=TEXT[:-2] + "=")),
    Case("base64", "data URI with a wrong escape", draw(image=URI + TEXT[:-4] + "%3")),
    Case("base64", "data URI of escapes over the limit", draw(image=URI + "%41" * 8000), LARGE,
         SMALL_LIMIT),
    *(
        Case("base64", name, draw(image=text), None)
        for name, text in {
            "URL-safe alphabet": TEXT.replace("+", "-").replace("/", "_"),
            "no padding": TEXT.rstrip("="),
            "lines of 2000": "\n".join(TEXT[at : at + 2000] for at in range(0, len(TEXT), 2000)),
            "data URI, percent-encoded": URI + quote(TEXT, safe=""),
            "data URI with a charset": "DATA:image/PNG;charset=utf-8;BASE64," + TEXT,
        }.items()
    ),
    Case("base64", "NUL inside", draw(image=TEXT[:40] + "\0" + TEXT[40:])),
    Case("base64", "surrogate inside", draw(image=TEXT[:40] + "\ud800" + TEXT[41:])),
    Case("base64", "other letters", draw(image=TEXT[:40] + "\uff21" + TEXT[41:])),
    Case("base64", "padding inside", draw(image=TEXT[:40] + "==" + TEXT[42:])),
    Case("base64", "padding alone", draw(image="=" * 64)),
    Case("base64", "three pads", draw(image=TEXT.rstrip("=") + "===")),
    Case("base64", "one digit too many", draw(image=TEXT.rstrip("=")[: len(TEXT) // 4 * 4 - 3])),
    Case("base64", "percent-encoded", draw(image=TEXT.replace("/", "%2F").replace("+", "%2B"))),
    Case("base64", "of base64", draw(image=base64.b64encode(TEXT.encode()).decode()), UNREADABLE),
    Case("base64", "hex", draw(image=(GOOD + GOOD).hex()), UNREADABLE),
    Case("base64", "data URI without base64", draw(image="data:image/png," + TEXT)),
    Case("base64", "data URI without comma", draw(image="data:image/png;base64" + TEXT)),
    Case("base64", "data URI without data", draw(image="data:image/png;base64,")),
    Case("base64", "data URI in a data URI", draw(image="data:;base64,data:;base64," + TEXT)),
    Case("base64", "endless data URI head", draw(image="data:" + "a" * 10**6 + ";base64," + TEXT)),
    Case("base64", "of a web page as image/png", draw(
        image="data:image/png;base64," + base64.b64encode(b"<html>" * 40).decode()), UNREADABLE),
    Case("base64", "over the limit", draw(image="A" * 2800), LARGE, SMALL_LIMIT),
    Case("base64", "27 MB and over the limit", draw(image="A" * 26_666_672), LARGE),
    Case("base64", "a path", draw(image="/runpod-volume/secret.png")),
    Case("base64", "a path going up", draw(image="../../../etc/passwd")),
    Case("base64", "a path of Windows", draw(image="C:\\Windows\\win.ini")),
]  # fmt: skip

_RAW: Final = bytes(193 * 64)
CONTAINERS: Final = [
    Case("file containers", name, edit(data), UNREADABLE)
    for name, data in {
        "zeros": bytes(1000),
        "text": b"not a picture, only words " * 10,
        "GIF of no picture": saved(gradient(), "GIF")[:781] + b";",
        "GIF cut in the middle": saved(gradient(), "GIF")[:1000],
        "BMP": saved(gradient(), "BMP"),
        "TIFF": saved(gradient(), "TIFF"),
        "PPM": saved(gradient(), "PPM"),
        "ICO": saved(gradient(), "ICO"),
        "JPEG 2000": saved(gradient(), "JPEG2000"),
        "PDF": b"%PDF-1.7\n" + bytes(200),
        "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
        "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n(w) print\n" * 3,
        "ZIP": b"PK\x03\x04" + bytes(200),
        "PNG signature alone": GOOD[:8] + bytes(40),
        "PNG without IDAT": GOOD[:33] + chunk(b"IEND", b""),
        "PNG cut in the middle": GOOD[: len(GOOD) // 2],
        "PNG with broken IDAT": GOOD[:60] + bytes(20) + GOOD[80:],
        "PNG with a wrong IHDR": GOOD.replace(b"IHDR", b"IHDX"),
        "PNG of 3 bits": png(64, 64, bits=3, raw=_RAW),
        "PNG of colour 9": png(64, 64, colour=9, raw=_RAW),
        "PNG with filter 9": png(64, 64, raw=b"\x09" * len(_RAW)),
        "PNG with too few rows": png(64, 64, raw=_RAW[:-500]),
        "PNG of a chunk that claims 2 GB": GOOD[:33] + b"\x7f\xff\xff\xffIDAT" + bytes(99),
        "JPEG start alone": b"\xff\xd8\xff\xe0" + bytes(60),
        "JPEG cut in the middle": JPEG[: len(JPEG) // 2],
        "WEBP head alone": WEBP[:30],
        "WEBP cut in the middle": WEBP[: len(WEBP) // 2],
        "WEBP with a canvas and no picture": riff(webp_canvas(64, 64)),
        "WEBP with a broken frame": riff(webp_canvas(64, 64), (b"VP8L", b"\x2f" + bytes(60))),
        "MP4": b"\0\0\0\x18ftypmp42" + bytes(4) + b"isommp42" + bytes(400),
        "AVIF head alone": AVIF[:200],
        "AVIF cut in the middle": AVIF[: len(AVIF) // 2],
        "HEIC head alone": heic.PLAIN[:200],
        "HEIC cut in the middle": heic.PLAIN[: len(heic.PLAIN) // 2],
        "JPEG that lacks its last block": JPEG[:-12],
        "progressive JPEG that lacks a scan": PROGRESSIVE[: PROGRESSIVE.rindex(b"\xff\xda")],
        "JPEG of nothing but comments": JPEG[:2] + b"\xff\xfe\0\2" * 1_000_000,
        "PNG of nothing but texts": GOOD[:33] + chunk(b"tEXt", b"k\0v") * 300_000,
        "WAV": b"RIFF" + struct.pack("<I", 200) + b"WAVE" + bytes(200),
        "PNG behind a byte": b"\0" + GOOD,
    }.items()
] + [
    # Decoders make something of these, as they do everywhere: a strange picture, but a picture.
    Case("file containers", name, edit(data), None)
    for name, data in {
        "JPEG without tables": JPEG.replace(b"\xff\xc4", b"\xff\xfe"),
        "JPEG with a zero-length segment": b"\xff\xd8\xff\xe0\x00\x00" + JPEG[20:],
        "JPEG of arithmetic coding": JPEG.replace(b"\xff\xc0", b"\xff\xc9"),
        "JPEG that ends early and says so": jpeg_claiming(JPEG, 2560, 1920),
        "PNG with bytes behind its end": GOOD + b"PK\x03\x04" * 100,
        "PNG of the text bomb": png(
            64, 64, raw=_RAW, extra=chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(9_000_000)))
        ),
        "PNG of a text with a wrong checksum": GOOD[:33] + b"\0\0\0\3tEXtk\0vCRC!" + GOOD[33:],
        "PNG of a profile of another colour space": saved(gradient(), "PNG", icc_profile=grey(1.0)),
        "PNG of a profile that lcms would run for hours": saved(
            gradient(), "PNG", icc_profile=matrix("sRGB", more=[(b"D2B1", curves(9000))])
        ),
        "GIF": saved(gradient(), "GIF"),
        "GIF that moves": saved(
            gradient(), "GIF", save_all=True, append_images=[gradient().rotate(90)] * 3
        ),
        "AVIF": AVIF,
        "HEIC": heic.PLAIN,
        "motion photo": JPEG + b"\0\0\0\x18ftypmp42" + b"\xff\xda" * 100_000,
        "JPEG with zeros between its segments": JPEG[:20] + b"\0\0" + JPEG[20:],
        "JPEG without its end": JPEG[:-2],
        "JPEG of a short JFIF": JPEG[:2] + b"\xff\xe0\0\6JFIF" + JPEG[20:],
        "WEBP cut in its EXIF": saved(gradient(), "WEBP", exif=exif(3))[:-20],
    }.items()
]

GEOMETRY: Final = [
    Case("geometry", "1 x 1", edit(saved(gradient(1, 1), "PNG"))),
    Case("geometry", "15 x 64", edit(saved(gradient(15, 64), "PNG"))),
    Case("geometry", "64 x 15", edit(saved(gradient(64, 15), "JPEG"))),
    Case("geometry", "width 0", edit(png(0, 64)), UNREADABLE),
    Case("geometry", "height 0", edit(png(64, 0)), UNREADABLE),
    Case("geometry", "JPEG of no height", edit(jpeg_claiming(JPEG, 64, 0)), UNREADABLE),
    Case("geometry", "a line", edit(saved(Image.new("L", (4000, 16)), "PNG"))),
    Case("geometry", "an upright line", edit(saved(Image.new("L", (16, 4000)), "WEBP"))),
    Case("geometry", "a line after EXIF",
         edit(saved(Image.new("L", (999, 16)), "JPEG", exif=exif(6)))),
    Case("geometry", "canvas larger than its picture",
         edit(riff(webp_canvas(512, 512), (WEBP[12:16], WEBP[20:]))), UNREADABLE),
    Case("geometry", "picture larger than its canvas",
         edit(riff(webp_canvas(16, 16), (WEBP[12:16], WEBP[20:]))), UNREADABLE),
    Case("geometry", "size input of a huge picture",
         edit(png(5000, 5000, bits=1, colour=0, raw=bytes(626 * 5000)), size="input")),
    Case("geometry", "size input and a width", edit(GOOD, size="input", width=128)),
    Case("geometry", "size and another width", edit(GOOD, size="128x128", width=256)),
]  # fmt: skip

_EXIF: Final = b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(60_000)
_SCAN: Final = PROGRESSIVE[PROGRESSIVE.rindex(b"\xff\xda") : -2]


def _claiming(data: bytes, side: int) -> bytes:
    """Return the AVIF or HEIC with another size in its box."""
    at = data.index(b"ispe") + 8
    return data[:at] + side.to_bytes(4) * 2 + data[at + 8 :]


BOMBS: Final = [
    Case("bombs", name, edit(data), LARGE)
    for name, data in {
        "PNG claims 60,000 x 60,000": png(60_000, 60_000),
        "PNG claims 2^31 x 2^31": png(2**31 - 1, 2**31 - 1),
        "PNG of 100 million zeros": png(10_000, 10_000, bits=1, colour=0, raw=bytes(1251 * 10_000)),
        "PNG of 16 bits": png(20_000, 20_000, bits=16, colour=6),
        "JPEG claims 65,500 x 65,500": jpeg_claiming(JPEG, 65_500, 65_500),
        "WEBP canvas 16,000 x 16,000": riff(webp_canvas(16_000, 16_000), (WEBP[12:16], WEBP[20:])),
        "GIF canvas 60,000 x 60,000": b"GIF89a" + b"\x60\xea" * 2 + saved(gradient(), "GIF")[10:],
        "AVIF claims 60,000 x 60,000": _claiming(AVIF, 60_000),
        "HEIC claims 60,000 x 60,000": _claiming(heic.PLAIN, 60_000),
        "JPEG claims 16,000 x 16,000": jpeg_claiming(JPEG, 16_000, 16_000),
        "WEBP canvas of 2^48": riff(webp_canvas(2**24, 2**24, flags=2), (b"ANIM", bytes(6))),
        "WEBP lossless 16,384 x 16,384": riff(
            (b"VP8L", b"\x2f" + struct.pack("<I", 0x0FFF_FFFF) + bytes(99))
        ),
        "WEBP lossy 16,383 x 16,383": riff(
            (b"VP8 ", b"\x10\0\0\x9d\x01\x2a\xff\x3f\xff\x3f" + bytes(99))
        ),
    }.items()
] + [
    Case("bombs", "JPEG of 5000 scans", edit(PROGRESSIVE[:-2] + _SCAN * 5000), UNREADABLE),
    Case("bombs", "PNG within the limit and cut", edit(png(5000, 5000)), UNREADABLE),
    Case("bombs", "WEBP within the limit and broken",
         edit(riff(webp_canvas(3500, 3500), (b"VP8L", b"\x2f" + bytes(60)))), UNREADABLE),
    Case("bombs", "PNG of a colour profile that unpacks to 50 MB",
         edit(png(64, 64, raw=_RAW,
                  extra=chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(50_000_000))))), None),
    Case("bombs", "PNG of 100,000 chunks",
         edit(png(64, 64, raw=_RAW, extra=chunk(b"tEXt", b"k\0v") * 100_000)), None),
    Case("bombs", "GIF of a million blocks before its picture",
         edit(saved(gradient(), "GIF")[:781] + b"!\xfe" + b"\1a" * 1_000_000 + b"\0"
              + saved(gradient(), "GIF")[781:]), None),
    Case("bombs", "JPEG of 100 million pixels that ends early",
         edit(jpeg_claiming(JPEG, 12_000, 9000)), None),
    Case("bombs", "progressive JPEG of 200 million pixels",
         edit(jpeg_claiming(saved(gradient(), "JPEG", progressive=True, subsampling=0),
                            16_000, 12_000)), LARGE),
    Case("bombs", "EXIF of 65,535 entries",
         edit(saved(gradient(8, 8), "PNG", exif=_EXIF))),
]  # fmt: skip

CASES: Final = [*BASE64, *CONTAINERS, *GEOMETRY, *BOMBS]
