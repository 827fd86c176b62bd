"""One picture made by a model, as tests look at it."""

from typing import Any

from PIL import Image

from worker.media.picture import Picture
from worker.seam import Control, Made, Model, Unheard, take_made


def made(model: Model, wish: Any, control: Control | None = None) -> Made:
    """Return what a model makes of one wish; raises what the model raises."""
    (one,) = model.make([wish], [control or Unheard()])
    return take_made(one)


def drawn(model: Model, wish: Any, control: Control | None = None) -> Image.Image:
    """Return the picture that a model makes of one wish, at the size at which it was made."""
    piece = made(model, wish, control).piece
    assert isinstance(piece, Picture)
    return piece.image
