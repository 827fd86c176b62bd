"""Text that shows nothing: spaces, controls and characters without a glyph."""

import unicodedata
from typing import Final

# Spaces and line ends (Z*), controls, format characters such as joiners, surrogates.
CATEGORIES: Final = frozenset({"Zs", "Zl", "Zp", "Cc", "Cf", "Cs"})
# Letters, marks and a symbol by their category, and yet without a glyph: Unicode's
# Default_Ignorable_Code_Point (DerivedCoreProperties.txt), and the Braille pattern without dots.
INVISIBLE: Final = frozenset(
    map(
        chr,
        (
            *(0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0),
            *range(0x180B, 0x1810),
            *range(0xFE00, 0xFE10),
            *range(0xE0000, 0xE1000),
        ),
    )
)


def is_blank(text: str) -> bool:
    """Return whether no character of a text can be seen; an empty text is blank."""
    return all(c in INVISIBLE or unicodedata.category(c) in CATEGORIES for c in text)
