"""What pictures must agree in to share the transformer's forwards."""

from collections.abc import Hashable
from dataclasses import dataclass

PixelSize = tuple[int, int]


@dataclass(frozen=True, slots=True)
class PictureKey:
    """What is equal in every picture of a batch, so that each row is what it is alone.

    Prompts are never padded: a mask changes what attention computes, and a padded row was up to
    0.03 off in its latents. `tokens` are the lengths of the prompt and, where CFG runs, of the
    negative prompt, without those of the references. `references` are the (width, height) at which
    each is encoded and at which the text encoder sees it: they decide all other lengths. Each of
    `loras` is the identity and the scale of one that a caller requested.
    `weights` are those of the references, `guidance` is the embedded one.
    `begins` is the strength with which a picture begins from another and whether it has a mask: the
    steps follow from it.
    """

    task: str
    width: int
    height: int
    steps: int
    lightning: bool
    true_cfg_scale: float
    tokens: tuple[int, ...]
    references: tuple[tuple[PixelSize, PixelSize], ...]
    loras: tuple[tuple[Hashable, float], ...]
    begins: tuple[float | None, bool]
    weights: tuple[float, ...] = ()
    guidance: float | None = None

    @property
    def pixels(self) -> int:
        """How many pixels one picture has."""
        return self.width * self.height
