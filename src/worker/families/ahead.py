"""What is done for a wish before its turn on the device: all that needs the host alone."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from worker.engine.lora import ScaledLora
from worker.families.lora_reader import LoraReader
from worker.families.references import ReferencePictures
from worker.tasks.picture import PictureWish

# A picture and a (width, height) at which it will be required.
Resizing = tuple[Image.Image, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Ahead:
    """What is there for a wish: its pictures digested and resized, and its LoRAs read."""

    pictures: ReferencePictures
    loras: Sequence[ScaledLora]


def read_ahead(wish: PictureWish, resizings: Iterable[Resizing], reader: LoraReader) -> PictureWish:
    """Return a wish with its pictures digested, and resized as said, and its LoRAs read.

    In any thread. Raises as LoraReader.read.
    """
    pictures = ReferencePictures()
    for image, size in resizings:
        pictures.digest(image)
        pictures.resize(image, size)
    return replace(wish, ahead=Ahead(pictures, reader.read_ahead(wish.loras)))


def gather_pictures(wishes: Sequence[Any]) -> ReferencePictures:
    """Return what is known of the pictures of wishes that are made together."""
    found = (wish.ahead for wish in wishes)
    return ReferencePictures.join(one.pictures for one in found if isinstance(one, Ahead))
