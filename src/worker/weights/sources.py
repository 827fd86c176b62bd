"""Where a model's weights may already be, in the order in which they are looked for."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from worker.errors import WeightsUnavailable
from worker.settings import Settings
from worker.weights import catalog, layout, metadata
from worker.weights.catalog import LoraFile, ModelSpec
from worker.weights.instead import instead
from worker.weights.proof import RemoteFile
from worker.weights.snapshot import LocalSnapshot, Snapshot

Kind = Literal["MODEL_DIR", "MODEL_PATH", "RunPod cache", "HF cache", "image", "hub"]

# The image's target `baked` puts one folder a model here, a bundle or published weights.
BAKED: Final = Path("/app/models")

# Says why a folder is no bundle that this worker can open, None when it is one.
BundleFault = Callable[[Path], str | None]


@dataclass(frozen=True, slots=True)
class Source:
    """Where one model's weights come from, and why not from the places before that.

    `folder` is None for the hub. `bundle` tells whether it is a bundle, to be opened as it is, or
    published weights, to be prepared. `passed_over` has no paths: callers may see it.
    """

    kind: Kind
    folder: Path | None
    bundle: bool
    commit: str | None
    passed_over: tuple[tuple[Kind, str], ...]

    def facts(self) -> dict[str, Any]:
        """Return what the log and op=health tell of it."""
        return {
            "source": self.kind,
            "bundle": self.bundle,
            "revision": self.commit,
            "not_used": {kind: reason for kind, reason in self.passed_over},  # noqa: C416 - a dict of pairs
        }


def find(
    spec: ModelSpec,
    settings: Settings,
    *,
    bundle: Path,
    bundle_fault: BundleFault,
    baked: Path = BAKED,
) -> Source:
    """Return the first place that has the model whole: nothing is read but names and headers.

    In this order: the bundle on MODEL_DIR (`bundle` is its folder), MODEL_PATH or the folder that
    MODEL names, RunPod's model cache, Hugging Face's if it is set, the image, the hub. The folders
    of every place but the first may hold a bundle or published weights. Raises WeightsUnavailable
    when a folder that MODEL names cannot be used: another model must not stand in for it.
    """
    passed: list[tuple[Kind, str]] = []
    reason = bundle_fault(bundle) if bundle.is_dir() else "no bundle yet"
    if reason is None:
        return Source("MODEL_DIR", bundle, bundle=True, commit=None, passed_over=())
    passed.append(("MODEL_DIR", reason))
    if spec.folder is not None:
        kind: Kind = "image" if spec.embedded else "MODEL_PATH"
        is_bundle, reason = _examined(spec, spec.folder, bundle_fault)
        if reason is not None:
            raise WeightsUnavailable(f"MODEL: the folder of {spec.name} {reason}")
        return Source(kind, spec.folder, is_bundle, None, tuple(passed))
    for kind, folder, commit in _places(spec, settings, baked):
        if isinstance(folder, str):
            passed.append((kind, folder))
            continue
        is_bundle, reason = _examined(spec, folder, bundle_fault)
        if reason is None:
            return Source(kind, folder, is_bundle, commit, tuple(passed))
        passed.append((kind, reason))
    return Source("hub", None, bundle=False, commit=None, passed_over=tuple(passed))


def snapshot_of(source: Source, spec: ModelSpec, settings: Settings) -> Snapshot:
    """Return the published files of a source; asks the hub only if the source is the hub.

    Raises WeightsUnavailable, HubUnreachable.
    """
    if source.folder is not None:
        return LocalSnapshot(source.folder, spec.repository, source.commit or "local")
    return metadata.resolve(spec.repository, spec.revision, settings)


def lora_of(lora: LoraFile, model: Snapshot, settings: Settings) -> Snapshot:
    """Return the snapshot that holds a LoRA: the model's own, a cache's, or the hub's.

    Raises WeightsUnavailable, HubUnreachable.
    """
    if lora.repository is None:
        return model
    for _, cache in caches(settings):
        folder, commit = cached(lora.repository, None, cache)
        if isinstance(folder, Path) and (folder / lora.filename).is_file():
            return LocalSnapshot(folder, lora.repository, commit or "local")
    return metadata.resolve(lora.repository, None, settings)


def described(spec: ModelSpec, snapshot: Snapshot) -> ModelSpec:
    """Complete a model from outside the catalogue by the files that describe it.

    Raises WeightsUnavailable when it is of no known family.
    """
    if spec.pipeline:
        return spec
    files = {file.path: file for file in snapshot.files}
    described_by = layout.INDEX if layout.INDEX in files else layout.MANIFEST
    if described_by not in files:
        there, row = layout.other_weights(files), instead(spec.repository)
        advice = f"; take {row.repository}" if there and row else ""
        raise WeightsUnavailable(
            f"MODEL: {spec.name} has no {layout.INDEX} and no {layout.MANIFEST}: it is neither a"
            f" diffusers checkpoint nor a bundle{there}{advice}"
        )
    told = _object(spec, snapshot, files[described_by])
    if described_by == layout.MANIFEST:
        return catalog.of_manifest(spec, told)
    about = _object(spec, snapshot, files[layout.ABOUT]) if layout.ABOUT in files else {}
    return catalog.classified(spec, told, tuple(files), about)


def _object(spec: ModelSpec, snapshot: Snapshot, file: RemoteFile) -> dict[str, Any]:
    """Read a JSON object by which a model describes itself."""
    try:
        value = json.loads(snapshot.read_file(file))
    except (ValueError, RecursionError):
        raise WeightsUnavailable(f"MODEL: {spec.name} has a broken {file.path}") from None
    if not isinstance(value, dict):
        raise WeightsUnavailable(f"MODEL: {spec.name} has a {file.path} that is no JSON object")
    return value


def caches(settings: Settings) -> list[tuple[Kind, Path]]:
    """Return the caches in huggingface_hub's layout that are looked into, in their order."""
    places: list[tuple[Kind, Path]] = [("RunPod cache", settings.runpod_cache_dir)]
    if settings.hub_cache not in (None, settings.runpod_cache_dir):
        places.append(("HF cache", settings.hub_cache))
    return places


def cached(
    repository: str, revision: str | None, cache: Path
) -> tuple[Path, str] | tuple[str, None]:
    """Return a repository's folder and commit in a cache, or why there is none.

    The layout is huggingface_hub's: models--ORG--NAME/refs/REVISION names a commit, and
    snapshots/COMMIT has the files.
    """
    wanted = f"models--{repository.replace('/', '--')}".lower()
    try:
        here = [folder for folder in cache.iterdir() if folder.name.lower() == wanted]
    except OSError:
        return "not there", None
    if not here:
        return f"does not hold {repository}", None
    try:
        commit = (here[0] / "refs" / (revision or "main")).read_text().strip()
    except OSError:
        commit = revision or ""
    snapshots = here[0] / "snapshots"
    there = sorted(path.name for path in snapshots.iterdir()) if snapshots.is_dir() else []
    if not commit and len(there) == 1:
        commit = there[0]
    if commit not in there:
        return f"holds no snapshot of {repository} at {revision or 'main'}", None
    return snapshots / commit, commit


def _places(
    spec: ModelSpec, settings: Settings, baked: Path
) -> Iterator[tuple[Kind, Path | str, str | None]]:
    """Yield each place: a folder to look into, or why there is none."""
    if settings.model_path is None:
        yield "MODEL_PATH", "not set", None
    else:
        yield "MODEL_PATH", _below(settings.model_path, spec), None
    for kind, cache in caches(settings):
        yield kind, *cached(spec.repository, spec.revision, cache)
    if spec.revision is not None:
        yield "image", "a revision is asked for", None
    else:
        yield "image", _below(baked, spec), None


def _below(root: Path, spec: ModelSpec) -> Path | str:
    """Return a model's folder in a place for several, or the place itself if it is the model."""
    names = (spec.name, spec.repository.rpartition("/")[2], spec.repository)
    for name in names:
        if (root / name).is_dir():
            return root / name
    if root.is_dir():
        return root
    return "not there"


def _examined(spec: ModelSpec, folder: Path, bundle_fault: BundleFault) -> tuple[bool, str | None]:
    """Return whether a folder is a bundle, and why it cannot be used (None when it can)."""
    if bundle_fault(folder) is None:
        return True, None
    if (reason := layout.fault(folder)) is not None:
        return False, reason
    try:
        found = json.loads((folder / layout.INDEX).read_bytes()).get("_class_name")
    except (OSError, ValueError, AttributeError):
        return False, f"has an unreadable {layout.INDEX}"
    if spec.pipeline and found != spec.pipeline:
        return False, f"holds a {str(found)[:60]}, not a {spec.pipeline}"
    return False, None
