"""A cold start: settings -> preflight -> weights -> bundle -> open -> warm models."""

import gc
import importlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from worker import log, preflight
from worker import settings as environment
from worker.bundle import layout as bundle
from worker.errors import InvalidSettings, UnfitHost
from worker.families import catalogue
from worker.families.recognise import recognise
from worker.residency import Residency, limit_together
from worker.seam import Models, Openable
from worker.settings import Settings
from worker.weights.spec import ModelSpec


def import_family(module: str) -> Any:
    """Import one family's module, and torch with it.

    What it consists of is never looked through for garbage: of 7.0 s until tiny-image is warm on
    two cores, that took 1.5, and 0.2 of each gc.collect() later.
    """
    environment.fill_environment()
    if module not in sys.modules:
        gc.disable()
        try:
            importlib.import_module("worker.engine")  # first: it makes all other imports faster
            importlib.import_module(module)
            gc.freeze()
        finally:
            gc.enable()
    return importlib.import_module(module)


def boot(settings: Settings) -> Models:
    """Load the models of this worker from wherever they are, and warm them.

    Raises WorkerError: what is wrong and what to do about it.
    """
    start = time.monotonic()
    gpu = preflight.find_usable_gpu()
    specs = catalogue.CATALOGUE.resolve(settings.model, settings, has_gpu=gpu is not None)
    _warn(specs, settings)
    _check_machine(settings)
    bundle.read_ahead_of([spec.word for spec in specs], settings.home)
    openables: list[Openable] = []
    for given in specs:
        # only now may a bundle show that it is a model of the catalogue, whose name callers know
        taken = {other.name for other in specs if other is not given}
        taken |= {openable.served.id for openable in openables}
        spec = recognise(given, settings, catalogue.CATALOGUE)
        openables.append(import_family(spec.family).make_ready(spec, settings, gpu, taken=taken))
    models = Residency(
        limit_together(openables, gpu.room if gpu else None),
        budget=gpu.room if gpu else None,
        published=_list_published(),
    )
    for model in models.fill():
        begun = time.monotonic()
        model.warm()
        log.get().info(
            "model warm", model=model.served.id, seconds=round(time.monotonic() - begun, 2)
        )
    log.get().info("started", seconds=round(time.monotonic() - start, 2))
    return models


def prepare(settings: Settings) -> list[Path]:
    """Bring the bundles of MODEL's words to this machine and return their folders.

    Raises WorkerError.
    """
    gpu = preflight.find_usable_gpu()
    specs = catalogue.CATALOGUE.resolve(settings.model, settings, has_gpu=gpu is not None)
    known = (recognise(spec, settings, catalogue.CATALOGUE) for spec in specs)
    return [import_family(spec.family).prepare(spec, settings, gpu) for spec in known]


def _list_published() -> dict[str, list[str]]:
    """Return the models of the catalogue that MODEL may name, by the tasks that they can do."""
    tasks = dict.fromkeys(task for row in catalogue.CATALOGUE.rows for task in row.tasks)
    rows = [row for row in catalogue.CATALOGUE.rows if row.embedded is None]
    return {task: [row.name for row in rows if task in row.tasks] for task in tasks}


def _warn(specs: Sequence[ModelSpec], settings: Settings) -> None:
    """Warn of what must not be overlooked, such as an embedded model that was not chosen."""
    if not settings.model and all(spec.embedded for spec in specs):
        log.get().warning(
            "no GPU and no MODEL: serving the small embedded checkpoint, whose pictures are toys"
        )
    if settings.allowed_image_networks:
        networks = [f"{network}:{port}" for network, port in settings.allowed_image_networks]
        log.get().warning("images may be fetched from non-public addresses", networks=networks)


def _check_machine(settings: Settings) -> None:
    """Log what needs attention; raise InvalidSettings where no start can succeed.

    UnfitHost, when only this machine is in the way.
    """
    findings = preflight.check(settings)
    for finding in findings:
        if finding.level != "ok":
            log.get().warning("preflight", **finding.as_json())
    broken = preflight.pick_fatal(findings)
    if broken:
        kind = UnfitHost if all(finding.of_host for finding in broken) else InvalidSettings
        raise kind("; ".join(f"{f.check}: {f.found}; {f.change}" for f in broken))
