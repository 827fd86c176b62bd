"""How much memory a model takes at each precision, kept so that a later start asks no hub."""

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from worker.bundle import layout
from worker.bundle.layout import Bundle, Component, Verified
from worker.bundle.recipe import Recipe
from worker.bundle.sizes import WeightSizes
from worker.engine.precision import Need
from worker.engine.quantise import PRECISIONS, Precision
from worker.weights import temporary

SIZES_FOLDER: Final = "sizes"


def convert_sizes(known: Mapping[Precision, WeightSizes], recipe: Recipe) -> dict[Precision, Need]:
    """Return the device memory in bytes that follows from computed sizes."""
    return {
        precision: _make_need(size.memory, size.parts, recipe) for precision, size in known.items()
    }


def measure_bundle(found: Verified, recipe: Recipe) -> Need:
    """Return the device memory that a bundle's files take, in bytes."""
    parts = {role: count_device_bytes(part) for role, (_, part) in found.parts.items()}
    return _make_need(sum(parts.values()), parts, recipe)


def _make_need(whole: int, parts: Mapping[str, int], recipe: Recipe) -> Need:
    return Need(whole, whole - parts.get(recipe.waiting, 0), recipe.waiting_word)


def count_device_bytes(part: Component) -> int:
    """Return how many bytes a component takes on the device: all its files but the mapped ones."""
    return sum(r.size for name, r in part.files.items() if not name.startswith(layout.MAPPED))


def read_kept(home: Path, name: str, recipe: Recipe) -> dict[Precision, WeightSizes] | None:
    """Return the sizes that were kept under a bundle's name; None when there are none."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        record = json.loads((home / SIZES_FOLDER / f"{name}.json").read_bytes())
        return {precision: _read_sizes(record[precision], recipe) for precision in PRECISIONS}
    return None


def _read_sizes(record: Mapping[str, Any], recipe: Recipe) -> WeightSizes:
    """Read what `_make_record` wrote; raises KeyError or TypeError for anything else."""
    parts = {role: record[role] for role in recipe.with_weights}
    return WeightSizes(disk=record["disk"], parts=parts, adapters=record["adapters"])


def _make_record(size: WeightSizes) -> dict[str, int]:
    return {"disk": size.disk, **size.parts, "adapters": size.adapters}


def keep(home: Path, name: str, known: Mapping[Precision, WeightSizes]) -> None:
    """Keep sizes under a bundle's name, where that can be written: it only saves a request."""
    target = home / SIZES_FOLDER / f"{name}.json"
    with suppress(OSError):
        target.parent.mkdir(parents=True, exist_ok=True)
        part = temporary.make_path(target)
        part.write_text(json.dumps({p: _make_record(size) for p, size in known.items()}))
        temporary.publish(part, target)


def read_kept_before(
    home: Path, ours: Iterable[tuple[Path, Bundle]], beside: int, recipe: Recipe
) -> dict[Precision, WeightSizes] | None:
    """Return the sizes that 0.1.0 kept by the last part of a name; None when it is ambiguous.

    `ours` are the model's bundles, `beside` is the number of LoRAs beside the weights. Every bundle
    that had that name at some precision must be among them.
    """
    own = {folder: bundle for folder, bundle in ours if bundle.asked is None}
    others = {
        _name_at_bf16(folder.name, bundle)
        for folder, bundle in layout.list_prepared(home)
        if folder not in own
    }
    names = {_name_at_bf16(folder.name, bundle) for folder, bundle in own.items()} - others
    found = (read_kept(home, f"{name}-{beside}", recipe) for name in sorted(names))
    return next(filter(None, found), None)


def _name_at_bf16(name: str, bundle: Bundle) -> str:
    """Return the name that a bundle of 0.1.0 would have in bf16, by which it kept the sizes."""
    model = name.removesuffix(layout.name_bundle("", bundle.precision, bundle.fused))
    return model + layout.name_bundle("", "bf16", bundle.fused)
