"""The bundle of one model, wherever its weights are: found, downloaded or prepared."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch

from worker import log
from worker.bundle import format as layout
from worker.bundle.plan import Sizes
from worker.bundle.prepare import Order, prepare, sizes
from worker.driver import Gpu
from worker.engine import precision
from worker.engine.precision import Choice, Need
from worker.engine.quantise import Precision
from worker.errors import InvalidSettings
from worker.settings import Settings
from worker.weights import catalog, sources, temporary
from worker.weights.catalog import ModelSpec
from worker.weights.download import fetch_snapshot
from worker.weights.meter import Meter
from worker.weights.snapshot import Snapshot, named, quiet
from worker.weights.sources import Source

DOWNLOADS: Final = "downloads"
SIZES: Final = "sizes"
NOWHERE: Final = "no-bundle"


@dataclass(frozen=True, slots=True)
class Obtained:
    """A whole bundle on a disk of this machine, and how it came to be used.

    `lightning` are the step counts to serve, the default first; `parts` maps a component's identity
    to its device bytes; `offload` when the text encoder must stay in the host's memory; `facts` go
    into the log and op=health.
    """

    spec: ModelSpec
    folder: Path
    bundle: layout.Bundle
    lightning: tuple[int, ...]
    parts: Mapping[str, int]
    offload: bool
    facts: Mapping[str, Any]


def obtain(spec: ModelSpec, settings: Settings, gpu: Gpu | None, *, mend: bool = False) -> Obtained:
    """Return the bundle to open: the first source that has one, else one prepared from weights.

    `gpu` is None on a CPU. With `mend`, a bundle on MODEL_DIR is prepared again: its whole parts
    are kept, those that were set aside are made anew. Raises WeightsUnavailable, VolumeFull,
    LoraNotApplied, InvalidSettings.
    """
    return _Search(spec, settings, gpu).obtain(mend=mend)


class _Search:
    """One model being obtained."""

    def __init__(self, spec: ModelSpec, settings: Settings, gpu: Gpu | None) -> None:
        self._spec = spec
        self._settings = settings
        self._gpu = gpu
        self._device = torch.device("cuda" if gpu else "cpu")
        self._lightning: tuple[int, ...] = ()

    def obtain(self, *, mend: bool) -> Obtained:
        source = self._found(Path(NOWHERE))
        if source.bundle and source.folder is not None:
            return self._obtained(source.folder, source, None)
        if not self._spec.pipeline:
            self._remember()
        if not self._spec.pipeline:
            snapshot = sources.snapshot_of(source, self._spec, self._settings)
            self._spec = sources.described(self._spec, snapshot)
            if _is_bundle(snapshot):
                return self._obtained(self._downloaded(snapshot), source, None)
        self._lightning = catalog.lightning_steps(self._spec, self._settings)
        choice = self._choice(source)
        folder = self._folder(choice.precision)
        # The embedded checkpoint changes with the worker: preparing again compares its digests.
        if not mend and self._spec.embedded is None:
            source = self._found(folder)
            if source.bundle and source.folder is not None:
                return self._obtained(source.folder, source, choice)
        return self._obtained(self._prepared(source, choice), source, choice)

    def _found(self, folder: Path) -> Source:
        return sources.find(
            self._spec, self._settings, bundle=folder, bundle_fault=self._bundle_fault
        )

    def _bundle_fault(self, folder: Path) -> str | None:
        """Say why a folder is no bundle that can serve this model; None when it is one."""
        if (reason := layout.fault(folder)) is not None:
            return reason
        held = layout.read_bundle(folder)
        missing = [n for n in self._lightning if n not in held.lightning]
        if missing:
            return f"has no Lightning LoRA for {missing[0]} steps"
        # 0.1.0 did not read a LoRA's scale from metadata; those of the catalogue state none.
        own = [n for n in self._lightning if self._spec.lightning[n].repository is None]
        if any(held.lightning[n].scale is None for n in own):
            return "may hold a LoRA in another scale than its file states"
        return None

    def _remember(self) -> None:
        """Learn what the model is from a bundle of it that serves, so that no hub is asked."""
        for folder in layout.bundles_of(self._model, self._settings.home):
            with suppress(layout.Damaged, OSError, InvalidSettings):
                held = layout.read_bundle(folder)
                known = catalog.of_manifest(self._spec, held.model_dump())
                catalog.lightning_steps(known, self._settings)
                self._spec = known
                return

    @property
    def _model(self) -> str:
        """Return what bundles of this model are named by."""
        spec = self._spec
        return f"{spec.name}@{spec.revision}" if spec.revision else spec.name

    def _folder(self, chosen: Precision) -> Path:
        """Return where this worker keeps the bundle of a precision."""
        name = layout.bundle_name(self._model, chosen, self._fused)
        return self._settings.home / layout.BUNDLES / name

    @property
    def _fused(self) -> int | None:
        """Return the step count whose LoRA shall be in the weights."""
        return self._lightning[0] if self._settings.lightning_fused and self._lightning else None

    def _choice(self, source: Source) -> Choice:
        """Choose the precision; on a GPU from the sizes of the published weights."""
        need: Mapping[Precision, Need] = {}
        if self._gpu is not None:
            need = {
                chosen: Need(size.memory, size.memory - size.text_encoder)
                for chosen, size in self._sizes(source).items()
            }
        choice = precision.choose(
            self._settings.precision_mode,
            need,
            free=self._gpu.free if self._gpu else None,
            capability=self._gpu.capability if self._gpu else None,
        )
        log.get().info(
            "precision chosen",
            model=self._spec.name,
            precision=choice.precision,
            reason=choice.reason,
        )
        return choice

    def _sizes(self, source: Source) -> Mapping[Precision, Sizes]:
        """Return the sizes at every precision, remembered so that a later start asks no hub."""
        beside = 0 if self._fused else len(self._lightning)
        name = f"{self._folder('bf16').name}-{beside}.json"
        kept = self._settings.home / SIZES / name
        with suppress(OSError, ValueError, TypeError):
            known = json.loads(kept.read_bytes())
            return {chosen: Sizes(**size) for chosen, size in known.items()}
        snapshot = sources.snapshot_of(source, self._spec, self._settings)
        computed = sizes(self._order(snapshot, "bf16"))
        with suppress(OSError):  # it only saves the next start a question
            kept.parent.mkdir(parents=True, exist_ok=True)
            part = temporary.unique(kept)
            part.write_text(json.dumps({name: asdict(size) for name, size in computed.items()}))
            temporary.publish(part, kept)
        return computed

    def _order(self, snapshot: Snapshot, chosen: Precision, meter: Any = quiet) -> Order:
        """Describe what to prepare."""
        spec, settings = self._spec, self._settings
        loras = {
            n: (
                sources.lora_of(spec.lightning[n], snapshot, settings),
                spec.lightning[n].filename,
            )
            for n in self._lightning
        }
        return Order(
            spec=spec,
            snapshot=snapshot,
            precision=chosen,
            settings=settings,
            device=self._device,
            home=settings.home,
            into=self._into(snapshot),
            lightning=loras,
            fused=self._fused,
            progress=meter,
        )

    def _into(self, snapshot: Snapshot) -> Path:
        name = f"{snapshot.repository.replace('/', '--')}-{snapshot.commit}"
        return self._settings.home / DOWNLOADS / name

    def _prepared(self, source: Source, choice: Choice) -> Path:
        """Prepare the bundle from a source's published weights."""
        log.get().info("preparing", model=self._spec.name, **source.facts())
        temporary.sweep(self._settings.home / DOWNLOADS)
        snapshot = sources.snapshot_of(source, self._spec, self._settings)
        if source.kind != "hub":
            return prepare(self._order(snapshot, choice.precision))
        with Meter(sum(_weight_sizes(snapshot)), self._spec.name) as meter:
            return prepare(self._order(snapshot, choice.precision, meter))

    def _downloaded(self, snapshot: Snapshot) -> Path:
        """Download a published bundle: all its files, and its manifest as the last of them."""
        into = self._settings.home / layout.BUNDLES / self._into(snapshot).name
        if layout.fault(into) is None:
            return into
        manifest = named(snapshot, layout.MANIFEST)
        others = [file for file in snapshot.files if file is not manifest]
        with Meter(sum(file.size for file in others), self._spec.name) as meter:
            fetch_snapshot(snapshot, others, into, self._settings, meter)
            fetch_snapshot(snapshot, [manifest], into, self._settings, meter)
        return into

    def _obtained(self, folder: Path, source: Source, choice: Choice | None) -> Obtained:
        found = layout.verify(folder)
        held = found.bundle
        spec = self._spec
        if not spec.pipeline or choice is None:
            spec = catalog.of_manifest(spec, held.model_dump())
        wanted = catalog.lightning_steps(spec, self._settings)
        parts = {
            part.identity: sum(
                record.size
                for name, record in part.files.items()
                if not name.startswith(layout.ROWS)
            )
            for _, part in found.parts.values()
        }
        reason = choice.reason if choice else "the bundle's own"
        return Obtained(
            spec=spec,
            folder=folder,
            bundle=held,
            lightning=tuple(n for n in wanted if n in held.lightning),
            parts=parts,
            offload=choice.offload if choice else False,
            facts={**source.facts(), "precision": held.precision, "reason": reason},
        )


def _is_bundle(snapshot: Snapshot) -> bool:
    return any(file.path == layout.MANIFEST for file in snapshot.files)


def _weight_sizes(snapshot: Snapshot) -> list[int]:
    return [file.size for file in snapshot.files if file.path.endswith(".safetensors")]
