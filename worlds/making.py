"""One picture made by a model, as tests look at it."""

from typing import Any

from PIL import Image

from worker.media.picture import Picture
from worker.seam import Control, Made, Model, Unheard


def made(model: Model, wish: Any, control: Control | None = None) -> Made:
    """Let a model make one wish; raises what the model raises."""
    (one,) = model.make([wish], [control or Unheard()])
    return one


def drawn(model: Model, wish: Any, control: Control | None = None) -> Image.Image:
    """Let a model make one picture and return it as it was drawn."""
    piece = made(model, wish, control).piece
    assert isinstance(piece, Picture)
    return piece.image
