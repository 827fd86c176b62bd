"""ICC profiles made by hand: matrices of well-known colour spaces, grey, a printer, and bombs."""

import struct
from collections.abc import Callable, Sequence
from itertools import product
from typing import Final

Triple = tuple[float, float, float]
# Red, green and blue relative to D50, as in each colour space's own profile.
COLORANTS: Final[dict[str, tuple[Triple, Triple, Triple]]] = {
    "sRGB": ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410)),
    "Display P3": (
        (0.51512, 0.24120, -0.00105),
        (0.29198, 0.69225, 0.04189),
        (0.15710, 0.06657, 0.78407),
    ),
    "Adobe RGB": (
        (0.60974, 0.31111, 0.01947),
        (0.20528, 0.62567, 0.06087),
        (0.14919, 0.06322, 0.74457),
    ),
    "ProPhoto": ((0.79767, 0.28804, 0.0), (0.13519, 0.71187, 0.0), (0.03134, 0.00009, 0.82491)),
}
GAMMAS: Final = {"sRGB": None, "Display P3": None, "Adobe RGB": 563 / 256, "ProPhoto": 1.8}
D50: Final = (0.9642, 1.0, 0.8249)
PAPER: Final = (0.84, 0.87, 0.71)


def matrix(name: str, *, more: Sequence[tuple[bytes, bytes]] = ()) -> bytes:
    """Return the profile of one of COLORANTS; `more` are further tags."""
    curve = _sampled_srgb() if GAMMAS[name] is None else _power(GAMMAS[name] or 1)
    tags = [(b"wtpt", _xyz(D50))]
    for letter, colour in zip("rgb", COLORANTS[name], strict=True):
        tags += [(f"{letter}XYZ".encode(), _xyz(colour)), (f"{letter}TRC".encode(), curve)]
    return profile(b"RGB ", b"mntr", b"XYZ ", [*tags, *more])


def grey(gamma: float) -> bytes:
    """Return a grey profile."""
    return profile(b"GRAY", b"mntr", b"XYZ ", [(b"wtpt", _xyz(D50)), (b"kTRC", _power(gamma))])


def printer(lab: Callable[[Sequence[int]], Triple], of: bytes = b"prtr") -> bytes:
    """Return a CMYK profile whose 16 corners (0 or 1 of each ink) have these L*a*b* colours.

    lcms looks for the black of a profile without a table back only if it is a scanner's (`of`
    b"scnr").
    """
    colours = b"".join(
        struct.pack(">3H", *(round(v) for v in (65280 * l / 100, 256 * (a + 128), 256 * (b + 128))))
        for l, a, b in (lab(inks) for inks in product((0, 1), repeat=4))  # noqa: E741 - L*a*b*
    )
    identity = struct.pack(">9i", *(65536 * (i % 4 == 0) for i in range(9)))
    ramp = struct.pack(">2H", 0, 65535)
    lut = b"mft2" + bytes(4) + bytes((4, 3, 2, 0)) + identity + struct.pack(">2H", 2, 2)
    table = lut + ramp * 4 + colours + ramp * 3
    tags = [(b"wtpt", _xyz(PAPER)), (b"A2B0", table), (b"A2B1", table)]
    return profile(b"CMYK", of, b"Lab ", tags, version=0x0240_0000)


def profile(
    space: bytes,
    of: bytes,
    connection: bytes,
    tags: Sequence[tuple[bytes, bytes]],
    version: int = 0x0420_0000,
) -> bytes:
    """Return a profile with these tags."""
    table, body, first = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, data in tags:
        table += name + struct.pack(">II", first + len(body), len(data))
        body += data + b"\0" * (-len(data) % 4)
    head = struct.pack(">I4xI4s4s4s", first + len(body), version, of, space, connection)
    head = head.ljust(36, b"\0") + b"acsp"
    return head.ljust(68, b"\0") + _fixed(D50).ljust(60, b"\0") + table + body


def endless(elements: int) -> bytes:
    """Return a D2B0 table whose `elements` steps are all the same few bytes."""
    element = (
        b"matf"
        + bytes(4)
        + struct.pack(">2H", 3, 3)
        + struct.pack(">12f", 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0)
    )
    place = struct.pack(">2I", 16 + 8 * elements, len(element))
    return b"mpet" + bytes(4) + struct.pack(">2HI", 3, 3, elements) + place * elements + element


def curves(steps: int) -> bytes:
    """Return a D2B table of `steps` equal curves, which cannot be merged into one."""
    formula = b"parf" + bytes(4) + struct.pack(">2H4f", 0, 0, 1.01, 1, 0, 0)
    curve = b"curf" + bytes(4) + struct.pack(">2H", 1, 0) + formula
    element = b"cvst" + bytes(4) + struct.pack(">2H", 3, 3)
    element += struct.pack(">2I", 36, len(curve)) * 3 + curve
    place = struct.pack(">2I", 16 + 8 * steps, len(element))
    return b"mpet" + bytes(4) + struct.pack(">2HI", 3, 3, steps) + place * steps + element


def _fixed(values: Sequence[float]) -> bytes:
    return struct.pack(f">{len(values)}i", *(round(v * 65536) for v in values))


def _xyz(values: Triple) -> bytes:
    return b"XYZ " + bytes(4) + _fixed(values)


def _power(gamma: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH2x", 1, round(gamma * 256))


def _sampled_srgb() -> bytes:
    """Return sRGB's curve as in the best-known profile: 1024 numbers."""

    def linear(v: float) -> float:
        return v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4

    numbers = (round(65535 * linear(i / 1023)) for i in range(1024))
    return b"curv" + bytes(4) + struct.pack(">I1024H", 1024, *numbers)
