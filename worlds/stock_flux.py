"""A small FLUX.2, open twice: by us and as the stock pipeline of a careful user."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import Flux2KleinPipeline, Flux2Pipeline
from PIL import Image

from worker import settings
from worker.bundle.plan import Order
from worker.engine.quantise import Precision
from worker.families.catalogue import CATALOGUE
from worker.families.clock import Clock
from worker.families.flux2.model import Flux2
from worker.families.flux2.models import BASE, DISTILLED, GUIDED, SMALL_SIZES
from worker.families.flux2.published import open_published
from worker.families.flux2.recipe import RECIPE
from worker.families.pictures import describe
from worker.families.sharing import Sharing
from worker.seam import Served, Unheard
from worker.tasks.picture import PictureWish
from worker.weights.snapshot import LocalSnapshot
from worker.weights.spec import ModelSpec
from worlds.small_flux import OUT_LAYERS, Kind
from worlds.wishes import drawing

CPU = torch.device("cpu")
DEFAULTS = {"klein": DISTILLED, "base": BASE, "dev": GUIDED}


def served_as(kind: Kind, **changes: Any) -> Served:
    """Return what a small model of a kind serves."""
    pipeline = "Flux2Pipeline" if kind == "dev" else "Flux2KleinPipeline"
    defaults = replace(DEFAULTS[kind], sizes=SMALL_SIZES, **{"area": 96 * 96, **changes})
    spec = ModelSpec("small-flux", "x/small-flux", pipeline, tasks=ALL_TASKS, defaults=defaults)
    return describe(
        spec,
        settings.read({}),
        revision="local",
        precision="bf16",
        lightning=(),
        working=lambda _: 0,
        left=None,
    )


ALL_TASKS = ("text-to-image", "edit", "img2img", "inpaint", "outpaint")


def latents_of(model: Flux2, *wishes: PictureWish) -> torch.Tensor:
    """Run our sampler on a batch and return the packed latents."""
    controls = [Unheard() for _ in wishes]
    return model.make_latents(list(wishes), Sharing(controls, drops=True), Clock(CPU))


class FluxPair:
    """One checkpoint, open twice: by us and as a stock pipeline.

    References are encoded as the stock pipelines do: of any size up to a million pixels.
    """

    def __init__(self, folder: Path, kind: Kind, dtype: torch.dtype = torch.float32) -> None:
        pipeline: Any = Flux2Pipeline if kind == "dev" else Flux2KleinPipeline
        self.stock: Any = pipeline.from_pretrained(folder, dtype=dtype)
        self.stock.set_progress_bar_config(disable=True)
        self.kind = kind
        served = served_as(kind, area=1024 * 1024)
        parts = open_published(folder, dtype=dtype, device=CPU)
        self.ours = Flux2(parts, served, pipeline.__name__)

    def stock_latents(self, wish: PictureWish, **more: Any) -> torch.Tensor:
        """Run the stock pipeline and return its packed and normalised latents."""
        found: list[torch.Tensor] = []

        def keep(_pipe: Any, _step: int, _t: Any, given: dict[str, Any]) -> dict[str, Any]:
            found.append(given["latents"])
            return given

        scale = wish.guidance if self.kind == "dev" else wish.true_cfg_scale
        self.stock(
            prompt=wish.prompt,
            image=list(wish.references) or None,
            width=wish.width,
            height=wish.height,
            num_inference_steps=wish.steps,
            guidance_scale=scale,
            generator=torch.Generator("cpu").manual_seed(wish.seed),
            output_type="latent",
            text_encoder_out_layers=OUT_LAYERS,
            callback_on_step_end=keep,
            callback_on_step_end_tensor_inputs=["latents"],
            **more,
        )
        return found[-1]

    def our_latents(self, *wishes: PictureWish) -> torch.Tensor:
        """Run our sampler on a batch."""
        return latents_of(self.ours, *wishes)


def references(count: int) -> tuple[Image.Image, ...]:
    """Return references of different shapes, the second neither of the output's nor of 16s."""
    sizes = [(96, 96), (150, 90), (80, 160)][:count]
    return tuple(drawing(*size, seed) for seed, size in enumerate(sizes))


def order_of(folder: Path, home: Path, precision: Precision = "bf16") -> Order:
    """Return the order for a small model's bundle."""
    (spec,) = CATALOGUE.resolve([str(folder)], settings.read({}), has_gpu=False)
    return Order(
        spec,
        RECIPE,
        LocalSnapshot(folder, spec.repository),
        precision,
        settings.read({"MIN_STORAGE_FREE_GB": "0"}),
        CPU,
        home,
        home / "downloads",
    )


def model_of(parts: Any, kind: Kind) -> Flux2:
    """Return the model of a kind over parts that are open."""
    pipeline = "Flux2Pipeline" if kind == "dev" else "Flux2KleinPipeline"
    return Flux2(parts, served_as(kind), pipeline)
