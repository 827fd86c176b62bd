"""A second family of pictures, which makes coloured noise; as a script, it serves it and the tone.

`MODEL=tone,noise python -m worlds.noise` serves them as handler.py serves a model: all that it adds
is two names in the catalogue.
"""

import random
import sys
from collections.abc import Container, Sequence
from dataclasses import replace

from PIL import Image

from worker import boot, entrance
from worker.doors import start
from worker.driver import Gpu
from worker.families import catalogue
from worker.families.family import Family
from worker.media.picture import Picture
from worker.seam import Control, Made, Openable, Served, Unheard
from worker.settings import Settings
from worker.tasks.picture import PictureOffer, PictureWish, warm_up
from worker.tasks.way import FROM_TEXT
from worker.weights.spec import ModelSpec
from worlds import tone

OFFER = PictureOffer(
    steps=2,
    true_cfg_scale=1.0,
    negative_prompt=" ",
    lightning_steps=(),
    area=64 * 64,
    max_pixels=256 * 256,
    max_references=0,
    sizes={},
)


class Noise:
    """A model that makes noise around the colour that its prompt names."""

    served = Served("noise", "a/noise", "1", "none", "", {FROM_TEXT: OFFER})

    def make_key(self, wish: PictureWish) -> None:
        """Share no forward."""
        del wish

    def read_ahead(self, wish: PictureWish) -> PictureWish:
        """Return it as it is."""
        return wish

    def make(self, wishes: Sequence[PictureWish], controls: Sequence[Control]) -> list[Made]:
        """Make one picture after another."""
        return [self._make_one(*pair) for pair in zip(wishes, controls, strict=True)]

    def _make_one(self, wish: PictureWish, control: Control) -> Made:
        size = (wish.width, wish.height)
        noise = Image.frombytes("L", size, random.Random(wish.seed).randbytes(size[0] * size[1]))
        for step in range(1, wish.steps + 1):
            control.report("denoise", step, wish.steps)
        colour = Image.new("RGB", size, wish.prompt)
        image = Image.blend(colour, noise.convert("RGB"), 0.2)
        return Made(Picture(image, wish.final), {"denoise": 3.0})

    def warm(self) -> None:
        """Make a black picture."""
        self.make([replace(warm_up(self.served), prompt="black")], [Unheard()])

    def release(self) -> None:
        """Do nothing: there is nothing to free."""


def make_ready(_: ModelSpec, __: Settings, ___: Gpu | None, *, taken: Container[str]) -> Openable:
    """Return how to open it; there is nothing to download."""
    assert "noise" not in taken
    return Openable(Noise.served, {}, Noise)


ROW = ModelSpec("noise", "a/noise", "Noise", "worlds.noise", (FROM_TEXT,), needs_gpu=False)
FAMILY = Family(rows=(ROW,), classes={}, form="noise")

if __name__ == "__main__":
    catalogue.CATALOGUE = catalogue.combine((*catalogue.FAMILIES, tone.FAMILY, FAMILY))
    sys.exit(start.run(entrance.open_door, boot.boot))
