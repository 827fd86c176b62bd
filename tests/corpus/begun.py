"""Jobs that begin from a picture in ways that they cannot: strengths, masks and margins."""

import base64
from typing import Any, Final

from corpus.case import Case, draw
from PIL import Image

from worlds.files import gradient, png, saved


def text_of(image: Image.Image, kind: str = "PNG") -> str:
    """Return a picture as base64."""
    return base64.b64encode(saved(image, kind)).decode("ascii")


SOURCE: Final = text_of(gradient())
SIZE: Final = (64, 48)
WHITE: Final = text_of(Image.new("L", SIZE, 255))
BLACK: Final = text_of(Image.new("L", SIZE))
HUGE: Final = (5760, 4320)  # of the picture's aspect, and just within the limit of pixels


def begin(**fields: Any) -> Any:
    """Return an otherwise good job that begins from a picture."""
    return draw(**{"image": SOURCE, "strength": 0.5} | fields)


def mask(value: Any = WHITE, **fields: Any) -> Any:
    """Return an otherwise good job that repaints the white of a mask."""
    return draw(**{"image": SOURCE, "mask": value} | fields)


def widen(margins: Any, **fields: Any) -> Any:
    """Return an otherwise good job that adds margins to a picture."""
    return draw(**{"image": SOURCE, "outpaint": margins} | fields)


STRENGTHS: Final = [
    *(
        Case("strengths", f"of {value}", begin(strength=value))
        for value in (0, -0.5, 1.01, 100, 1e308, "1/2", "0,5", "0x1", "", True, [0.5], {"of": 0.5})
    ),
    Case("strengths", "of nothing that is a number", begin(strength=float("nan"))),
    Case("strengths", "without end", begin(strength=float("inf"))),
    Case("strengths", "two that differ", begin(denoise=0.6)),
    Case("strengths", "without a picture", draw(strength=0.5)),
    Case("strengths", "of two pictures", draw(images=[SOURCE, SOURCE], strength=0.5)),
    Case("strengths", "of an edit", begin(task="edit")),
    Case("strengths", "of a text", begin(task="text-to-image")),
    Case("strengths", "of no picture at all", begin(image=base64.b64encode(b"x" * 99).decode()),
         "IMAGE_UNREADABLE"),
    Case("strengths", "next to an unknown preset", begin(preset="best")),
    Case("strengths", "written as text", begin(strength="0.5"), None),
    Case("strengths", "the least", begin(strength=0.01), None),
    Case("strengths", "all of it", begin(strength=1), None),
]  # fmt: skip

MASKS: Final = [
    Case("masks", "black", mask(BLACK)),
    Case("masks", "white and inverted", mask(WHITE, invert_mask=True)),
    Case("masks", "opaque everywhere in a picture that is black",
         mask(text_of(Image.new("RGBA", SIZE, (0, 0, 0, 255))))),
    Case("masks", "of another shape", mask(text_of(Image.new("L", (48, 64), 255)))),
    Case("masks", "without a picture", draw(mask=WHITE)),
    Case("masks", "of an edit", mask(task="edit")),
    Case("masks", "of margins too", mask(outpaint={"left": 16})),
    Case("masks", "missing", mask(None, task="inpaint")),
    Case("masks", "a list", mask([WHITE])),
    Case("masks", "a number", mask(1)),
    Case("masks", "two ways at once", mask({"image": WHITE, "url": "https://a.test/"})),
    Case("masks", "two that differ", mask(mask_image=BLACK)),
    Case("masks", "a path", mask("/etc/passwd")),
    Case("masks", "words", mask("the left half of the picture, but not the hat")),
    Case("masks", "no picture", mask(base64.b64encode(b"no picture" * 9).decode()),
         "IMAGE_UNREADABLE"),
    Case("masks", "cut off", mask(base64.b64encode(saved(gradient(), "PNG")[:90]).decode()),
         "IMAGE_UNREADABLE"),
    Case("masks", "of too many pixels", mask(base64.b64encode(png(30_000, 30_000)).decode()),
         "IMAGE_TOO_LARGE"),
    Case("masks", "of a side of 15", mask(text_of(Image.new("L", (20, 15), 255)))),
    Case("masks", "inside", mask("http://169.254.169.254/latest/"), "IMAGE_FETCH_REFUSED"),
    Case("masks", "that a site does not have",
         lambda site: mask(f"{site.http}/status/404")(site), "IMAGE_FETCH_FAILED"),
    Case("masks", "blurred by -1", mask(mask_blur=-1)),
    Case("masks", "blurred by 65", mask(mask_blur=65)),
    Case("masks", "inverted twice", mask(invert_mask=2)),
    Case("masks", "preserved in words", mask(preserve_unmasked="yes")),
    Case("masks", "a blur without a mask", draw(mask_blur=4)),
    Case("masks", "to preserve in a text", draw(preserve_unmasked=True)),
    Case("masks", "larger than its picture", mask(text_of(Image.new("1", HUGE, 1))), None),
    Case("masks", "white", mask(), None),
    Case("masks", "a JPEG", mask(text_of(Image.new("L", SIZE, 250), "JPEG")), None),
    Case("masks", "a hole", mask(text_of(gradient(mode="RGBA"))), None),
]  # fmt: skip

MARGINS: Final = [
    *(
        Case("margins", f"of {value!r:.40}", widen(value))
        for value in ({}, {"left": 0}, {"left": -1}, {"left": 4097}, {"left": 1.5},
                      {"left": True}, {"left": "wide"}, {"left": 10**400}, {"depth": 3},
                      {"left": None}, [], [16] * 4, 16, "16", True)
    ),
    Case("margins", "with a million keys", widen({f"left{i}": 1 for i in range(1_000_000)})),
    Case("margins", "beyond what can be delivered",
         widen({"left": 4096, "right": 4096, "top": 4096})),
    Case("margins", "of a strip", widen({"left": 4096})),
    Case("margins", "without a picture", draw(outpaint={"left": 16})),
    Case("margins", "missing", draw(image=SOURCE, task="outpaint")),
    Case("margins", "of an edit", widen({"left": 16}, task="edit")),
    Case("margins", "inverted", widen({"left": 16}, invert_mask=True)),
    Case("margins", "all the room there is",
         widen({"left": 1984, "top": 2000}, size="64x64"), None),
    Case("margins", "as text", widen({"left": "16"}), None),
]  # fmt: skip

CASES: Final = [*STRENGTHS, *MASKS, *MARGINS]
