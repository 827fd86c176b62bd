"""How a Qwen-Image becomes a bundle: its parts in the order they are made, and what they share."""

from typing import Final

from worker.bundle.recipe import Configuration, Recipe
from worker.families.qwen_image.check import check
from worker.families.qwen_image.lightning import list_lightning_modules
from worker.families.qwen_image.parts import COPIED, TEXT_ENCODER, TRANSFORMER, VAE
from worker.families.qwen_image.planning import plan_passing, plan_working


def list_reached(config: Configuration) -> list[str]:
    """Name the modules of a transformer that a Lightning LoRA must reach."""
    return list_lightning_modules(int(config["num_layers"]))


RECIPE: Final = Recipe(
    parts=(*COPIED, VAE, TEXT_ENCODER, TRANSFORMER),
    check=check,
    adapted=TRANSFORMER.role,
    reached=list_reached,
    waiting=TEXT_ENCODER.role,
    working=plan_working,
    passing=plan_passing,
)
