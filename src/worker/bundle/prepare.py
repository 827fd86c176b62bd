"""Published weights -> one lean bundle: streaming, resumable, once per volume."""

import hashlib
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

import torch

from worker import log
from worker.bundle import headers, layout, lock, tensors
from worker.bundle.convert import cast_to_bf16, check_lora, make_transform
from worker.bundle.layout import Bundle, Component, Damaged, FileRecord, LoraRecord
from worker.bundle.plan import Order, Plan, Planned, plan
from worker.bundle.recipe import Part, Published, Work
from worker.bundle.sizes import WeightSizes, compute_sizes_at
from worker.bundle.stated import find_config
from worker.bundle.stream import OPEN_TRIES, Route, forget_receipts, stream
from worker.engine import lora_file
from worker.engine.quantise import PRECISIONS, Precision
from worker.errors import VolumeFull
from worker.weights import space, temporary
from worker.weights.names import MAIN
from worker.weights.snapshot import LOCAL, LocalSnapshot, Snapshot, find_file

LOCKS: Final = "locks"
# A file that its component's manifest does not name is deleted when it is this old: another worker
# may have opened it by the previous manifest.
UNNAMED_S: Final = 3600.0


def compute_sizes(order: Order, published: Published | None = None) -> dict[Precision, WeightSizes]:
    """Compute from the published headers alone what each precision takes, in bytes.

    `published` is the checked model, if it was checked before. Raises WeightsUnavailable.
    """
    loras = [] if order.fused else list(order.lightning.values())
    adapters = sum(find_file(snapshot, filename).size for snapshot, filename in loras)
    published = published or order.recipe.check(order.snapshot, order.spec)
    return {
        precision: compute_sizes_at(order.recipe, published, precision, adapters=adapters)
        for precision in PRECISIONS
    }


def prepare(order: Order, published: Published | None = None) -> Path:
    """Prepare a bundle and return its folder; what is already there is not made again.

    `published` is the checked model, if it was checked before. Continues where a killed run
    stopped. Two workers on one volume take turns where locks work, and do the same work harmlessly
    where they do not. Raises WeightsUnavailable, VolumeFull, LoraNotApplied.
    """
    start = time.monotonic()
    for kind in (layout.BUNDLES, layout.COMPONENTS):
        temporary.sweep(order.home / kind)
    planned = plan(order, published or order.recipe.check(order.snapshot, order.spec))
    needed = _require_space(planned)
    with space.translate_errors(needed, order.home, order.settings):
        for component in planned.components:
            _make(planned, component)
        order.folder.mkdir(parents=True, exist_ok=True)
        layout.publish(order.folder, _make_manifest(planned))
    log.get().info(
        "bundle prepared",
        bundle=order.folder.name,
        bytes=layout.verify(order.folder).size,
        seconds=round(time.monotonic() - start, 1),
    )
    return order.folder


def _require_space(planned: Plan) -> int:
    """Check for space before the first byte and return how many bytes will be written.

    Two shards are on the disk alongside the bundle unless the published files are already there.
    Quarantined parts are deleted if that space is needed. Raises VolumeFull.
    """
    order = planned.order
    folders = {one.identity: _find_folder(order, one) for one in planned.components}
    missing = 0
    for one in planned.components:
        files = folders[one.identity].glob("*")
        missing += max(0, one.size - sum(p.stat().st_size for p in files if p.is_file()))
    if missing and not isinstance(order.snapshot, LocalSnapshot):
        shards = (shard for found in planned.published.shards.values() for shard in found)
        missing += sum(sorted(shard.file.size for shard in shards)[-2:])
    try:
        space.require_space(missing, order.home, order.settings)
    except VolumeFull:
        for folder in folders.values():
            layout.drop_quarantined(folder)
        space.require_space(missing, order.home, order.settings)
    return missing


def _make(planned: Plan, component: Planned) -> None:
    """Make one component and publish it, unless it is there or another worker makes it."""
    order, folder = planned.order, _find_folder(planned.order, component)

    def is_published() -> bool:
        try:
            layout.verify_component(folder, layout.read_component(folder), "sizes")
        except FileNotFoundError:
            return False
        except Damaged as damage:
            log.get().warning("damaged part quarantined", reason=damage.message)
            layout.quarantine(folder)
            return False
        return True

    if is_published():
        return
    locked = order.home / LOCKS / f"{component.identity}.lock"
    with lock.take_turn(locked, is_published, (folder, order.into)):
        if is_published():
            return
        folder.mkdir(parents=True, exist_ok=True)
        records = _write_files(planned, component, folder)
        layout.publish(
            folder,
            Component(
                format=layout.FORMAT,
                identity=component.identity,
                role=component.role,
                recipe=dict(component.facts),
                sources=dict(component.sources),
                prepared_on=_name_device(order.device),
                libraries=layout.list_libraries(),
                files=records,
            ),
        )
        forget_receipts(folder)
        _sweep_unnamed(folder)
        layout.drop_quarantined(folder)


def _write_files(planned: Plan, component: Planned, folder: Path) -> dict[str, FileRecord]:
    """Write a component's files and return their records."""
    if component.steps is not None:
        return dict([tensors.write(folder, layout.ADAPTER, _read_lora(planned, component.steps))])
    part = planned.order.recipe.find_part(component.role)
    records = _write_weights(planned, part, folder) if part.has_weights else {}
    small = planned.published.small[part.role]
    return {**records, **{name: _write(folder, name, data) for name, data in small.items()}}


def _write_weights(planned: Plan, part: Part, folder: Path) -> dict[str, FileRecord]:
    order, published = planned.order, planned.published
    lora = None
    if order.fused and part.role == order.recipe.adapted:
        lora = _read_lora(planned, order.fused)
    work = Work(part, published, order.snapshot, order.precision, order.device, lora)
    keep = order.settings.keep_source_weights
    place = Route(order.snapshot, order.into, folder, keep, order.progress)
    return stream(place, published.shards[part.role], make_transform(work))


def _read_lora(planned: Plan, steps: int) -> dict[str, torch.Tensor]:
    """Fetch a Lightning LoRA, check that it fits, and return it in canonical form in bf16."""
    order, adapted = planned.order, planned.order.recipe.adapted
    shards = planned.published.shards[adapted]
    snapshot, filename = order.lightning[steps]
    file, into = find_file(snapshot, filename), _find_loras_folder(order, snapshot)
    modules, config_file = headers.list_modules(shards), find_config(snapshot, file)
    config = None if config_file is None else snapshot.read_file(config_file)
    for attempt in range(OPEN_TRIES):
        proven = snapshot.fetch_file(file, into, order.progress)
        try:
            tensors_read = lora_file.read(proven.path, modules, config)
            break
        except FileNotFoundError:  # another worker of the volume deleted it after reading it
            if attempt + 1 == OPEN_TRIES:
                raise
    state = {name: cast_to_bf16(t) for name, t in tensors_read.items()}
    check_lora(state, shards, order.recipe.reached(planned.published.configs[adapted]))
    if proven.disposable and not order.settings.keep_source_weights:
        proven.path.unlink(missing_ok=True)
    return state


def _find_loras_folder(order: Order, snapshot: Snapshot) -> Path:
    """Return the folder for a LoRA's files: another repository has its own."""
    if snapshot.repository == order.snapshot.repository:
        return order.into
    return order.into / f"{snapshot.repository.replace('/', '--')}-{snapshot.commit}"


def _find_folder(order: Order, component: Planned) -> Path:
    return order.home / layout.COMPONENTS / component.identity


def _make_manifest(planned: Plan) -> Bundle:
    order, lightning = planned.order, {}
    for steps, (snapshot, filename) in order.lightning.items():
        if order.fused in (None, steps):
            lightning[steps] = LoraRecord(
                repository=snapshot.repository,
                filename=filename,
                digest=snapshot.digest(find_file(snapshot, filename)),
                scale=planned.scales[steps],
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
        lightning=lightning,
        offered={
            steps: file.filename
            for steps, file in order.spec.lightning.items()
            if file.repository is None
        },
        components={one.role: one.identity for one in planned.components},
        libraries=layout.list_libraries(),
        facts=dict(planned.published.facts),
        lightning_place=order.spec.lightning_place,
        replaced=order.spec.transformer,
    )


def _sweep_unnamed(folder: Path) -> None:
    """Delete old files that a published component does not name: those of a killed run."""
    named_files = {layout.MANIFEST, *layout.read_component(folder).files}
    for path in folder.iterdir():
        with suppress(OSError):
            if path.name not in named_files and time.time() - path.stat().st_mtime > UNNAMED_S:
                path.unlink()


def _write(folder: Path, name: str, data: bytes) -> FileRecord:
    part = temporary.make_path(folder / name)
    part.write_bytes(data)
    temporary.publish(part, folder / name)
    return FileRecord(size=len(data), sha256=hashlib.sha256(data).hexdigest())


def _name_device(device: torch.device) -> str:
    """Name the kind of device: the last bit of rows may depend on it."""
    if device.type != "cuda":
        return device.type
    return f"cuda {'.'.join(map(str, torch.cuda.get_device_capability(device)))}"
