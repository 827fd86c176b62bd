"""One thing that was made, before it is delivered: a picture, a sound."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Encoded:
    """A piece as the bytes of a file; `facts` go with it into the reply, such as its width."""

    data: bytes = field(repr=False)
    mime_type: str
    facts: Mapping[str, int | float]


class Piece(Protocol):
    """One thing made; it can be encoded in every format of its kind, any number of times."""

    def encode(self, form: str, quality: int, text: Mapping[str, str]) -> Encoded:
        """Return it as a file of a format ("png"), with `text` inside where the format has room.

        `quality` is 1 to 100, for formats that lose something. Called off the event loop.
        """
