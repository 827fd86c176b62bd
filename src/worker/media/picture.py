"""A picture as a piece: encoded in the requested format, at the requested size."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from PIL import Image

from worker.media import images
from worker.media.header import Format
from worker.media.piece import Encoded

FORMATS: Final[Mapping[str, Format]] = {kind: kind for kind in images.MIME_TYPES}


@dataclass(frozen=True, slots=True)
class Picture:
    """An RGB picture; `final` is the (width, height) to deliver it at, None for its own."""

    image: Image.Image
    final: tuple[int, int] | None = None

    def encode(self, form: str, quality: int, text: Mapping[str, str]) -> Encoded:
        """Return it as a png, jpeg or webp, with `text` inside a png; see media.images.encode."""
        image = self.image
        if self.final is not None:
            image = image.resize(self.final, Image.Resampling.LANCZOS)
        kind = FORMATS[form]
        data = images.encode(image, kind, quality, text)
        facts = {"width": image.width, "height": image.height}
        return Encoded(data, images.MIME_TYPES[kind], facts)
