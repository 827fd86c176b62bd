"""What a model offers for pictures, what a job asks of it, and the wish for one picture."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from PIL import Image

from worker.edge.echo import declare_private, declare_public, show_given
from worker.loras.ready import ReadyLora, show_loras
from worker.seam import Served
from worker.settings import Settings
from worker.tasks import reference
from worker.tasks.preset import list_presets
from worker.tasks.repaint import Repaint
from worker.tasks.size import SMALLEST, Size
from worker.tasks.task import Asked
from worker.tasks.way import (
    FROM_PICTURES,
    FROM_TEXT,
)

ROUNDED: Final = 1e-6


@dataclass(frozen=True, slots=True)
class PictureOffer:
    """What one model offers for pictures.

    `area` is the model's native number of pixels; `lightning_steps` are the step counts whose LoRA
    is loaded, the first being the default, empty when none is; `sizes` maps an aspect ratio such as
    "16:9" to (width, height) in pixels. `no_loras` is why a job may bring no LoRAs, None where it
    may; each takes `rank_bytes` of device memory per rank where it reaches all that LoRAs reach.
    `strength` is the default of img2img, None where the model has no such task. Without
    `takes_cfg` there is no negative prompt; `guidance` is the default of a model that takes it as
    an input, None for any other. `weighs_references` says whether a reference may count more or
    less than once.
    """

    steps: int
    true_cfg_scale: float
    negative_prompt: str
    lightning_steps: tuple[int, ...]
    area: int
    max_pixels: int
    max_references: int
    sizes: Mapping[str, tuple[int, int]]
    no_loras: str | None = "this model takes none"
    strength: float | None = None
    takes_cfg: bool = True
    guidance: float | None = None
    weighs_references: bool = False
    rank_bytes: int = 0

    def describe(self, settings: Settings) -> Mapping[str, Any]:
        """Return what op=capabilities reports about it.

        Sizes are pixels; `steps` are the base schedule's default, `lightning_steps` the counts
        whose LoRA is loaded.
        """
        return {
            "steps": self.steps,
            "true_cfg_scale": self.true_cfg_scale,
            "negative_prompt": self.negative_prompt,
            "lightning_steps": list(self.lightning_steps),
            "area": self.area,
            "max_pixels": self.max_pixels,
            "max_images": self.count_most(settings),
            "max_loras": 0 if self.no_loras else settings.max_loras,
            **({} if self.no_loras else self._describe_loras()),
            **({} if self.strength is None else {"strength": self.strength}),
            **({} if self.guidance is None else {"guidance": self.guidance}),
            **({"max_reference_weight": reference.MOST_WEIGHT} if self.weighs_references else {}),
            "sizes": {ratio: list(size) for ratio, size in self.sizes.items()},
            "presets": {name: row._asdict() for name, row in list_presets(self, settings).items()},
        }

    def _describe_loras(self) -> dict[str, int]:
        """Return what LoRAs take of the device's memory, where that is known."""
        return {"lora_bytes_per_rank": self.rank_bytes} if self.rank_bytes else {}

    def count_most(self, settings: Settings) -> int:
        """Return the most pictures that a job may give: one to begin from, or references."""
        least = 0 if self.strength is None else 1
        return max(min(self.max_references, settings.max_input_images), least)


@dataclass(frozen=True, slots=True)
class PictureWish:
    """One picture to make: everything resolved, nothing left to choose.

    `negative_prompt` is None when no CFG runs. `references` are RGB pictures, upright, in the
    caller's order. `width` and `height` are pixels, multiples of 16, at which the picture is
    generated; `final` is the (width, height) at which it is delivered, None for the same.

    `source` is the picture that it begins from as far as `strength` says, None for noise alone. The
    white of `mask` (L, of its size) is repainted, None for all of it; with `preserves`, what is
    delivered has the source's own pixels elsewhere. `start_noise` is the part of the beginning that
    was noise, 0 to 1, found while the picture is made. `reference_weights` are how often each
    reference counts, empty where each counts once. `guidance` is that of a model which takes it as
    an input, None for any other.

    `previews` is how many pictures on the way are handed over while it is made.
    `ahead` is the model's: what it has done for the wish before its turn, if anything.
    """

    prompt: str = declare_public()
    negative_prompt: str | None = declare_public()
    task: str = declare_public(text="")  # a file has it next to the model, as in every task
    seed: int = declare_public()
    steps: int = declare_public("num_inference_steps", text="steps")
    true_cfg_scale: float = declare_public()
    # True only if all of the LoRA was applied and its schedule was used: else nothing is made.
    lightning: bool = declare_public("lightning_enabled", text="lightning")
    references: tuple[Image.Image, ...] = declare_private()
    width: int = declare_private(log=True)
    height: int = declare_private(log=True)
    final: tuple[int, int] | None = declare_private(default=None)
    loras: tuple[ReadyLora, ...] = declare_public(show=show_loras, default=())
    source: Image.Image | None = declare_private(default=None)  # noqa: RUF009 - a field
    mask: Image.Image | None = declare_private(default=None)  # noqa: RUF009 - a field
    preserves: bool = declare_private(default=True)
    strength: float | None = declare_public(show=show_given, default=None)
    start_noise: float | None = declare_public(show=show_given, default=None)
    reference_weights: tuple[float, ...] = declare_public(show=list, default=())
    guidance: float | None = declare_public(show=show_given, default=None)
    previews: int = declare_private(default=0)
    ahead: object = declare_private(default=None, compare=False, repr=False)

    @property
    def run_steps(self) -> int:
        """How many of the steps run: those from where `strength` begins.

        A strength that is a step's own, but for rounding, begins at that step.
        """
        return max(1, math.ceil((self.strength or 1.0) * self.steps - ROUNDED))


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureAsked(Asked):
    """What a job requests of a picture; the pictures settle `size`, within the `offer`.

    The first of them is repainted as `repaint` says, if at all. With `sees` the model has them as
    references. `adjusted` is what is known before.
    """

    size: Size
    offer: PictureOffer
    repaint: Repaint | None
    sees: bool
    adjusted: Mapping[str, Sequence[Any]]


def offer_of(model: Served) -> PictureOffer:
    """Return what a model offers for pictures; raises StopIteration when that is nothing."""
    return next(offer for offer in model.offers.values() if isinstance(offer, PictureOffer))


def warm_up(model: Served) -> PictureWish:
    """Return a wish of the kind that jobs will have, at the model's own size.

    An edit where the model can do it; Lightning where it is loaded, else two steps.
    """
    offer = offer_of(model)
    side = max(SMALLEST, int(offer.area**0.5) // 32 * 32)
    edit = FROM_PICTURES in model.offers
    fast = bool(offer.lightning_steps)
    grey = Image.linear_gradient("L").resize((side, side)).convert("RGB")
    return PictureWish(
        prompt="a warm-up picture",
        negative_prompt=None,
        task=FROM_PICTURES if edit else FROM_TEXT,
        seed=0,
        steps=offer.lightning_steps[0] if fast else 2,
        true_cfg_scale=1.0,
        lightning=fast,
        references=(grey,) if edit else (),
        width=side,
        height=side,
    )
