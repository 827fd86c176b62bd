"""Where a model's weights may already be, in the order in which the places are searched."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from worker.errors import WeightsUnavailable
from worker.settings import Settings
from worker.weights import checkpoint, metadata
from worker.weights.arranged import ArrangedSnapshot, is_inside
from worker.weights.digest_cache import DigestCache
from worker.weights.joined import join
from worker.weights.meaning import Catalogue, find_checkpoints
from worker.weights.names import MAIN, is_same_repository
from worker.weights.proof import RemoteFile
from worker.weights.snapshot import LOCAL, LocalSnapshot, Snapshot
from worker.weights.spec import Elsewhere, LoraFile, ModelSpec

SourceKind = Literal["MODEL_DIR", "MODEL_PATH", "RunPod cache", "HF cache", "image", "hub"]

# The image's target `baked` puts one folder per model here, a bundle or published weights.
BAKED: Final = Path("/app/models")

# Returns why a folder is not a bundle that this worker can open; None when it is.
BundleFault = Callable[[Path], str | None]


@dataclass(frozen=True, slots=True)
class WeightSource:
    """Where one model's weights come from, and why not from an earlier place.

    `folder` is None for the hub. `bundle` says whether it is a bundle, to be opened directly, or
    published weights, to be prepared. `passed_over` has no paths: callers may see it.
    """

    kind: SourceKind
    folder: Path | None
    bundle: bool
    commit: str | None
    passed_over: tuple[tuple[SourceKind, str], ...]

    def describe(self) -> dict[str, Any]:
        """Return what the log and op=health show of it."""
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
) -> WeightSource:
    """Return the first place that has the complete model; only names and headers are read.

    In this order: the bundle on MODEL_DIR (`bundle` is its folder), MODEL_PATH or the folder that
    MODEL names (an embedded model's after the image's bundle of it), RunPod's model cache, Hugging
    Face's if it is set, the image, the hub. The folders of every place but the first may contain a
    bundle or published weights. Where the name of a folder does not show which model it is, a
    bundle's manifest must; published weights cannot.
    Raises WeightsUnavailable when a folder that MODEL names cannot be used: no other model may
    replace it.
    """
    passed: list[tuple[SourceKind, str]] = []
    reason = bundle_fault(bundle) if bundle.is_dir() else "no bundle yet"
    if reason is None:
        return WeightSource("MODEL_DIR", bundle, bundle=True, commit=None, passed_over=())
    passed.append(("MODEL_DIR", reason))
    if spec.folder is not None:
        kind: SourceKind = "image" if spec.embedded else "MODEL_PATH"
        for place in _look_below(baked, spec) if spec.embedded else ():
            if _examine(spec, place, bundle_fault) == (True, None):
                return WeightSource(kind, place.folder, True, None, tuple(passed))
        is_bundle, reason = _examine(spec, _Place(spec.folder, "it"), bundle_fault)
        if reason is not None:
            raise WeightsUnavailable(f"MODEL: the folder of {spec.name} {reason}")
        return WeightSource(kind, spec.folder, is_bundle, None, tuple(passed))
    for kind, places in _list_places(spec, settings, baked):
        if isinstance(places, str):
            passed.append((kind, places))
            continue
        reasons = []
        for place in places:
            is_bundle, reason = _examine(spec, place, bundle_fault)
            if reason is None:
                return WeightSource(kind, place.folder, is_bundle, place.commit, tuple(passed))
            reasons.append(reason)
        passed.append((kind, reasons[0]))
    return WeightSource("hub", None, bundle=False, commit=None, passed_over=tuple(passed))


def open_snapshot(source: WeightSource, spec: ModelSpec, settings: Settings) -> Snapshot:
    """Return the published files of a source; only a source on the hub is requested from it.

    Raises WeightsUnavailable, HubUnreachable.
    """
    if source.folder is not None:
        digests = DigestCache(source.folder, settings.home)
        commit = source.commit or LOCAL
        model: Snapshot = LocalSnapshot(source.folder, spec.repository, commit, digests)
    else:
        model = metadata.resolve(spec.repository, spec.revision, settings)
    if not spec.transformer:
        return arrange(model, spec, settings)
    owner, _, rest = spec.transformer.partition("/")
    name, _, folder = rest.partition("/")
    repository = f"{owner}/{name}"
    other = _open_cached(repository, "", settings) or metadata.resolve(repository, None, settings)
    return join(model, other, folder, spec.parts.weights[0])


def arrange(model: Snapshot, spec: ModelSpec, settings: Settings) -> Snapshot:
    """Return a model's files by its parts, where it has no folder for each; else as they are.

    Raises WeightsUnavailable, HubUnreachable.
    """
    if not spec.placements:
        return model
    others = {
        one.role: _open_elsewhere(one.elsewhere, settings)
        for one in spec.placements
        if one.elsewhere is not None and not is_inside(model, one.role)
    }
    return ArrangedSnapshot(model, others, spec.placements)


def _open_elsewhere(other: Elsewhere, settings: Settings) -> Snapshot:
    """Return the repository of a part: embedded, from a cache at its revision, or the hub's."""
    if other.embedded is not None:
        return LocalSnapshot(find_checkpoints() / other.embedded, other.repository)
    for _, cache in list_caches(settings):
        folder, commit = find_cached(other.repository, other.revision or None, cache)
        if isinstance(folder, Path):
            return LocalSnapshot(folder, other.repository, commit or LOCAL)
    return metadata.resolve(other.repository, other.revision or None, settings)


def open_lora(lora: LoraFile, model: Snapshot, settings: Settings) -> Snapshot:
    """Return the snapshot that has a LoRA: the model's own, a cache's, or the hub's.

    Raises WeightsUnavailable, HubUnreachable.
    """
    if lora.repository is None:
        return model
    cached = _open_cached(lora.repository, lora.filename, settings)
    return cached or metadata.resolve(lora.repository, None, settings)


def _open_cached(repository: str, file: str, settings: Settings) -> Snapshot | None:
    """Return a repository in a cache that has a file of it; "" is its folder. None without one."""
    for _, cache in list_caches(settings):
        folder, commit = find_cached(repository, None, cache)
        if isinstance(folder, Path) and (folder / file).exists():
            return LocalSnapshot(folder, repository, commit or LOCAL)
    return None


def complete(spec: ModelSpec, snapshot: Snapshot, catalogue: Catalogue) -> ModelSpec:
    """Complete a model from outside the catalogue by the files that describe it.

    Raises WeightsUnavailable when it is of no known family.
    """
    if spec.pipeline:
        return spec
    files = {file.path: file for file in snapshot.files}
    of_one_part = (checkpoint.CONFIG,) if checkpoint.ROOT in spec.parts.weights else ()
    known = (checkpoint.INDEX, checkpoint.BUNDLE_MANIFEST, *of_one_part)
    described_by = next((name for name in known if name in files), None)
    if described_by is None:
        there, other = checkpoint.describe_other_weights(files), spec.listing.instead
        advice = f"; take {other}" if there and other else ""
        raise WeightsUnavailable(
            f"MODEL: {spec.name} has no {checkpoint.INDEX} and no {checkpoint.BUNDLE_MANIFEST}: it"
            f" is neither a diffusers checkpoint nor a bundle{there}{advice}"
        )
    description = _read_object(spec, snapshot, files[described_by])
    if described_by == checkpoint.BUNDLE_MANIFEST:
        return catalogue.complete_by_manifest(spec, description)
    about = (
        _read_object(spec, snapshot, files[checkpoint.ABOUT]) if checkpoint.ABOUT in files else {}
    )
    return catalogue.classify(spec, description, tuple(files), about)


def _read_object(spec: ModelSpec, snapshot: Snapshot, file: RemoteFile) -> dict[str, Any]:
    """Read a JSON object by which a model describes itself."""
    try:
        value = json.loads(snapshot.read_file(file))
    except (ValueError, RecursionError):
        raise WeightsUnavailable(f"MODEL: {spec.name} has a broken {file.path}") from None
    if not isinstance(value, dict):
        raise WeightsUnavailable(f"MODEL: {spec.name} has a {file.path} that is not a JSON object")
    return value


def list_caches(settings: Settings) -> list[tuple[SourceKind, Path]]:
    """Return the caches in huggingface_hub's layout that are searched, in order."""
    places: list[tuple[SourceKind, Path]] = [("RunPod cache", settings.runpod_cache_dir)]
    if settings.hub_cache not in (None, settings.runpod_cache_dir):
        places.append(("HF cache", settings.hub_cache))
    return places


def find_cached(
    repository: str, revision: str | None, cache: Path
) -> tuple[Path, str] | tuple[str, None]:
    """Return a repository's folder and commit in a cache, or why there is none.

    The layout is huggingface_hub's: models--ORG--NAME/refs/REVISION names a commit, and
    snapshots/COMMIT has the files.
    """
    if not cache.is_dir():
        return "not there", None
    here = _find_child(cache, f"models--{repository.replace('/', '--')}")
    if here is None:
        return f"does not hold {repository}", None
    try:
        commit = (here / "refs" / (revision or MAIN)).read_text().strip()
    except OSError:
        commit = revision or ""
    snapshots = here / "snapshots"
    there = sorted(path.name for path in snapshots.iterdir()) if snapshots.is_dir() else []
    if not commit and len(there) == 1:
        commit = there[0]
    if commit not in there:
        return f"holds no snapshot of {repository} at {revision or 'main'}", None
    return snapshots / commit, commit


# What a folder's place shows about its model: that it is this repository (org/name, the layout of a
# cache), that it has the name of this row of the catalogue, that the operator means it (MODEL_PATH
# itself), or nothing.
Shown = Literal["it", "called", "meant", "nothing"]


@dataclass(frozen=True, slots=True)
class _Place:
    """A folder to search, and what its place shows."""

    folder: Path
    shown: Shown
    commit: str | None = None


def make_place(spec: ModelSpec) -> Path:
    """Return a model's path in a place for several: the catalogue's name for it, or org/name."""
    is_named = spec.listing.is_row or "/" not in spec.repository
    return Path(spec.name if is_named else spec.repository)


def _list_places(
    spec: ModelSpec, settings: Settings, baked: Path
) -> Iterator[tuple[SourceKind, list[_Place] | str]]:
    """Yield each kind of place with its folders, or why there are none."""
    root = settings.model_path
    if root is None:
        yield "MODEL_PATH", "not set"
    elif not root.is_dir():
        yield "MODEL_PATH", "not there"
    else:
        yield "MODEL_PATH", _look_at(root, spec)
    for kind, cache in list_caches(settings):
        folder, commit = find_cached(spec.repository, spec.revision, cache)
        yield kind, folder if isinstance(folder, str) else [_Place(folder, "it", commit)]
    if baked.is_dir():
        yield "image", _look_below(baked, spec) or f"does not hold {spec.repository}"
    else:
        yield "image", "not there"


def _look_at(root: Path, spec: ModelSpec) -> list[_Place]:
    """Return MODEL_PATH itself when it is a model's folder or empty, else its subfolders."""
    is_model = any(
        (root / name).is_file() for name in (checkpoint.INDEX, checkpoint.BUNDLE_MANIFEST)
    )
    below = [] if is_model else _look_below(root, spec)
    is_named = spec.listing.is_row and any(
        is_same_repository(root.resolve().name, name) for name in _list_names(spec)
    )
    if spec.is_alone:
        return below or [_Place(root, "meant")]
    return below or [_Place(root, "called" if is_named else "nothing")]


def _list_names(spec: ModelSpec) -> tuple[str, str]:
    """Return the names that folders of a model have: its own, and its repository's last part."""
    return spec.name, spec.repository.rpartition("/")[2]


def _look_below(root: Path, spec: ModelSpec) -> list[_Place]:
    """Return the folders in a place for several models that may be this one's."""
    owner, _, name = spec.repository.rpartition("/")
    shown: Shown = "called" if spec.listing.is_row else "nothing"
    own = _find_child(root, owner)
    found: list[tuple[Path | None, Shown]] = [(_find_child(own, name) if own else None, "it")]
    found += [(_find_child(root, folder), shown) for folder in dict.fromkeys(_list_names(spec))]
    return [_Place(folder, shown) for folder, shown in found if folder is not None]


def _find_child(folder: Path, name: str) -> Path | None:
    """Return the subfolder of that name: the exact one, else one in another case."""
    if (folder / name).is_dir():
        return folder / name
    with suppress(OSError):
        for path in sorted(folder.iterdir()):
            if is_same_repository(path.name, name) and path.is_dir():
                return path
    return None


def _find_published_mismatch(spec: ModelSpec, place: _Place) -> str | None:
    """Return why published weights are not used for a model: their files do not name it."""
    if place.shown == "nothing":
        return f"does not say that it is {spec.repository}"
    if place.shown != "meant" and place.commit is None and spec.revision:
        return f"does not say that it is at {spec.revision}"
    return None


def _find_bundle_mismatch(
    spec: ModelSpec, place: _Place, manifest: Mapping[str, Any]
) -> str | None:
    """Return why a bundle is not the requested model; None when it is."""
    made_of = str(manifest.get("repository"))
    is_it = place.shown == "it" or is_same_repository(made_of, spec.repository)
    if not (is_it or (place.shown != "nothing" and "/" not in made_of)):
        return f"is the bundle of {made_of[:100]}, not of {spec.repository}"
    revisions = (manifest.get("asked"), manifest.get("revision"))
    if place.commit is None and spec.revision and spec.revision not in revisions:
        return f"is not known to be at {spec.revision}"
    if (fault := find_other_parts(spec, manifest)) is not None:
        return fault
    pipeline = manifest.get("pipeline")
    if spec.pipeline and pipeline != spec.pipeline:
        return f"holds a {str(pipeline)[:60]}, not a {spec.pipeline}"
    return None


def find_other_parts(spec: ModelSpec, manifest: Mapping[str, Any]) -> str | None:
    """Return why a bundle lacks the parts that LIGHTNING and TRANSFORMER name; None if it has them.

    It was not made for them where its manifest says nothing of them.
    """
    made = str(manifest.get("lightning_place") or "")
    if made != spec.lightning_place:
        return f"was made with LIGHTNING={made[:100]}" if made else "was made without LIGHTNING"
    made = str(manifest.get("replaced") or "")
    if made != spec.transformer:
        return f"was made with TRANSFORMER={made[:100]}" if made else "was made without TRANSFORMER"
    return None


def _examine(spec: ModelSpec, place: _Place, bundle_fault: BundleFault) -> tuple[bool, str | None]:
    """Return whether a folder is a bundle, and why it cannot be used (None when it can)."""
    folder = place.folder
    broken = bundle_fault(folder)
    if broken is None:
        manifest = _read_json(folder / checkpoint.BUNDLE_MANIFEST)
        return True, _find_bundle_mismatch(spec, place, manifest) if manifest else None
    if (reason := checkpoint.find_fault(folder, spec.parts)) is not None:
        is_bundle = (folder / checkpoint.BUNDLE_MANIFEST).is_file()
        return is_bundle, broken if is_bundle else reason
    described_by = checkpoint.find_description(folder, spec.parts)
    found = checkpoint.read_class(_read_json(folder / described_by) or {})
    if spec.pipeline and found != spec.pipeline:
        return False, f"holds a {found[:60] or None}, not a {spec.pipeline}"
    return False, _find_published_mismatch(spec, place)


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
