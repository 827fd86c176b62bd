"""Convert colours given by numbers to the equivalent ICC profile."""

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
# H.273, table 3. For a camera's curves (1, 6, 14, 15) sRGB's is used, as browsers do: a screen does
# not undo them. HDR's curves (16, 18) do not fit into 8 bits.
SRGB_CURVE: Final = None
GAMMAS: Final[Mapping[int, float | None]] = {
    **dict.fromkeys((1, 2, 6, 13, 14, 15), SRGB_CURVE),
    4: 2.2,
    5: 2.8,
    8: 1.0,
}
# PNG's gAMA is 1/gamma times this. One within a twentieth of 1/2.2 means sRGB: libpng reads it that
# way, and most writers mean it (PNG_GAMMA_THRESHOLD_FIXED of libpng's pngpriv.h).
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
UNUSABLE: Final = b""  # stands for a profile that cannot be read or built


def build_numbered_profile(primaries: int, transfer: int) -> bytes | None:
    """Build the profile of H.273 code points (PNG's cICP, HEIF's nclx); None for sRGB's own.

    UNUSABLE for code points without a profile.
    """
    if primaries not in PRIMARIES or transfer not in GAMMAS:
        return UNUSABLE
    points, gamma = PRIMARIES[primaries], GAMMAS[transfer]
    return None if (points, gamma) == (BT709, SRGB_CURVE) else build_matrix_profile(points, gamma)


def build_chunk_profile(chromaticities: bytes | None, gamma: bytes | None) -> bytes | None:
    """Build the profile of PNG's cHRM and gAMA; None if they mean sRGB or are impossible.

    What either leaves out is sRGB's (PNG, 11.3.2: white, red, green, blue, each x and y, times
    100,000).
    """
    points, power = BT709, SRGB_CURVE
    if chromaticities is not None and len(chromaticities) >= 32:  # noqa: PLR2004 - eight numbers
        x = [value / GAMMA_UNIT for value in struct.unpack(">8I", chromaticities[:32])]
        points = ((x[2], x[3]), (x[4], x[5]), (x[6], x[7]), (x[0], x[1]))
    stated = int.from_bytes(gamma[:4]) if gamma is not None else 0
    if stated and abs(stated / SRGB_GAMMA - 1) > THRESHOLD:
        power = GAMMA_UNIT / stated
    if (points, power) == (BT709, SRGB_CURVE):
        return None
    try:
        return build_matrix_profile(points, power)
    except (ZeroDivisionError, struct.error):  # no triangle, or no white inside it
        return None


def build_matrix_profile(primaries: Primaries, gamma: float | None) -> bytes:
    """Build an ICC profile (version 4) for RGB with these primaries; `gamma` None is sRGB's curve.

    White is adapted to D50 by Bradford's matrix (ICC.1, annex E). Raises ZeroDivisionError or
    struct.error for points that span no colours.
    """
    red, green, blue, white = (_convert_to_xyz(point) for point in primaries)
    mixed = _join_columns(red, green, blue)
    adaptation = _compute_adaptation(white)
    tags: list[tuple[bytes, bytes]] = [(b"wtpt", _pack_numbers(b"XYZ ", D50))]
    for name, colour, amount in zip(
        (b"r", b"g", b"b"), (red, green, blue), _multiply(_invert(mixed), white), strict=True
    ):
        scaled = (colour[0] * amount, colour[1] * amount, colour[2] * amount)
        tags.append((name + b"XYZ", _pack_numbers(b"XYZ ", _multiply(adaptation, scaled))))
        tags.append((name + b"TRC", _pack_curve(gamma)))
    return _pack_profile(tags)


def _pack_profile(tags: list[tuple[bytes, bytes]]) -> bytes:
    """Return a profile's bytes: ICC.1, 7.2 (header) and 7.3 (tag table)."""
    first = 128 + 4 + 12 * len(tags)
    table, body = struct.pack(">I", len(tags)), b""
    for name, content in tags:
        table += name + struct.pack(">II", first + len(body), len(content))
        body += content
    head = struct.pack(">I4xI12s", first + len(body), 0x0420_0000, b"mntrRGB XYZ ")
    head = head.ljust(36, b"\0") + b"acsp"
    return head.ljust(68, b"\0") + _pack_fixed(*D50).ljust(60, b"\0") + table + body


def _pack_numbers(kind: bytes, values: Vector) -> bytes:
    return kind + bytes(4) + _pack_fixed(*values)


def _pack_curve(gamma: float | None) -> bytes:
    kind, values = (3, SRGB_PARAMETERS) if gamma is None else (0, (gamma,))
    return b"para" + bytes(4) + struct.pack(">H2x", kind) + _pack_fixed(*values)


def _pack_fixed(*values: float) -> bytes:
    return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))


def _convert_to_xyz(point: Point) -> Vector:
    x, y = point
    return x / y, 1.0, (1 - x - y) / y


def _compute_adaptation(white: Vector) -> Matrix:
    """Return the matrix from a white to D50."""
    ratios = [
        to / of for of, to in zip(_multiply(BRADFORD, white), _multiply(BRADFORD, D50), strict=True)
    ]
    scaled = [
        (ratio * row[0], ratio * row[1], ratio * row[2])
        for ratio, row in zip(ratios, BRADFORD, strict=True)
    ]
    back = _invert(BRADFORD)
    columns = [_multiply(back, column) for column in zip(*scaled, strict=True)]
    return _join_columns(*columns)


def _join_columns(first: Vector, second: Vector, third: Vector) -> Matrix:
    a, b, c = zip(first, second, third, strict=True)
    return a, b, c


def _multiply(matrix: Matrix, vector: Vector) -> Vector:
    a, b, c = (sum(m * v for m, v in zip(row, vector, strict=True)) for row in matrix)
    return a, b, c


def _invert(matrix: Matrix) -> Matrix:
    (a, b, c), (d, e, f), (g, h, i) = matrix
    det = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
    return (
        (
            (e * i - f * h) / det,
            (c * h - b * i) / det,
            (b * f - c * e) / det,
        ),
        (
            (f * g - d * i) / det,
            (a * i - c * g) / det,
            (c * d - a * f) / det,
        ),
        (
            (d * h - e * g) / det,
            (b * g - a * h) / det,
            (a * e - b * d) / det,
        ),
    )
