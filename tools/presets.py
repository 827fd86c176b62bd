"""The presets of RunPod's listing: what each serves, and the memory and pools that it needs."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from worker import settings
from worker.driver import CONTEXT_BYTES
from worker.families.catalogue import CATALOGUE
from worker.families.flux2 import models as flux2
from worker.families.flux2 import planning
from worker.families.flux2.working import VAE_BYTES
from worker.families.orpheus import models as orpheus
from worker.families.orpheus.recipe import plan_speech
from worker.families.qwen_image import models as qwen_image
from worker.families.qwen_image.planning import plan_working
from worker.settings import Settings
from worker.weights.spec import ModelSpec, list_lightning_steps

# the pools of docs/deploy.md with their GPUs' GB (RunPod's list of GPU pools)
POOLS: Final[Mapping[str, int]] = {
    "AMPERE_16": 16,
    "AMPERE_24": 24,
    "ADA_24": 24,
    "AMPERE_48": 48,
    "ADA_48_PRO": 48,
    "AMPERE_80": 80,
    "ADA_80_PRO": 80,
    "HOPPER_141": 141,
}
GB: Final = 1e9
# what a preset is for -> the settings that it fills in
PRESETS: Final[Mapping[str, Mapping[str, str | bool]]] = {
    "Edit": {
        "MODEL": "qwen-image-edit-2511",
        "PRECISION_MODE": "4bit",
        "LIGHTNING_STEPS": "8",
    },
    "Edit and text to image": {
        "MODEL": "qwen-image-edit-2511,qwen-image-2512",
        "PRECISION_MODE": "4bit",
        "LIGHTNING_STEPS": "8,4",
    },
    "Text, edits and weighed references by FLUX.2 klein": {
        "MODEL": "flux-2-klein-4b",
        "PRECISION_MODE": "bf16",
    },
    "Edits by Qwen-Image, text and weighed references by FLUX.2 klein": {
        "MODEL": "qwen-image-edit-2511,flux-2-klein-4b",
        "PRECISION_MODE": "4bit",
        "LIGHTNING_STEPS": "8",
    },
    "Edit at the base schedule": {
        "MODEL": "qwen-image-edit-2511",
        "PRECISION_MODE": "bf16",
        "USE_LIGHTNING_LORA": False,
    },
    "Speech": {"MODEL": "orpheus", "PRECISION_MODE": "bf16"},
}
# How each family computes what its largest job takes, by its module.
PLANS: Final[Mapping[str, Callable[[ModelSpec, Settings, Any], int]]] = {
    qwen_image.MODULE: plan_working,
    flux2.MODULE: planning.plan_working,
    orpheus.MODULE: plan_speech,
}
SPEECH_SIZES: Final = Path(__file__).resolve().parent.parent / "bench" / "results" / "speech.json"
PRECISION_NAMES: Final = {"4bit": "4-bit NF4", "8bit": "8-bit", "bf16": "bf16"}

Sizes = Mapping[str, Mapping[str, float]]


def compute_memory(chosen: Mapping[str, str | bool], sizes: Sizes) -> float:
    """Return the GB of all weights of a preset: models share their text encoder and VAE.

    `sizes` are the GB by precision and part (bench/sizes.py).
    """
    given = settings.read({name: str(value).lower() for name, value in chosen.items()})
    every = CATALOGUE.resolve(given.model, given, has_gpu=True)
    specs = [spec for spec in every if spec.family == qwen_image.MODULE]
    adapters = sum(len(list_lightning_steps(spec, given)) for spec in specs)
    parts = sizes[given.precision_mode]
    shared = parts["text_encoder"] + parts["vae"] if specs else 0.0
    others = [spec for spec in every if spec not in specs]
    return (
        len(specs) * parts["transformer"]
        + adapters * parts["lora"]
        + shared
        + sum(compute_weights(spec, given) for spec in others)
    )


def compute_weights(spec: ModelSpec, given: Settings) -> float:
    """Return the GB of all weights of a FLUX.2 or of an Orpheus."""
    precision: Any = given.precision_mode  # a preset never says auto
    if spec.family == orpheus.MODULE:
        speech = json.loads(SPEECH_SIZES.read_text(encoding="utf-8"))["sizes"]
        return float(speech[precision]["device"])
    parts = planning.find_edition(spec).count_weights(precision)
    return (sum(parts) + VAE_BYTES) / GB


def compute_room(chosen: Mapping[str, str | bool]) -> float:
    """Return the GB that a preset's jobs take in addition to the weights, CUDA's context included.

    The largest job of any of its models, by its family's `plan_working`.
    """
    given = settings.read({name: str(value).lower() for name, value in chosen.items()})
    specs = CATALOGUE.resolve(given.model, given, has_gpu=True)
    precision: Any = given.precision_mode  # a preset never says auto
    working = max(PLANS[spec.family](spec, given, precision) for spec in specs)
    return (working + CONTEXT_BYTES) / GB


def list_pools(needed: float) -> list[str]:
    """Return the pools of the smallest GPUs that have `needed` GB."""
    smallest = min(size for size in POOLS.values() if size >= needed)
    return [pool for pool, size in POOLS.items() if size == smallest]


def make_presets(sizes: Sizes) -> list[dict[str, Any]]:
    """Return the presets as the listing has them, each named after what it takes."""
    presets = []
    for purpose, chosen in PRESETS.items():
        memory = compute_memory(chosen, sizes)
        pools = " or ".join(list_pools(memory + compute_room(chosen)))
        name = f"{purpose}: {chosen['PRECISION_MODE']}, {memory:.1f} GB of weights, for {pools}"
        presets.append({"name": name, "defaults": dict(chosen)})
    return presets


def make_precision_options(sizes: Sizes) -> list[dict[str, str]]:
    """Return the choices of PRECISION_MODE, each with what one model takes in it."""
    options = [
        {"label": f"{name}: {sizes[mode]['device']:.1f} GB of weights", "value": mode}
        for mode, name in PRECISION_NAMES.items()
    ]
    return [{"label": "Automatic", "value": "auto"}, *options]
