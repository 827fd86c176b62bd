"""Colours told by numbers instead of a profile -> the ICC profile that says the same."""

import struct
from collections.abc import Mapping
from typing import Final

Point = tuple[float, float]
Primaries = tuple[Point, Point, Point, Point]
Vector = tuple[float, float, float]
Matrix = tuple[Vector, Vector, Vector]

D65: Final[Point] = (0.3127, 0.3290)
BT709: Final[Primaries] = ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060), D65)
# Red, green, blue and white by their number in ITU-T H.273, table 2; 2 is "unspecified".
PRIMARIES: Final[Mapping[int, Primaries]] = {
    1: BT709,
    2: BT709,
    5: ((0.640, 0.330), (0.290, 0.600), (0.150, 0.060), D65),
    6: ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070), D65),
    7: ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070), D65),
    9: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046), D65),
    11: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), (0.314, 0.351)),
    12: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), D65),
}
# H.273, table 3. A camera's curves (1, 6, 14, 15) are shown by sRGB's, as browsers do: a screen
# does not undo them. Those of HDR (16, 18) have no place in 8 bits.
SRGB_CURVE: Final = None
GAMMAS: Final[Mapping[int, float | None]] = {
    **dict.fromkeys((1, 2, 6, 13, 14, 15), SRGB_CURVE),
    4: 2.2,
    5: 2.8,
    8: 1.0,
}
# PNG's gAMA is 1/gamma times this. One within a twentieth of 1/2.2 means sRGB: so libpng takes it,
# and so most writers mean it (PNG_GAMMA_THRESHOLD_FIXED of libpng's pngpriv.h).
GAMMA_UNIT: Final = 100_000
SRGB_GAMMA: Final = 45_455
THRESHOLD: Final = 0.05

# IEC 61966-2-1: g, a, b, c, d of ICC's parametric curve 3.
SRGB_PARAMETERS: Final = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
D50: Final[Vector] = (0.9642, 1.0, 0.8249)
BRADFORD: Final[Matrix] = (
    (0.8951, 0.2664, -0.1614),
    (-0.7502, 1.7135, 0.0367),
    (0.0389, -0.0685, 1.0296),
)
UNKNOWN: Final = b""  # no profile that could be read


def by_number(primaries: int, transfer: int) -> bytes | None:
    """Return the profile of H.273 code points (PNG's cICP, HEIF's nclx); None for sRGB's own.

    UNKNOWN for numbers that have none.
    """
    if primaries not in PRIMARIES or transfer not in GAMMAS:
        return UNKNOWN
    points, gamma = PRIMARIES[primaries], GAMMAS[transfer]
    return None if (points, gamma) == (BT709, SRGB_CURVE) else matrix_profile(points, gamma)


def by_chunks(chromaticities: bytes | None, gamma: bytes | None) -> bytes | None:
    """Return the profile of PNG's cHRM and gAMA; None when they say sRGB, or nothing that can be.

    What one leaves open is sRGB's (PNG, 11.3.2: white, red, green, blue, each x and y, times
    100,000).
    """
    points, power = BT709, SRGB_CURVE
    if chromaticities is not None and len(chromaticities) >= 32:  # noqa: PLR2004 - eight numbers
        x = [value / GAMMA_UNIT for value in struct.unpack(">8I", chromaticities[:32])]
        points = ((x[2], x[3]), (x[4], x[5]), (x[6], x[7]), (x[0], x[1]))
    told = int.from_bytes(gamma[:4]) if gamma is not None else 0
    if told and abs(told / SRGB_GAMMA - 1) > THRESHOLD:
        power = GAMMA_UNIT / told
    if (points, power) == (BT709, SRGB_CURVE):
        return None
    try:
        return matrix_profile(points, power)
    except (ZeroDivisionError, struct.error):  # no triangle, or no white inside it
        return None


def matrix_profile(primaries: Primaries, gamma: float | None) -> bytes:
    """Return an ICC profile (version 4) of RGB with these primaries; `gamma` None is sRGB's curve.

    White is adapted to D50 by Bradford's matrix (ICC.1, annex E). Raises ZeroDivisionError or
    struct.error for points that span no colours.
    """
    red, green, blue, white = (_xyz(point) for point in primaries)
    mixed = _columns(red, green, blue)
    adapted = _adapted(white)
    tags: list[tuple[bytes, bytes]] = [(b"wtpt", _numbers(b"XYZ ", D50))]
    for name, colour, amount in zip(
        (b"r", b"g", b"b"), (red, green, blue), _times(_inverse(mixed), white), strict=True
    ):
        scaled = (colour[0] * amount, colour[1] * amount, colour[2] * amount)
        tags.append((name + b"XYZ", _numbers(b"XYZ ", _times(adapted, scaled))))
        tags.append((name + b"TRC", _curve(gamma)))
    return _file(tags)


def _file(tags: list[tuple[bytes, bytes]]) -> bytes:
    """Return a profile's bytes: ICC.1, 7.2 (header) and 7.3 (tag table)."""
    first = 128 + 4 + 12 * len(tags)
    table, body = struct.pack(">I", len(tags)), b""
    for name, held in tags:
        table += name + struct.pack(">II", first + len(body), len(held))
        body += held
    head = struct.pack(">I4xI12s", first + len(body), 0x0420_0000, b"mntrRGB XYZ ")
    head = head.ljust(36, b"\0") + b"acsp"
    return head.ljust(68, b"\0") + _fixed(*D50).ljust(60, b"\0") + table + body


def _numbers(kind: bytes, values: Vector) -> bytes:
    return kind + bytes(4) + _fixed(*values)


def _curve(gamma: float | None) -> bytes:
    kind, values = (3, SRGB_PARAMETERS) if gamma is None else (0, (gamma,))
    return b"para" + bytes(4) + struct.pack(">H2x", kind) + _fixed(*values)


def _fixed(*values: float) -> bytes:
    return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))


def _xyz(point: Point) -> Vector:
    x, y = point
    return x / y, 1.0, (1 - x - y) / y


def _adapted(white: Vector) -> Matrix:
    """Return the matrix from a white to D50."""
    ratios = [
        to / of for of, to in zip(_times(BRADFORD, white), _times(BRADFORD, D50), strict=True)
    ]
    scaled = [
        (ratio * row[0], ratio * row[1], ratio * row[2])
        for ratio, row in zip(ratios, BRADFORD, strict=True)
    ]
    back = _inverse(BRADFORD)
    columns = [_times(back, column) for column in zip(*scaled, strict=True)]
    return _columns(*columns)


def _columns(first: Vector, second: Vector, third: Vector) -> Matrix:
    a, b, c = zip(first, second, third, strict=True)
    return a, b, c


def _times(matrix: Matrix, vector: Vector) -> Vector:
    a, b, c = (sum(m * v for m, v in zip(row, vector, strict=True)) for row in matrix)
    return a, b, c


def _inverse(matrix: Matrix) -> Matrix:
    (a, b, c), (d, e, f), (g, h, i) = matrix
    whole = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
    return (
        ((e * i - f * h) / whole, (c * h - b * i) / whole, (b * f - c * e) / whole),
        ((f * g - d * i) / whole, (a * i - c * g) / whole, (c * d - a * f) / whole),
        ((d * h - e * g) / whole, (b * g - a * h) / whole, (a * e - b * d) / whole),
    )
