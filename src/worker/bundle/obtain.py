"""The bundle of one model, wherever its weights are: found, downloaded or prepared."""

import hashlib
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch

from worker import log
from worker.bundle import choice, layout, match, needs
from worker.bundle.content import Content
from worker.bundle.plan import Order
from worker.bundle.prepare import compute_sizes, prepare
from worker.bundle.recipe import Published, Recipe
from worker.bundle.sizes import WeightSizes
from worker.driver import Gpu
from worker.engine.precision import Choice, Need
from worker.engine.quantise import Precision
from worker.errors import InvalidSettings, WeightsUnavailable
from worker.settings import Settings
from worker.weights import metadata, sources, space, temporary
from worker.weights.download import fetch_snapshot
from worker.weights.meaning import Catalogue
from worker.weights.meter import Meter
from worker.weights.names import MAIN, make_commit_name, make_file_name
from worker.weights.snapshot import Snapshot, find_file, ignore_progress
from worker.weights.sources import WeightSource
from worker.weights.spec import LoraFile, ModelSpec, list_default_steps, list_lightning_steps

DOWNLOADS: Final = "downloads"
NO_BUNDLE: Final = Path("no-bundle")
WORDS_DIGITS: Final = 8  # of the digest of two settings in a bundle's name


@dataclass(frozen=True, slots=True)
class Obtained:
    """A complete bundle on a disk of this machine, and how it was found.

    `lightning` are the step counts to serve, the default first; `parts` maps a component's identity
    to its device bytes; `offload` says whether the part that may wait in the host's memory has
    to; `facts` go into the log and op=health.
    """

    spec: ModelSpec
    folder: Path
    bundle: layout.Bundle
    lightning: tuple[int, ...]
    parts: Mapping[str, int]
    offload: bool
    facts: Mapping[str, Any]


def obtain(
    spec: ModelSpec,
    recipe: Recipe,
    settings: Settings,
    gpu: Gpu | None,
    catalogue: Catalogue,
    *,
    repair: bool = False,
) -> Obtained:
    """Return the bundle to open: the first source that has one, else one prepared from weights.

    `gpu` is None on a CPU. With `repair`, a bundle on MODEL_DIR is prepared again: its intact parts
    are kept, quarantined ones are made again. Raises WeightsUnavailable, VolumeFull,
    LoraNotApplied, InvalidSettings.
    """
    return _Search(spec, recipe, settings, gpu, catalogue).obtain(repair=repair)


class _Search:
    """The search for one model's bundle."""

    def __init__(
        self,
        spec: ModelSpec,
        recipe: Recipe,
        settings: Settings,
        gpu: Gpu | None,
        catalogue: Catalogue,
    ) -> None:
        self._given = spec
        self._spec = spec
        self._recipe = recipe
        self._settings = settings
        self._gpu = gpu
        self._catalogue = catalogue
        self._device = torch.device("cuda" if gpu else "cpu")
        self._lightning: tuple[int, ...] = ()
        self._published: Snapshot | None = None
        self._content: Content | None = None
        self._checked: Published | None = None

    def obtain(self, *, repair: bool) -> Obtained:
        source = self._find()
        if source.bundle and source.folder is not None:
            return self._make_obtained(source.folder, source, None)
        if not self._spec.pipeline and (folder := self._describe(source)):
            return self._make_obtained(folder, source, None)
        self._lightning = list_lightning_steps(self._spec, self._settings)
        chosen = self._choose(source)
        if not repair:
            there = match.find_best(
                self._settings.home, self._make_required(source), chosen.precision
            )
            source = self._find(*(there or ()))
            if source.bundle and source.folder is not None:
                return self._make_obtained(source.folder, source, chosen)
        return self._make_obtained(self._prepare(source, chosen.precision), source, chosen)

    def _find(self, folder: Path = NO_BUNDLE, reason: str | None = None) -> WeightSource:
        """Look in every place; `reason` says why that bundle on MODEL_DIR will not do."""
        return sources.find(
            self._spec,
            self._settings,
            bundle=folder,
            bundle_fault=lambda place: reason if place == folder else layout.find_fault(place),
        )

    def _describe(self, source: WeightSource) -> Path | None:
        """Learn what is in a repository, and return the bundle when it is one.

        What is on MODEL_DIR can show that too, so that no hub is asked.
        """
        if source.folder is None:
            if (folder := self._find_downloaded()) is not None:
                return folder
            if (reason := self._learn(source)) is None:
                return None
            if not self._is_writable:
                raise space.make_unwritable(f" and {reason}")
        snapshot = self._open_snapshot(source)
        self._spec = sources.complete(self._spec, snapshot, self._catalogue)
        if not _is_bundle(snapshot):
            self._published = sources.arrange(snapshot, self._spec, self._settings)
            return None
        if self._spec.lightning_place or self._spec.transformer:
            raise WeightsUnavailable(
                f"{self._spec.repository} is a bundle: LIGHTNING and TRANSFORMER are for published"
                " weights alone"
            )
        return self._download(snapshot)

    def _learn(self, source: WeightSource) -> str | None:
        """Learn what the model is from a usable bundle of it; return why there is none."""
        reason = f"has no bundle of {self._spec.repository}"
        for _, bundle in match.find_matching(self._settings.home, self._make_required(source)):
            try:
                known = self._catalogue.complete_by_manifest(self._spec, bundle.model_dump())
                if bundle.offered and not self._spec.lightning_place:
                    own = {steps: LoraFile(None, name) for steps, name in bundle.offered.items()}
                    known = replace(known, lightning=own)
                list_lightning_steps(known, self._settings)
            except (WeightsUnavailable, InvalidSettings) as error:
                reason = f"has a bundle that will not do ({error.message})"
            else:
                self._spec = known
                return None
        return reason

    def _make_required(self, source: WeightSource) -> match.Required:
        """Return what a bundle on MODEL_DIR must have been made from."""
        spec = self._spec
        is_named = source.kind == "MODEL_PATH" or spec.folder is not None
        commits = {source.commit}
        if not is_named:
            commits.add(metadata.find_known_commit(spec.repository, spec.revision, self._settings))
        return match.Required(
            spec,
            self._fused,
            self._lightning,
            frozenset(commit for commit in commits if commit is not None),
            None if source.folder is None else self._open_content(source),
            only_folder=is_named,
        )

    def _open_snapshot(self, source: WeightSource) -> Snapshot:
        """Return the published files; always the same object, which knows what it has read."""
        if self._published is None:
            self._published = sources.open_snapshot(source, self._spec, self._settings)
        return self._published

    def _open_content(self, source: WeightSource) -> Content:
        if self._content is None:
            self._content = Content(self._open_snapshot(source), self._recipe)
        return self._content

    def _make_name(self, source: WeightSource, chosen: Precision) -> str:
        """Name the bundle that is prepared from a source: different ones never share a name."""
        spec = self._spec
        plain = spec.listing.plain
        if source.folder is not None and source.commit is None:
            loras = [spec.lightning[n] for n in self._lightning]
            own = [lora for lora in loras if lora.repository is None]
            fingerprint = self._open_content(source).make_fingerprint(spec.pipeline, own)
            name = f"{make_file_name(plain)}-{fingerprint}"
        else:
            name = plain if spec.listing.is_row else spec.repository
            name = make_file_name(name, spec.revision or MAIN)
        if spec.lightning_place or spec.transformer:
            words = f"{spec.lightning_place}\n{spec.transformer}"
            name = f"{name}-{hashlib.sha256(words.encode()).hexdigest()[:WORDS_DIGITS]}"
        if self._fused:
            return f"{name}-{chosen}-lightning{self._fused}"
        if set(self._lightning) == set(list_default_steps(spec)):
            return f"{name}-{chosen}"
        return f"{name}-{chosen}-steps{'-'.join(map(str, sorted(self._lightning))) or 0}"

    @cached_property
    def _is_writable(self) -> bool:
        return space.is_writable(self._settings.home)

    @property
    def _fused(self) -> int | None:
        """Return the step count whose LoRA goes into the weights."""
        return self._lightning[0] if self._settings.lightning_fused and self._lightning else None

    def _choose(self, source: WeightSource) -> Choice:
        """Choose the precision; on a GPU from the sizes of the published weights."""
        required = self._make_required(source)
        among = choice.Candidates(self._recipe, self._settings, required, self._is_writable)
        there, need = choice.list_precisions(among), dict[Precision, Need]()
        if self._gpu is not None:
            need = choice.find_needs(
                among,
                there,
                name=self._make_name(source, "bf16"),
                beside=0 if self._fused else len(self._lightning),
                compute=lambda: self._compute_sizes(source),
            )
        return choice.choose(among, there, need, self._gpu)

    def _compute_sizes(self, source: WeightSource) -> Mapping[Precision, WeightSizes]:
        """Compute the sizes at every precision and keep them, so that a later start asks no hub."""
        computed = compute_sizes(self._make_order(source, "bf16"), self._check(source))
        needs.keep(self._settings.home, self._make_name(source, "bf16"), computed)
        return computed

    def _check(self, source: WeightSource) -> Published:
        """Return the published model, checked once."""
        if self._checked is None:
            self._checked = self._recipe.check(self._open_snapshot(source), self._spec)
        return self._checked

    def _make_order(
        self, source: WeightSource, chosen: Precision, progress: Any = ignore_progress
    ) -> Order:
        """Describe what to prepare."""
        spec, settings = self._spec, self._settings
        snapshot = self._open_snapshot(source)
        loras = {
            n: (
                sources.open_lora(spec.lightning[n], snapshot, settings),
                spec.lightning[n].filename,
            )
            for n in self._lightning
        }
        return Order(
            spec=replace(spec, name=spec.listing.plain),
            recipe=self._recipe,
            snapshot=snapshot,
            precision=chosen,
            settings=settings,
            device=self._device,
            home=settings.home,
            into=settings.home / DOWNLOADS / make_commit_name(snapshot.repository, snapshot.commit),
            lightning=loras,
            fused=self._fused,
            progress=progress,
            name=self._make_name(source, chosen),
        )

    def _prepare(self, source: WeightSource, chosen: Precision) -> Path:
        """Prepare the bundle from a source's published weights."""
        home = self._settings.home
        if not self._is_writable:
            raise space.make_unwritable(f" and the bundle of {self._spec.name} must be made again")
        log.get().info("preparing", model=self._spec.name, **source.describe())
        temporary.sweep(home / DOWNLOADS)
        total = sum(_list_weight_sizes(self._open_snapshot(source)))
        meter = (
            Meter(total, self._spec.name) if source.kind == "hub" else nullcontext(ignore_progress)
        )
        with meter as progress:
            order = self._make_order(source, chosen, progress)
            published = self._check(source)
            folder = prepare(order, published)
        needs.keep(home, self._make_name(source, "bf16"), compute_sizes(order, published))
        return folder

    def _find_downloaded(self) -> Path | None:
        """Return a published bundle that was downloaded completely, and learn what it is."""
        spec = self._spec
        commit = metadata.find_known_commit(spec.repository, spec.revision, self._settings)
        if commit is None:
            return None
        folder = self._settings.home / layout.BUNDLES / make_commit_name(spec.repository, commit)
        if layout.find_fault(folder) is not None:
            return None
        self._spec = self._catalogue.complete_by_manifest(
            spec, layout.read_bundle(folder).model_dump()
        )
        return folder

    def _download(self, snapshot: Snapshot) -> Path:
        """Download a published bundle: all its files, its manifest last."""
        name = make_commit_name(snapshot.repository, snapshot.commit)
        into = self._settings.home / layout.BUNDLES / name
        if layout.find_fault(into) is None:
            return into
        manifest = find_file(snapshot, layout.MANIFEST)
        others = [file for file in snapshot.files if file is not manifest]
        with Meter(sum(file.size for file in others), self._spec.name) as meter:
            fetch_snapshot(snapshot, others, into, self._settings, meter)
            fetch_snapshot(snapshot, [manifest], into, self._settings, meter)
        return into

    def _make_obtained(self, folder: Path, source: WeightSource, chosen: Choice | None) -> Obtained:
        found = layout.verify(folder)
        bundle = found.bundle
        spec = self._spec
        if chosen is None:
            spec = self._catalogue.complete_by_manifest(spec, bundle.model_dump())
        if self._given.pipeline:  # callers know the model by MODEL's word for it
            spec = replace(spec, name=self._given.name)
        steps = list_lightning_steps(spec, self._settings)
        offload = chosen.offload if chosen else False
        parts = {
            part.identity: needs.count_device_bytes(part)
            for role, (_, part) in found.parts.items()
            if not (offload and role == self._recipe.waiting)
        }
        reason = chosen.reason if chosen else "the bundle's own"
        return Obtained(
            spec=spec,
            folder=folder,
            bundle=bundle,
            lightning=tuple(n for n in steps if n in bundle.lightning),
            parts=parts,
            offload=offload,
            facts={**source.describe(), "precision": bundle.precision, "reason": reason},
        )


def _is_bundle(snapshot: Snapshot) -> bool:
    return any(file.path == layout.MANIFEST for file in snapshot.files)


def _list_weight_sizes(snapshot: Snapshot) -> list[int]:
    return [file.size for file in snapshot.files if file.path.endswith(".safetensors")]
