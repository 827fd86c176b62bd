"""Which family a repository belongs to, by the class that its own files name; without torch."""

from dataclasses import replace
from pathlib import Path
from typing import Final

from worker.bundle import layout
from worker.bundle.layout import Bundle
from worker.settings import Settings
from worker.weights import metadata, sources
from worker.weights.meaning import Catalogue
from worker.weights.names import is_same_repository, make_commit_name
from worker.weights.spec import ModelSpec

NOWHERE: Final = Path("no-bundle")


def recognise(spec: ModelSpec, settings: Settings, catalogue: Catalogue) -> ModelSpec:
    """Return the model with the module of its family.

    For a repository outside the catalogue, a bundle on MODEL_DIR decides, else the first place that
    has its weights, else the hub, from which the small files that describe it are read. With only
    one family nothing is read. Raises WeightsUnavailable when no family has it, HubUnreachable.
    """
    if spec.family:
        return spec
    if len(catalogue.families) == 1:
        return replace(spec, family=catalogue.families[0])
    if (bundle := _find_bundle(spec, settings)) is not None:
        known = catalogue.complete_by_manifest(spec, bundle.model_dump())
        return replace(spec, family=known.family)
    source = sources.find(spec, settings, bundle=NOWHERE, bundle_fault=layout.find_fault)
    snapshot = sources.open_snapshot(source, spec, settings)
    return replace(spec, family=sources.complete(spec, snapshot, catalogue).family)


def _find_bundle(spec: ModelSpec, settings: Settings) -> Bundle | None:
    """Return a bundle of the repository on MODEL_DIR: one downloaded, or one prepared there."""
    commit = metadata.find_known_commit(spec.repository, spec.revision, settings)
    if commit is not None:
        folder = settings.home / layout.BUNDLES / make_commit_name(spec.repository, commit)
        if layout.find_fault(folder) is None:
            return layout.read_bundle(folder)
    for _, bundle in layout.list_prepared(settings.home):
        if is_same_repository(bundle.repository, spec.repository):
            return bundle
    return None
