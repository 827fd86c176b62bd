"""Published weights -> one lean bundle: streaming, resumable, once a volume."""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch

from worker import log
from worker.bundle import format as layout
from worker.bundle import lock, plan, rows, tensors
from worker.bundle.check import Published, check
from worker.bundle.content import meaning
from worker.bundle.format import RECIPE, Bundle, Component, Damaged, FileRecord, LoraRecord
from worker.bundle.plan import Shard, Sizes
from worker.bundle.stated import beside, stated_scale
from worker.bundle.stream import OPEN_TRIES, Place, forget_receipts, stream
from worker.bundle.transform import Transformer, Weights, bf16, check_lora
from worker.engine import lora_file
from worker.engine.quantise import PRECISIONS, Precision
from worker.errors import VolumeFull
from worker.settings import Settings
from worker.weights import space, temporary
from worker.weights.names import MAIN
from worker.weights.proof import RemoteFile
from worker.weights.snapshot import LOCAL, LocalSnapshot, Progress, Snapshot, named, quiet
from worker.weights.spec import ModelSpec

LOCKS: Final = "locks"
# A component's file that its manifest does not name is swept when it is this old: another worker
# may have opened it by the manifest before.
UNNAMED_S: Final = 3600.0

Make = Callable[[Path], Mapping[str, FileRecord]]


@dataclass(frozen=True)
class Order:
    """What to prepare and where.

    `lightning` maps step counts to the snapshot and the name of their LoRA; `fused` is the step
    count whose LoRA is baked into the weights, None when all stay adapters. `home` holds bundles
    and components, `into` the published files while they are needed. The work is done on `device`.
    `name` is the bundle's folder, by default the model's name and precision.
    """

    spec: ModelSpec
    snapshot: Snapshot
    precision: Precision
    settings: Settings
    device: torch.device
    home: Path
    into: Path
    lightning: Mapping[int, tuple[Snapshot, str]] = field(default_factory=dict)
    fused: int | None = None
    progress: Progress = quiet
    name: str | None = None

    @property
    def folder(self) -> Path:
        """Return the bundle's folder."""
        spec = self.spec
        model = f"{spec.name}@{spec.revision}" if spec.revision else spec.name
        name = self.name or layout.bundle_name(model, self.precision, self.fused)
        return self.home / layout.BUNDLES / name

    @cached_property
    def published(self) -> Published:
        """Return the published model, judged by its small files and headers; raises as `check`."""
        return check(self.snapshot, self.spec)

    @property
    def shards(self) -> Mapping[str, Sequence[Shard]]:
        """Return what transformer, text_encoder and vae are published as; raises as `check`."""
        return self.published.shards

    @cached_property
    def keys(self) -> torch.Tensor:
        """Return what the transformer can see of a timestep: bf16 [T]."""
        return rows.keys(self.published.scheduler)

    @cached_property
    def scales(self) -> Mapping[int, str]:
        """Return the digest of what each LoRA states of its scale beside its tensors, or ""."""
        return {steps: stated_scale(*lora) for steps, lora in self.lightning.items()}


@dataclass(frozen=True, slots=True)
class _Job:
    """One component to make: what identifies it, about how many bytes, and how."""

    role: str
    identity: str
    recipe: Mapping[str, Any]
    sources: Mapping[str, str]
    size: int
    make: Make


def sizes(order: Order) -> dict[Precision, Sizes]:
    """Compute from the published headers alone what each precision takes, in bytes.

    Raises WeightsUnavailable.
    """
    held = [] if order.fused else list(order.lightning.values())
    beside = sum(named(snapshot, filename).size for snapshot, filename in held)
    return {
        precision: plan.sizes(order.shards, precision, keys=len(order.keys), adapters=beside)
        for precision in PRECISIONS
    }


def prepare(order: Order) -> Path:
    """Prepare a bundle and return its folder; what is already there is not made again.

    Goes on where a killed run was. Two workers on one volume take turns where locks work and do
    the same work harmlessly where they do not. Raises WeightsUnavailable, VolumeFull,
    LoraNotApplied.
    """
    start = time.monotonic()
    for kind in (layout.BUNDLES, layout.COMPONENTS):
        temporary.sweep(order.home / kind)
    jobs = _jobs(order)
    needed = _require_space(order, jobs)
    with space.writing(needed, order.home, order.settings):
        for job in jobs:
            _component(order, job)
        order.folder.mkdir(parents=True, exist_ok=True)
        layout.publish(order.folder, _manifest(order, jobs))
    log.get().info(
        "bundle prepared",
        bundle=order.folder.name,
        bytes=layout.verify(order.folder).size,
        seconds=round(time.monotonic() - start, 1),
    )
    return order.folder


def _jobs(order: Order) -> list[_Job]:
    """Return the components in the order they are made: what can fail early first."""
    jobs = [] if order.fused else [_lightning(order, steps) for steps in order.lightning]
    jobs += [
        _job(order, role, [], {}, lambda _folder: {})
        for role in plan.COPIED
        if order.published.small.get(role)
    ]
    jobs.append(_weights(order, "vae", "bf16"))
    jobs.append(_weights(order, "text_encoder", order.precision))
    jobs.append(_transformer(order))
    return jobs


def _job(
    order: Order,
    role: str,
    weights: Sequence[RemoteFile],
    recipe: Mapping[str, Any],
    make: Make,
    size: int = 0,
) -> _Job:
    """Describe a component of the model's own: its small files are copied beside what is made."""
    small = order.published.small[role]
    sources = {file.path: order.snapshot.digest(file) for file in weights}
    digests = [*sources.values(), *(meaning(name, data) for name, data in small.items())]
    facts = {"recipe": RECIPE, **recipe}
    for name, data in small.items():
        sources[f"{role}/{name}"] = f"sha256:{hashlib.sha256(data).hexdigest()}"

    def whole(folder: Path) -> Mapping[str, FileRecord]:
        return {
            **make(folder),
            **{name: _write(folder, name, data) for name, data in small.items()},
        }

    return _Job(
        role,
        layout.identity(role, digests, facts),
        facts,
        sources,
        size + sum(map(len, small.values())),
        whole,
    )


def _weights(order: Order, role: str, precision: Precision) -> _Job:
    shards = order.shards[role]

    def make(folder: Path) -> Mapping[str, FileRecord]:
        return stream(_place(order, folder), shards, Weights(role, precision, order.device))

    size = plan.stored(role, plan.merged(shards), precision)
    return _job(order, role, [s.file for s in shards], {"precision": precision}, make, size)


def _transformer(order: Order) -> _Job:
    shards = order.shards["transformer"]
    held = plan.merged(shards)
    recipe: dict[str, Any] = {
        "precision": order.precision,
        "rows": [len(order.keys), float(order.keys[0]), float(order.keys[-1])],
    }
    if order.fused:
        snapshot, filename = order.lightning[order.fused]
        recipe["fused"] = snapshot.digest(named(snapshot, filename))
        recipe |= _scale_recipe(order, order.fused)

    def make(folder: Path) -> Mapping[str, FileRecord]:
        transform = Transformer(
            order.precision,
            order.device,
            snapshot=order.snapshot,
            shards=shards,
            config=order.published.transformer,
            keys=order.keys,
            fused=_lora(order, order.fused) if order.fused else None,
        )
        return stream(_place(order, folder), shards, transform)

    size = plan.stored("transformer", held, order.precision)
    size += plan.row_bytes(held, len(order.keys))
    return _job(order, "transformer", [s.file for s in shards], recipe, make, size)


def _lightning(order: Order, steps: int) -> _Job:
    snapshot, filename = order.lightning[steps]
    file = named(snapshot, filename)
    digest = snapshot.digest(file)
    role = layout.adapter_role(steps)
    recipe = {"recipe": RECIPE, **_scale_recipe(order, steps)}

    def make(folder: Path) -> Mapping[str, FileRecord]:
        return dict([tensors.write(folder, layout.ADAPTER, _lora(order, steps))])

    return _Job(
        role, layout.identity(role, [digest], recipe), recipe, {filename: digest}, file.size, make
    )


def _lora(order: Order, steps: int) -> dict[str, torch.Tensor]:
    """Fetch a Lightning LoRA and return it canonical in bf16, its modules counted."""
    snapshot, filename = order.lightning[steps]
    file, into = named(snapshot, filename), _loras_into(order, snapshot)
    modules, config_file = plan.modules(order.shards["transformer"]), beside(snapshot, file)
    config = None if config_file is None else snapshot.read_file(config_file)
    for attempt in range(OPEN_TRIES):
        proven = snapshot.fetch_file(file, into, order.progress)
        try:
            held = lora_file.read(proven.path, modules, config)
            break
        except FileNotFoundError:  # another worker of the volume dropped it after its own reading
            if attempt + 1 == OPEN_TRIES:
                raise
    state = {name: bf16(t) for name, t in held.items()}
    blocks = int(order.published.transformer["num_layers"])
    check_lora(state, order.shards["transformer"], blocks)
    if proven.disposable and not order.settings.keep_source_weights:
        proven.path.unlink(missing_ok=True)
    return state


def _scale_recipe(order: Order, steps: int) -> dict[str, str]:
    """Return what a stated scale adds to a recipe: nothing where none is, as in 0.1.0."""
    scale = order.scales[steps]
    return {"scale": scale} if scale else {}


def _loras_into(order: Order, snapshot: Snapshot) -> Path:
    """Return where another repository's files are downloaded: apart from the model's own."""
    if snapshot.repository == order.snapshot.repository:
        return order.into
    return order.into / f"{snapshot.repository.replace('/', '--')}-{snapshot.commit}"


def _place(order: Order, folder: Path) -> Place:
    keep = order.settings.keep_source_weights
    return Place(order.snapshot, order.into, folder, keep, order.progress)


def _component(order: Order, job: _Job) -> None:
    """Make one component and publish it, unless it is there or another worker makes it."""
    folder = order.home / layout.COMPONENTS / job.identity

    def published() -> bool:
        try:
            layout.verify_component(folder, layout.read_component(folder), "sizes")
        except FileNotFoundError:
            return False
        except Damaged as damage:
            log.get().warning("damaged part set aside", reason=damage.message)
            layout.set_aside(folder)
            return False
        return True

    if published():
        return
    locked = order.home / LOCKS / f"{job.identity}.lock"
    with lock.turn(locked, published, (folder, order.into)):
        if published():
            return
        folder.mkdir(parents=True, exist_ok=True)
        records = job.make(folder)
        layout.publish(
            folder,
            Component(
                format=layout.FORMAT,
                identity=job.identity,
                role=job.role,
                recipe=dict(job.recipe),
                sources=dict(job.sources),
                prepared_on=_kind(order.device),
                libraries=layout.libraries(),
                files=dict(records),
            ),
        )
        forget_receipts(folder)
        _sweep_unnamed(folder)
        layout.drop_aside(folder)


def _manifest(order: Order, jobs: Sequence[_Job]) -> Bundle:
    held = {}
    for steps, (snapshot, filename) in order.lightning.items():
        if order.fused in (None, steps):
            digest = snapshot.digest(named(snapshot, filename))
            held[steps] = LoraRecord(
                repository=snapshot.repository,
                filename=filename,
                digest=digest,
                scale=order.scales[steps],
            )
    return Bundle(
        format=layout.FORMAT,
        model=order.spec.name,
        repository=order.snapshot.repository,
        revision=order.snapshot.commit,
        asked=None if order.snapshot.commit == LOCAL else order.spec.revision or MAIN,
        pipeline=order.spec.pipeline,
        precision=order.precision,
        fused=order.fused,
        lightning=held,
        offered={
            steps: file.filename
            for steps, file in order.spec.lightning.items()
            if file.repository is None
        },
        components={job.role: job.identity for job in jobs},
        libraries=layout.libraries(),
        facts=dict(order.published.facts),
    )


def _require_space(order: Order, jobs: Sequence[_Job]) -> int:
    """Check for room before the first byte and return how many bytes will be written.

    Two shards lie on the disk beside the bundle unless the published files are already there. What
    was set aside as damaged gives way first. Raises VolumeFull.
    """
    missing = 0
    for job in jobs:
        folder = order.home / layout.COMPONENTS / job.identity
        there = sum(p.stat().st_size for p in folder.glob("*") if p.is_file())
        missing += max(0, job.size - there)
    if missing and not isinstance(order.snapshot, LocalSnapshot):
        largest = sorted(s.file.size for found in order.shards.values() for s in found)[-2:]
        missing += sum(largest)
    try:
        space.require(missing, order.home, order.settings)
    except VolumeFull:
        for job in jobs:
            layout.drop_aside(order.home / layout.COMPONENTS / job.identity)
        space.require(missing, order.home, order.settings)
    return missing


def _sweep_unnamed(folder: Path) -> None:
    """Delete old files that a published component does not name: another run's, killed."""
    named_files = {layout.MANIFEST, *layout.read_component(folder).files}
    for path in folder.iterdir():
        with suppress(OSError):
            if path.name not in named_files and time.time() - path.stat().st_mtime > UNNAMED_S:
                path.unlink()


def _write(folder: Path, name: str, data: bytes) -> FileRecord:
    part = temporary.unique(folder / name)
    part.write_bytes(data)
    temporary.publish(part, folder / name)
    return FileRecord(size=len(data), sha256=hashlib.sha256(data).hexdigest())


def _kind(device: torch.device) -> str:
    """Name the kind of device, on which the rows' last bit may depend."""
    if device.type != "cuda":
        return device.type
    return f"cuda {'.'.join(map(str, torch.cuda.get_device_capability(device)))}"
