"""A picture as a piece: encoded in the requested format, at the requested size."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from PIL import Image

from worker.media import images
from worker.media.header import Format
from worker.media.piece import Encoded

FORMATS: Final[Mapping[str, Format]] = {kind: kind for kind in images.MIME_TYPES}


@dataclass(frozen=True, slots=True)
class Original:
    """The RGB picture that shows where `mask`, of its size and mode L, is not white.

    Where the mask is black, its pixels are exact, if the picture is delivered at its size.
    """

    image: Image.Image
    mask: Image.Image

    def show_through(self, painted: Image.Image) -> Image.Image:
        """Return it with what was painted where its mask is white, at the size of that."""
        image = self.image.resize(painted.size, Image.Resampling.LANCZOS)
        mask = self.mask.resize(painted.size, Image.Resampling.BILINEAR)
        return Image.composite(painted, image, mask)


@dataclass(frozen=True, slots=True)
class Picture:
    """An RGB picture; `final` is the (width, height) to deliver it at, None for its own.

    What is delivered shows the `original`, if any, wherever that does not let it through.
    """

    image: Image.Image
    final: tuple[int, int] | None = None
    original: Original | None = None

    def encode(self, form: str, quality: int, text: Mapping[str, str]) -> Encoded:
        """Return it as a png, jpeg or webp, with `text` inside; see media.images.encode."""
        image = self.show()
        kind = FORMATS[form]
        data = images.encode(image, kind, quality, text)
        facts = {"width": image.width, "height": image.height}
        return Encoded(data, images.MIME_TYPES[kind], facts)

    def show(self) -> Image.Image:
        """Return what is delivered."""
        image = self.image
        if self.final is not None:
            image = image.resize(self.final, Image.Resampling.LANCZOS)
        return image if self.original is None else self.original.show_through(image)


@dataclass(frozen=True, slots=True)
class Preview:
    """A picture on the way to the one of a `seed`."""

    picture: Picture
    seed: int

    def encode(self, form: str, quality: int, text: Mapping[str, str]) -> Encoded:
        """Return it as the picture is, with its seed."""
        encoded = self.picture.encode(form, quality, text)
        return replace(encoded, facts={**encoded.facts, "seed": self.seed})
