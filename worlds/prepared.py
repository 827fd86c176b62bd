"""Orders for bundles of the embedded models, and the models opened from them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from worker import settings
from worker.bundle.headers import Shard
from worker.bundle.layout import name_adapter
from worker.bundle.open import Shared
from worker.bundle.plan import Order
from worker.bundle.prepare import prepare
from worker.engine.quantise import Precision
from worker.families.catalogue import CATALOGUE
from worker.families.qwen_image.components import Components
from worker.families.qwen_image.model import QwenImage
from worker.families.qwen_image.opening import open_bundle
from worker.families.qwen_image.published import open_published
from worker.families.qwen_image.recipe import RECIPE
from worker.weights.meaning import find_checkpoints
from worker.weights.snapshot import LocalSnapshot, Snapshot
from worlds.published import EDIT, IMAGE, offering

CPU = torch.device("cpu")
CONDITION_AREA = 96 * 96
SPECS = {spec.name: CATALOGUE.find_row(spec.name) for spec in CATALOGUE.rows}


def folder_of(name: str) -> Path:
    """Return an embedded checkpoint's folder."""
    return find_checkpoints() / str(SPECS[name].embedded)


def order_of(
    name: str,
    home: Path,
    precision: Precision = "bf16",
    *,
    snapshot: Snapshot | None = None,
    fused: int | None = None,
    variables: dict[str, str] | None = None,
) -> Order:
    """Return the order for an embedded model's bundle with both Lightning LoRAs."""
    spec = SPECS[name]
    source = snapshot or LocalSnapshot(folder_of(name), spec.repository)
    return Order(
        spec,
        RECIPE,
        source,
        precision,
        settings.read({"MIN_STORAGE_FREE_GB": "0", **(variables or {})}),
        CPU,
        home,
        home / "downloads",
        lightning={n: (source, lora.filename) for n, lora in spec.lightning.items()},
        fused=fused,
    )


def shards_of(order: Order) -> Mapping[str, Sequence[Shard]]:
    """Return the shards of each published part, once checked; raises WeightsUnavailable."""
    return order.recipe.check(order.snapshot, order.spec).shards


def opened(
    name: str, home: Path, precision: Precision = "bf16", *, share: Shared | None = None
) -> Components:
    """Prepare and open an embedded model's bundle."""
    return open_bundle(prepare(order_of(name, home, precision)), CPU, share=share)


def lightning_files(name: str, folder: Path | None = None) -> dict[str, Path]:
    """Return the Lightning LoRA files of an embedded model by adapter name."""
    spec = SPECS[name]
    folder = folder or folder_of(name)
    return {name_adapter(n): folder / lora.filename for n, lora in spec.lightning.items()}


def published(
    name: str, folder: Path | None = None, dtype: torch.dtype = torch.bfloat16
) -> Components:
    """Open an embedded model with from_pretrained, its modulation weights in place."""
    folder = folder or folder_of(name)
    return open_published(folder, dtype=dtype, device=CPU, lightning=lightning_files(name, folder))


def model(name: str, parts: Components, pipeline: str | None = None) -> QwenImage:
    """Return the family's model over open components, as of another pipeline if one is named."""
    spec = SPECS[name]
    edits = "edit" in spec.tasks
    kind = replace(EDIT if edits else IMAGE, id=name)
    served = offering(kind, area=spec.defaults.area, max_pixels=4 * spec.defaults.area)
    return QwenImage(parts, served, pipeline or spec.pipeline, condition_area=CONDITION_AREA)
