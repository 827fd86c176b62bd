"""How an Orpheus becomes a bundle: its parts in the order they are made, and what a job takes."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from worker.bundle.recipe import Configuration, Recipe
from worker.engine.key_values import CUDA_READ_STEP
from worker.engine.quantise import Precision
from worker.families.orpheus.check import check
from worker.families.orpheus.models import SLOTS, Speaking, read_speaking
from worker.families.orpheus.parts import CODEC, LANGUAGE, TOKENIZER
from worker.settings import Settings
from worker.weights.spec import ModelSpec

# Bytes of keys and values per token of the 3B model in bf16: 28 layers x 8 heads x 128 x 2 x 2.
CACHE_BYTES_PER_TOKEN: Final = 114_688
# What one step and one window of the codec take beside it (est.): 38 frames of 1024 channels at the
# last levels, in float32, a few times over.
STEP_BYTES: Final = 600_000_000
# Passages that are written at once on a GPU, where the weights are read once for all of them. One
# alone is written elsewhere: more rows than needed would be slower.
MOST_ROWS: Final = 4


def list_reached(config: Configuration) -> list[str]:
    """Return no module: there is no Lightning for a model that speaks."""
    del config
    return []


def plan_speech(
    spec: ModelSpec, settings: Settings, precision: Precision, pixels: int | None = None
) -> int:
    """Return the bytes that the longest text takes beside the weights."""
    del settings, precision, pixels
    return count_kept(spec.defaults) + STEP_BYTES


def count_kept(speaking: Speaking) -> int:
    """Return the bytes that stay between jobs: keys and values of one row and of several."""
    return (1 + MOST_ROWS) * count_room(speaking) * CACHE_BYTES_PER_TOKEN


def count_room(speaking: Speaking) -> int:
    """Return how many tokens the longest passage can have: its prompt, and frames to its limit."""
    prompt = 2 * speaking.passage + 100  # a token is about four characters, but bytes in rare ones
    tokens = prompt + SLOTS * (speaking.limit_frames("x" * speaking.passage) + 1)
    return -(-tokens // CUDA_READ_STEP) * CUDA_READ_STEP


def learn(spec: ModelSpec, facts: Mapping[str, Any]) -> ModelSpec:
    """Return a model with what its worker.json says about it; raises WeightsUnavailable."""
    return replace(spec, defaults=read_speaking(facts, spec.defaults or Speaking()))


SPEECH_RECIPE: Final = Recipe(
    parts=(TOKENIZER, CODEC, LANGUAGE),
    check=check,
    adapted=LANGUAGE.role,
    reached=list_reached,
    waiting=CODEC.role,
    working=plan_speech,
    learn=learn,
)
