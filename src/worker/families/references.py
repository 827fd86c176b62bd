"""The pictures of wishes: each is digested and resized once, before its turn where that can be."""

import hashlib
from collections.abc import Iterable
from typing import Self

from PIL import Image


class ReferencePictures:
    """What is computed from the pictures of wishes on the host; a picture is known by its object.

    Digests and resized pictures of large references take longer than a step on a fast GPU, and a
    prompt, its negative prompt and the VAE ask for them in turn.
    """

    def __init__(self) -> None:
        # the pictures are kept: another one could get the identity of one that is gone
        self.digests: dict[int, tuple[Image.Image, str]] = {}
        self.resized: dict[tuple[int, tuple[int, int]], tuple[Image.Image, Image.Image]] = {}

    @classmethod
    def join(cls, others: Iterable[Self]) -> Self:
        """Return one that knows what all of the others know."""
        joined = cls()
        for other in others:
            joined.digests |= other.digests
            joined.resized |= other.resized
        return joined

    def digest(self, image: Image.Image) -> str:
        """Identify a picture by its pixels and where they are."""
        if id(image) not in self.digests:
            digest = hashlib.blake2b(f"{image.mode}{image.size}".encode())
            digest.update(image.tobytes())
            self.digests[id(image)] = image, digest.hexdigest()
        return self.digests[id(image)][1]

    def resize(self, image: Image.Image, size: tuple[int, int]) -> Image.Image:
        """Return a picture at a size (width, height)."""
        key = id(image), size
        if key not in self.resized:
            self.resized[key] = image, image.resize(size, Image.Resampling.LANCZOS)
        return self.resized[key][1]

    def find(self, image: Image.Image, size: tuple[int, int]) -> Image.Image:
        """Return a picture at a size where it was resized, else as it is."""
        known = self.resized.get((id(image), size))
        return image if known is None else known[1]
