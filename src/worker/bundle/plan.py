"""What to make from a published model: every component's identity, sources and size."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from worker.bundle import headers, layout
from worker.bundle.content import digest_meaning
from worker.bundle.layout import METHOD
from worker.bundle.recipe import Part, Published, Recipe
from worker.bundle.sizes import count_loaded, count_mapped, count_stored
from worker.bundle.stated import digest_scale
from worker.engine.quantise import Precision
from worker.settings import Settings
from worker.weights.snapshot import ReportProgress, Snapshot, find_file, ignore_progress
from worker.weights.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Order:
    """What to prepare and where.

    `lightning` maps step counts to the snapshot and the name of their LoRA; `fused` is the step
    count whose LoRA is baked into the weights, None when all stay adapters. `home` holds bundles
    and components, `into` the published files while they are needed. The work is done on `device`.
    `name` is the name of the bundle's folder, by default the model's name and precision.
    """

    spec: ModelSpec
    recipe: Recipe
    snapshot: Snapshot
    precision: Precision
    settings: Settings
    device: torch.device
    home: Path
    into: Path
    lightning: Mapping[int, tuple[Snapshot, str]] = field(default_factory=dict)
    fused: int | None = None
    progress: ReportProgress = ignore_progress
    name: str | None = None

    @property
    def folder(self) -> Path:
        """Return the bundle's folder."""
        spec = self.spec
        model = f"{spec.name}@{spec.revision}" if spec.revision else spec.name
        name = self.name or layout.name_bundle(model, self.precision, self.fused)
        return self.home / layout.BUNDLES / name


@dataclass(frozen=True, slots=True)
class Planned:
    """One component to make: a part of the recipe, or the Lightning LoRA for `steps`.

    `facts` say how it is made and are part of its identity, `sources` map published files to
    digests, `size` is approximately its size in bytes.
    """

    role: str
    identity: str
    facts: Mapping[str, Any]
    sources: Mapping[str, str]
    size: int
    steps: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that is made for a bundle, in order, and what each LoRA states about its scale.

    `scales` are digests of what is stated besides a LoRA's tensors, "" for nothing.
    """

    order: Order
    published: Published
    components: tuple[Planned, ...]
    scales: Mapping[int, str]


def plan(order: Order, published: Published) -> Plan:
    """Plan a bundle of a checked model, from its small files and headers alone.

    Nothing is written; files without a known digest are read to compute it. Raises
    WeightsUnavailable.
    """
    scales = {steps: digest_scale(*lora) for steps, lora in order.lightning.items()}
    loras = (
        []
        if order.fused
        else [_plan_lora(order, steps, scales[steps]) for steps in order.lightning]
    )
    parts = [
        _plan_part(order, published, part, scales)
        for part in order.recipe.parts
        if part.has_weights or published.small.get(part.role)
    ]
    return Plan(order, published, (*loras, *parts), scales)


def _plan_part(
    order: Order, published: Published, part: Part, scales: Mapping[int, str]
) -> Planned:
    small = published.small[part.role]
    shards = published.shards[part.role] if part.has_weights else ()
    sources = {shard.file.path: order.snapshot.digest(shard.file) for shard in shards}
    digests = [*sources.values(), *(digest_meaning(name, data) for name, data in small.items())]
    for name, data in small.items():
        sources[f"{part.role}/{name}"] = f"sha256:{hashlib.sha256(data).hexdigest()}"
    facts = {"recipe": METHOD, **_list_facts(order, published, part, scales)}
    size = sum(map(len, small.values()))
    if part.has_weights:
        size += count_stored(part, headers.merge(shards), part.choose_precision(order.precision))
        size += count_mapped(part, published) + count_loaded(part, published)
    return Planned(
        part.role, layout.compute_identity(part.role, digests, facts), facts, sources, size
    )


def _list_facts(
    order: Order, published: Published, part: Part, scales: Mapping[int, str]
) -> dict[str, Any]:
    """Return what is done to a part with weights; a part of small files is only copied."""
    if not part.has_weights:
        return {}
    facts: dict[str, Any] = {"precision": part.choose_precision(order.precision)}
    if part.is_exact:
        facts["precision"] = "published"
    if part.replaced is not None:
        facts |= part.replaced.facts(published)
    if order.fused and part.role == order.recipe.adapted:
        facts["fused"] = _digest(*order.lightning[order.fused])
        facts |= _list_scale(scales[order.fused])
    return facts


def _plan_lora(order: Order, steps: int, scale: str) -> Planned:
    snapshot, filename = order.lightning[steps]
    digest = _digest(snapshot, filename)
    role = layout.name_adapter(steps)
    facts = {"recipe": METHOD, **_list_scale(scale)}
    return Planned(
        role,
        layout.compute_identity(role, [digest], facts),
        facts,
        {filename: digest},
        find_file(snapshot, filename).size,
        steps,
    )


def _digest(snapshot: Snapshot, filename: str) -> str:
    return snapshot.digest(find_file(snapshot, filename))


def _list_scale(stated: str) -> dict[str, str]:
    """Return what a stated scale adds to the facts: nothing without one, as in 0.1.0."""
    return {"scale": stated} if stated else {}
