"""The reference pictures of wishes that are made together: each is digested and resized once."""

import hashlib

from PIL import Image


class ReferencePictures:
    """What is computed from references while wishes are made; a picture is known by its object.

    Digests and resized pictures of large references take longer than a step on a fast GPU, and a
    prompt, its negative prompt and the VAE ask for them in turn.
    """

    def __init__(self) -> None:
        self._digests: dict[int, str] = {}
        self._resized: dict[tuple[int, tuple[int, int]], Image.Image] = {}

    def digest(self, image: Image.Image) -> str:
        """Identify a picture by its pixels and where they are."""
        if id(image) not in self._digests:
            digest = hashlib.blake2b(f"{image.mode}{image.size}".encode())
            digest.update(image.tobytes())
            self._digests[id(image)] = digest.hexdigest()
        return self._digests[id(image)]

    def resize(self, image: Image.Image, size: tuple[int, int]) -> Image.Image:
        """Return a picture at a size (width, height)."""
        key = id(image), size
        if key not in self._resized:
            self._resized[key] = image.resize(size, Image.Resampling.LANCZOS)
        return self._resized[key]
