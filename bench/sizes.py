"""The space each precision takes, computed from the full architecture: `python bench/sizes.py`.

Needs no weights and no GPU: the modules are built without storage and counted by the code with
which a cold start chooses its precision. Writes bench/results/sizes.json.
"""

import json
import sys
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.real_shapes import shapes
from worker.bundle.headers import Shard
from worker.bundle.recipe import Published
from worker.bundle.sizes import compute_sizes_at
from worker.bundle.tensors import Header, TensorEntry
from worker.engine.quantise import PRECISIONS
from worker.families.qwen_image.lightning import list_lightning_modules
from worker.families.qwen_image.recipe import RECIPE
from worker.weights.proof import RemoteFile

RESULTS: Final = Path(__file__).parent / "results" / "sizes.json"
GB: Final = 1e9
# the published LoRAs; by default one of them, for 8 steps, is kept with the weights
RANK: Final = 64
BF16_BYTES: Final = 2


def build_header(model: Any) -> Header:
    """Return a model's tensors as in the header of a safetensors file."""
    return {
        name: TensorEntry(tensor.dtype, tuple(tensor.shape), 0, 0)
        for name, tensor in model.state_dict().items()
    }


def count_adapter_bytes(transformer: Any) -> int:
    """Return the bytes of one Lightning LoRA in bf16."""
    shapes_of = (
        transformer.get_submodule(name).weight.shape
        for name in list_lightning_modules(len(transformer.transformer_blocks))
    )
    return int(BF16_BYTES * RANK * sum(out + into for out, into in shapes_of))


def compute() -> dict[str, dict[str, float]]:
    """Return GB by precision: on disk, on the device and per part, without activations."""
    architecture = shapes.full()
    models = {
        "transformer": shapes.transformer(architecture, edit=True),
        "text_encoder": shapes.text_encoder(architecture),
        "vae": shapes.vae(architecture),
    }
    shards = {
        role: [Shard(RemoteFile(f"{role}/model.safetensors", 0), build_header(model))]
        for role, model in models.items()
    }
    published = Published({}, shards, {"scheduler": architecture.scheduler}, {})
    beside = count_adapter_bytes(models["transformer"])
    results: dict[str, dict[str, float]] = {}
    for precision in PRECISIONS:
        size = compute_sizes_at(RECIPE, published, precision, adapters=beside)
        figures = {
            "disk": size.disk,
            "device": size.memory,
            **{role: size.parts[role] for role in RECIPE.with_weights},
            "lora": size.adapters,
        }
        results[precision] = {name: round(value / GB, 2) for name, value in figures.items()}
    return results


def main() -> None:
    """Compute, print and write."""
    results = compute()
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    names = next(iter(results.values()))
    print("GB".ljust(10), *(name.rjust(13) for name in names))
    for precision, figures in results.items():
        print(precision.ljust(10), *(f"{value:13.2f}" for value in figures.values()))


if __name__ == "__main__":
    main()
