"""Two published models as callers see them, to check requests against."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from worker.families.catalogue import CATALOGUE
from worker.families.flux2.models import KLEIN_SIZES
from worker.families.qwen_image.models import NEGATIVE_2512, PUBLISHED_SIZES
from worker.seam import Served
from worker.tasks.picture import PictureOffer, offer_of

_OFFER = PictureOffer(
    steps=50,
    true_cfg_scale=4.0,
    negative_prompt=NEGATIVE_2512,
    lightning_steps=(8, 4),
    area=1024 * 1024,
    max_pixels=2048 * 2048,
    max_references=0,
    sizes=PUBLISHED_SIZES,
    no_loras=None,
)
IMAGE = Served(
    id="qwen-image-2512",
    repository="Qwen/Qwen-Image-2512",
    revision="0123456789abcdef0123456789abcdef01234567",
    precision="4bit",
    licence="apache-2.0",
    offers=dict.fromkeys(
        ("text-to-image", "img2img", "inpaint", "outpaint"), replace(_OFFER, strength=0.6)
    ),
)
EDIT = replace(
    IMAGE,
    id="qwen-image-edit-2511",
    repository="Qwen/Qwen-Image-Edit-2511",
    offers=dict.fromkeys(
        ("edit", "inpaint", "outpaint"),
        replace(_OFFER, negative_prompt=" ", steps=40, max_references=3),
    ),
)

KLEIN = replace(
    IMAGE,
    id="flux-2-klein-4b",
    repository="black-forest-labs/FLUX.2-klein-4B",
    offers=dict.fromkeys(
        ("text-to-image", "edit", "img2img", "inpaint", "outpaint"),
        replace(
            _OFFER,
            steps=4,
            true_cfg_scale=1.0,
            negative_prompt="",
            lightning_steps=(),
            max_references=4,
            sizes=KLEIN_SIZES,
            strength=0.3,
            takes_cfg=False,
            weighs_references=True,
        ),
    ),
)


def offering(model: Served, **changes: Any) -> Served:
    """Return a model that offers the same tasks, with some facts of its offer changed."""
    return replace(model, offers=dict.fromkeys(model.tasks, replace(offer_of(model), **changes)))


def addable(task: str) -> Sequence[str]:
    """Return the names that MODEL may have for a task."""
    return [row.name for row in CATALOGUE.rows if task in row.tasks and row.embedded is None]
