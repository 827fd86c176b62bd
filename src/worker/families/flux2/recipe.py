"""How a FLUX.2 becomes a bundle: its parts in the order they are made, and what they share."""

from typing import Final

from worker.bundle.recipe import Configuration, Recipe
from worker.families.flux2.check import check
from worker.families.flux2.parts import COPIED, SWITCHES, TEXT_ENCODER, TRANSFORMER, VAE
from worker.families.flux2.planning import plan_passing, plan_working


def list_reached(_config: Configuration) -> list[str]:
    """Name no module: there are no Lightning LoRAs for this family."""
    return []


RECIPE: Final = Recipe(
    parts=(*COPIED, VAE, TEXT_ENCODER, TRANSFORMER),
    check=check,
    adapted=TRANSFORMER.role,
    reached=list_reached,
    waiting=TEXT_ENCODER.role,
    working=plan_working,
    switches=SWITCHES,
    passing=plan_passing,
)
