"""What fits which card, computed by the worker's own functions: `python bench/pools.py`.

The weights are those of bench/results/sizes.json with one LoRA, what jobs take is
the recipe's, and the context of CUDA is counted in. Nothing was measured on a GPU. Writes
bench/results/pools.json, from which `make readme` fills the table of docs/deploy.md.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parents[1]))

from worker import settings
from worker.driver import Gpu
from worker.engine import precision as choosing
from worker.engine.precision import BF16_CAPABILITY, Need
from worker.engine.quantise import PRECISIONS, Precision
from worker.families.catalogue import CATALOGUE
from worker.families.pictures import choose_largest, list_areas
from worker.families.qwen_image.recipe import RECIPE

SIZES: Final = Path(__file__).parent / "results" / "sizes.json"
RESULTS: Final = Path(__file__).parent / "results" / "pools.json"
# Memory of the cards as their drivers report it, in MiB (nvidia-smi), the smallest first.
CARDS: Final[Mapping[str, int]] = {
    "A4000": 16376,
    "L4": 23034,
    "A5000, 4090": 24564,
    "3090": 24576,
    "A40, L40S": 46068,
    "A6000": 49140,
    "H100": 81559,
    "H200": 143771,
}
SETTINGS: Final = settings.read({})
MODELS: Final = {row.name: row for row in CATALOGUE.rows if row.embedded is None}
EDIT: Final = MODELS["qwen-image-edit-2511"]
IMAGE: Final = MODELS["qwen-image-2512"]


@dataclass(frozen=True, slots=True)
class Weights:
    """The bytes of a model's weights at one precision: its own, and those that models share."""

    own: int
    shared: int
    waiting: int

    @property
    def whole(self) -> int:
        """Return the bytes of one model."""
        return self.own + self.shared

    @property
    def both(self) -> int:
        """Return the bytes of two models with one text encoder and one VAE."""
        return 2 * self.own + self.shared


def read_weights() -> dict[Precision, Weights]:
    """Return the weights by precision."""
    sizes = json.loads(SIZES.read_text(encoding="utf-8"))

    def count(precision: str, *parts: str) -> int:
        return sum(round(sizes[precision][part] * choosing.GIGABYTE) for part in parts)

    return {
        precision: Weights(
            count(precision, "transformer", "lora"),
            count(precision, "text_encoder", "vae"),
            count(precision, "text_encoder"),
        )
        for precision in PRECISIONS
    }


def compute(mebibytes: int) -> dict[str, Any]:
    """Return what a card holds, all of its memory being free."""
    gpu, weights = Gpu("", BF16_CAPABILITY, mebibytes << 20, mebibytes << 20), read_weights()
    working = partial(RECIPE.compute_working, EDIT, SETTINGS)
    choice = choosing.choose(
        "auto",
        {p: Need(w.whole, w.whole - w.waiting) for p, w in weights.items()},
        free=gpu.room,
        capability=gpu.capability,
        working=working,
        offloaded=partial(working, offload=True),
    )
    held = weights[choice.precision]
    left = gpu.room - held.whole + (held.waiting if choice.offload else 0)
    together = [p for p, w in weights.items() if can_share(gpu.room - w.both, p)]
    both: Precision | None = together[-1] if together else None
    return {
        "bytes": gpu.total,
        "precision": choice.precision,
        "offload": choice.offload,
        "edit": choose_side(EDIT, choice.precision, left, offload=choice.offload),
        "image": choose_side(IMAGE, choice.precision, left, offload=choice.offload),
        "both": both,
        "both_edit": both and choose_side(EDIT, both, gpu.room - weights[both].both),
        "both_image": both and choose_side(IMAGE, both, gpu.room - weights[both].both),
    }


def can_share(left: int, precision: Precision) -> bool:
    """Return whether both models' jobs fit in what the weights of both leave."""
    return max(RECIPE.compute_working(row, SETTINGS, precision) for row in (EDIT, IMAGE)) <= left


def choose_side(row: Any, precision: Precision, left: int, *, offload: bool = False) -> int:
    """Return the side in pixels of the largest square picture that callers may request."""
    working = partial(RECIPE.compute_working, row, SETTINGS, precision, offload=offload)
    return int(choose_largest(list_areas(row.defaults), working, left) ** 0.5)


def main() -> int:
    """Write what every card holds."""
    found = {name: compute(mebibytes) for name, mebibytes in CARDS.items()}
    RESULTS.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
