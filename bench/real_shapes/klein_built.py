"""FLUX.2's weights of one precision on the device, and every way of running them."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import torch

from bench.real_shapes import klein, measure, weights
from bench.real_shapes.agenda import COMPILED, Side
from bench.real_shapes.built import stream
from bench.real_shapes.job import Case
from bench.real_shapes.klein import Klein
from bench.real_shapes.klein_stock import make_klein_stock
from bench.real_shapes.warm import Warm
from worker.engine.lora import Adapters
from worker.engine.quantise import Precision
from worker.families.flux2.components import Flux2Parts
from worker.families.flux2.model import Flux2
from worker.families.flux2.models import KLEIN
from worker.families.flux2.recipe import RECIPE
from worker.families.flux2.working import TOKENS, FluxLoad, estimate_phases
from worker.seam import Served
from worker.tasks.picture import PictureOffer, PictureWish

if TYPE_CHECKING:
    from bench.real_shapes.stock import Stock

# Operations per token and channel squared of a block of either kind (`measure.forward_flops`).
PRODUCTS: Final = 26


def build_part(size: Klein, role: str, precision: Precision, device: torch.device) -> Any:
    """Return the modules of a part with random weights, as a bundle opens them."""
    modules = RECIPE.find_part(role).modules
    bare = modules.bare(modules.stock(size.configs[role]))
    return modules.final(weights.build(bare, device, precision, role=role, recipe=RECIPE))


def build_parts(size: Klein, precision: Precision, device: torch.device) -> Flux2Parts:
    """Return the open parts of one model with random weights, as a bundle opens them."""
    filled = {role: build_part(size, role, precision, device) for role in size.configs}
    return Flux2Parts(
        **filled,
        tokenizer=klein.read_tokenizer(),
        scheduler=klein.read_scheduler(),
        adapters=Adapters(filled["transformer"]),
        device=device,
        dtype=torch.bfloat16,
    )


class KleinBuilt:
    """A klein's weights of a precision; edits and text to image are one model."""

    def __init__(self, size: Klein, precision: Precision, device: torch.device) -> None:
        self._size = size
        self._precision = precision
        self._device = device
        self._streamed = False
        self._parts = build_parts(size, precision, device)
        self._models: dict[bool, Warm] = {}
        self._stock: Stock | None = None

    def choose(self, side: Side, *, edit: bool) -> Any:
        """Return the model of a side."""
        del edit
        measure.free(self._device)
        if side != "stock":
            return self._find(compiled=side in COMPILED)
        if self._stock is None:
            self._stock = make_klein_stock(self._size, self._parts, self._precision)
        return self._stock

    def count_text_tokens(self, wish: PictureWish) -> int:
        """Return how many tokens of a prompt the denoiser attends to: the padding too."""
        del wish
        return TOKENS

    def count_operations(self, case: Case, text_tokens: int, side: Side) -> float:
        """Return the floating-point operations of one denoising step."""
        del side
        config = self._parts.transformer.config
        return measure.forward_flops(
            blocks=config.num_layers + config.num_single_layers,
            dim=config.num_attention_heads * config.attention_head_dim,
            image_tokens=(1 + case.references) * case.side**2 // 256,
            text_tokens=text_tokens,
            rank=0,
            batch=case.batch,
            products=PRODUCTS,
        )

    def compute_peaks(self, case: Case, side: Side, wish: PictureWish) -> dict[str, int]:
        """Return what `working` computes of each phase, in bytes beside the weights."""
        del side, wish
        if self._size.edition is None:
            return {}
        load = FluxLoad(
            case.side**2,
            case.references,
            case.batch,
            self._precision,
            self._size.edition,
            passing=self._streamed,
        )
        return estimate_phases(load)

    def name_floors(self, case: Case, side: Side) -> list[str]:
        """Name no record: the pretend device counts no operations of this family."""
        del case, side
        return []

    def stream(self) -> None:
        """Let the text encoder wait in the host's memory, for good."""
        stream(RECIPE, self._parts.text_encoder, self._device)
        self._streamed = True

    def _find(self, *, compiled: bool) -> Warm:
        """Return a model, whose graphs are kept from one call to the next."""
        if compiled not in self._models:
            # a Flux2Forward is made with the parts, and what is compiled of a VAE is in its modules
            vae = build_part(self._size, "vae", self._precision, self._device)
            parts = replace(self._parts, vae=vae, compiled_batch=int(compiled))
            model = Flux2(parts, describe_served(self._size, self._precision), KLEIN)
            self._models[compiled] = Warm(model, parts)
        return self._models[compiled]


def describe_served(size: Klein, precision: Precision) -> Served:
    """Return what a worker would serve of it."""
    offer = PictureOffer(
        steps=4,
        true_cfg_scale=1.0,
        negative_prompt="",
        lightning_steps=(),
        area=1024 * 1024,
        max_pixels=4 * 1024 * 1024,
        max_references=4,
        sizes={},
        takes_cfg=False,
        weighs_references=True,
    )
    return Served(size.name, "bench/random", "random", precision, "none", {"edit": offer})
