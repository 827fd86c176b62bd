"""From a model's row to the open model: obtain its bundle, offer it, open it, repair it once."""

import sys
import time
from collections.abc import Callable, Container
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final, Generic, Literal, Protocol, TypeVar

import torch

from worker import log
from worker.bundle import repair
from worker.bundle.kept_graphs import KeptGraphs, digest_sources
from worker.bundle.layout import Bundle, Damaged
from worker.bundle.obtain import Obtained, obtain
from worker.bundle.open import Shared, make_shared
from worker.bundle.recipe import Recipe
from worker.driver import Gpu
from worker.engine import artifacts
from worker.engine import device as devices
from worker.errors import CudaOutOfMemory, UnfitHost
from worker.families import catalogue
from worker.seam import Model, Openable, Served
from worker.settings import Settings
from worker.weights.spec import ModelSpec

# parts that several open models have in common
SHARED: Final = make_shared()

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class OpenBundle(Protocol[T_co]):
    """How a family opens a bundle's folder."""

    def __call__(
        self,
        folder: Path,
        device: torch.device,
        *,
        verify: Literal["sizes", "full"],
        waiting: torch.device | None,
        share: Shared,
        compiled_batch: int,
        spare: int | None,
    ) -> T_co:
        """Return the open parts; the one that may wait is on `waiting`, else on `device`.

        `compiled_batch` is the most rows that a batch may have in what is compiled for the device,
        0 where nothing is. `spare` is the bytes of the device's memory that weights and jobs leave
        for a second copy of weights with a LoRA in them, None where LoRAs stay beside them.
        Raises Damaged, LoraNotApplied, and the device's own errors.
        """


class Describe(Protocol):
    """How a family describes what callers may ask of a model."""

    def __call__(
        self,
        spec: ModelSpec,
        settings: Settings,
        *,
        revision: str,
        precision: str,
        lightning: tuple[int, ...],
        working: Callable[[int], int],
        left: int | None,
    ) -> Served:
        """Return what is served.

        `working` computes the bytes that a job of so many pixels takes beside the weights, which
        leave `left` bytes of the device's memory; None on a CPU.
        """


@dataclass(frozen=True, slots=True)
class Opener(Generic[T]):
    """How the models of one family come to this machine and are opened."""

    recipe: Recipe
    describe: Describe
    open_bundle: OpenBundle[T]
    build: Callable[[T, Served, Bundle, KeptGraphs | None], Model]

    def make_ready(
        self, spec: ModelSpec, settings: Settings, gpu: Gpu | None, *, taken: Container[str] = ()
    ) -> Openable:
        """Bring a model's bundle to this machine and return how to open it.

        `gpu` is None on a CPU. A bundle that calls its model by one of the `taken` names keeps the
        name that MODEL gave it. Raises WeightsUnavailable, VolumeFull, LoraNotApplied,
        InvalidSettings.
        """
        obtained = self._obtain(spec, settings, gpu)
        precision = obtained.bundle.precision
        own = self.recipe.learn(obtained.spec, obtained.bundle.facts)

        def limit(left: int | None) -> Openable:
            served = self.describe(
                replace(own, name=spec.name) if own.name in taken else own,
                settings,
                revision=obtained.bundle.revision,
                precision=precision,
                lightning=obtained.lightning,
                working=partial(
                    self.recipe.compute_working,
                    own,
                    settings,
                    precision,
                    offload=obtained.offload,
                ),
                left=left,
            )
            return Openable(
                served,
                obtained.parts,
                lambda: self._open(spec, obtained, served, settings, gpu),
                obtained.facts,
                limit,
            )

        return limit(gpu.room - sum(obtained.parts.values()) if gpu else None)

    def prepare(self, spec: ModelSpec, settings: Settings, gpu: Gpu | None) -> Path:
        """Bring a model's bundle to this machine and return its folder; raises as `make_ready`."""
        return self._obtain(spec, settings, gpu).folder

    def _obtain(self, spec: ModelSpec, settings: Settings, gpu: Gpu | None) -> Obtained:
        devices.limit_threads(choose_device(gpu))
        return obtain(spec, self.recipe, settings, gpu, catalogue.CATALOGUE)

    def _open(
        self,
        spec: ModelSpec,
        obtained: Obtained,
        served: Served,
        settings: Settings,
        gpu: Gpu | None,
    ) -> Model:
        """Open a bundle; one that is damaged is repaired and opened again, once."""
        start = time.monotonic()
        device = choose_device(gpu)
        rows = choose_compiled_batch(device, settings)
        kept = find_kept_graphs(spec, obtained, settings, device, rows=rows)
        if kept is not None:
            kept.load()
        try:
            parts = self._place(obtained, served, settings, gpu)
        except Damaged as damage:
            repair.start(damage, settings.home)
            obtained = obtain(spec, self.recipe, settings, gpu, catalogue.CATALOGUE, repair=True)
            try:
                parts = self._place(obtained, served, settings, gpu)
            except Damaged as still:
                raise repair.make_error(still) from damage
        repair.finish(obtained.folder, settings.home)
        log.get().info(
            "model open",
            model=served.id,
            precision=served.precision,
            seconds=round(time.monotonic() - start, 2),
        )
        return self.build(parts, served, obtained.bundle, kept)

    def _place(self, obtained: Obtained, served: Served, settings: Settings, gpu: Gpu | None) -> T:
        """Open a bundle on the device; out of memory, again with the waiting part on the host.

        Before that without merging. It is on the host at once where the plan says so. Raises
        Damaged, DeviceLost, LoraNotApplied, UnfitHost.
        """
        host = torch.device("cpu")
        device = choose_device(gpu)
        compiled_batch = choose_compiled_batch(device, settings)
        spare = compute_spare(obtained, served, settings, gpu)
        places = (host,) if obtained.offload else (None, host)
        attempts = [(places[0], spare)] if spare is not None else []
        for waiting, spared in [*attempts, *((place, None) for place in places)]:
            try:
                with devices.translate_errors():
                    return self.open_bundle(
                        obtained.folder,
                        device,
                        verify=settings.verify,
                        waiting=waiting,
                        share=SHARED,
                        compiled_batch=compiled_batch,
                        spare=spared,
                    )
            except CudaOutOfMemory:
                pass  # the failed attempt's tensors live in the exception: leave it before freeing
            devices.free_memory()
            place = {self.recipe.waiting: "cpu" if waiting else "gpu"}
            log.get().warning("out of memory while opening", **place)
        raise UnfitHost(
            f"the GPU has too little memory for the model even with its {self.recipe.waiting_word}"
            " in the host's memory: set PRECISION_MODE=4bit, or choose a pool with more memory"
        )


def choose_device(gpu: Gpu | None) -> torch.device:
    """Return the device that models run on: the GPU where there is one."""
    return torch.device("cuda" if gpu else "cpu")


def choose_compiled_batch(device: torch.device, settings: Settings) -> int:
    """Return the most rows of a batch that models are compiled for; 0: they run as they are.

    Never on a CPU, where a compiled block is 2.3 times slower (measured, 2 cores, torch 2.13).
    """
    return settings.most_in_batch if device.type == "cuda" and settings.compile == "auto" else 0


def find_kept_graphs(
    spec: ModelSpec, obtained: Obtained, settings: Settings, device: torch.device, *, rows: int
) -> KeptGraphs | None:
    """Return what keeps a model's compiled graphs for other starts; None where none are made.

    They are those of the same device, libraries, code, bundle and switches, and for batches of as
    many `rows`.
    """
    if not rows or settings.compile_cache == "off":
        return None
    family = sys.modules[spec.family]
    folders = [Path(str(module.__file__)).parent for module in (artifacts, family)]
    return KeptGraphs(
        settings,
        [
            *artifacts.list_makers(device),
            digest_sources(folders),
            spec.family,
            obtained.folder.name,
            f"lightning {obtained.lightning}, merge {settings.lightning_merge}",
            f"{rows} rows",
        ],
    )


def compute_spare(
    obtained: Obtained, served: Served, settings: Settings, gpu: Gpu | None
) -> int | None:
    """Return the bytes of the GPU that an open model and its largest job leave.

    Nothing where several models are served, and None where no LoRA may be merged.
    """
    if gpu is None or settings.lightning_merge == "off":
        return None
    if len(settings.model) > 1:
        return 0
    return max(0, gpu.room - sum(obtained.parts.values()) - served.working)
