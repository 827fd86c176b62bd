"""Pictures that begin from another on the device: near the CPU's, and exact where they must be."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from gpu.figures import Figures
from gpu.studio import (
    FLUX,
    Studio,
    make_image,
    make_images,
    make_reference,
    make_wish,
    measure_decibels,
    summarise,
)
from PIL import Image

from training.tiny import begun, evaluate
from worker.media.masks import feather
from worker.media.picture import Picture
from worker.seam import Unheard, take_made
from worker.tasks.picture import PictureWish

CPU = torch.device("cpu")
NEAR_DB = 30.0
# by the models that make them from text and from references
WAYS = {
    ("tiny-image", "tiny-edit"): evaluate.WAYS["lightning-8"],
    (FLUX, FLUX): evaluate.WAYS["base-4-plain"],
}


def make_begun(seed: int = 0, strength: float = 0.6, *, masked: bool = False) -> PictureWish:
    """Return a wish that begins from a picture."""
    mask = Image.new("L", (64, 64))
    mask.paste(255, (16 + seed, 16, 48, 48))
    return replace(
        make_wish(seed=seed),
        task="inpaint" if masked else "img2img",
        source=make_reference(seed),
        mask=feather(mask, 4) if masked else None,
        strength=strength,
    )


@pytest.mark.parametrize("names", list(WAYS), ids=lambda names: names[1])
@pytest.mark.parametrize("kind", [begun.vary, begun.repaint, begun.widen])
def test_what_begins_from_a_picture_is_right_and_near_the_cpus(
    studio: Studio,
    figures: Figures,
    names: tuple[str, str],
    kind: Callable[[int, int], Iterator[begun.Begun]],
) -> None:
    here, there = (
        {
            role: studio.open(name, "bf16", *device)
            for role, name in zip(("image", "edit"), names, strict=True)
        }
        for device in ((), (CPU,))
    )
    cases = list(kind(8, 31))
    ours, theirs = (
        [begun.make(models, case, WAYS[names]).show() for case in cases] for models in (here, there)
    )
    decibels = [measure_decibels(*pair) for pair in zip(ours, theirs, strict=True)]
    right = [
        sum(begun.is_right(*pair) for pair in zip(cases, pictures, strict=True))
        for pictures in (ours, theirs)
    ]
    figures.put(**summarise(decibels), right=right[0], right_on_cpu=right[1])
    assert right[0] >= right[1] - 1
    assert sum(decibels) / len(decibels) > NEAR_DB


@pytest.mark.parametrize("name", ["tiny-image", FLUX])
@pytest.mark.parametrize("precision", ["bf16", "8bit", "4bit"])
def test_all_of_the_strength_is_the_picture_from_text(
    studio: Studio, name: str, precision: str
) -> None:
    model = studio.open(name, precision)
    expected = make_image(model, make_wish()).tobytes()
    assert make_image(model, make_begun(strength=1.0)).tobytes() == expected


@pytest.mark.parametrize("name", ["tiny-image", FLUX])
@pytest.mark.parametrize("masked", [False, True])
def test_what_begins_together_is_near_what_begins_alone(
    studio: Studio, figures: Figures, name: str, *, masked: bool
) -> None:
    model = studio.open(name, "bf16")
    wishes = [make_begun(seed, masked=masked) for seed in range(4)]
    alone = [make_image(model, wish) for wish in wishes]
    together = make_images(model, wishes)
    decibels = [measure_decibels(*pair) for pair in zip(together, alone, strict=True)]
    figures.put(**summarise(decibels))
    assert sum(decibels) / len(decibels) > NEAR_DB


@pytest.mark.parametrize("name", ["tiny-image", FLUX])
def test_every_pixel_outside_of_a_mask_is_the_sources_on_the_device(
    studio: Studio, name: str
) -> None:
    wish = make_begun(masked=True)
    assert wish.mask is not None
    (made,) = map(take_made, studio.open(name, "bf16").make([wish], [Unheard()]))
    assert isinstance(made.piece, Picture)
    shown = np.asarray(made.piece.show())
    outside = np.asarray(wish.mask) == 0
    assert (shown[outside] == np.asarray(wish.source)[outside]).all()
