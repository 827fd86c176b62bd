"""Which bundle on MODEL_DIR is the model that was asked for, by what the manifests can show."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from worker.bundle import layout
from worker.bundle.content import Content
from worker.bundle.layout import Bundle
from worker.bundle.stated import digest_scale
from worker.engine.quantise import Precision
from worker.weights.names import MAIN, is_same_repository
from worker.weights.snapshot import LOCAL
from worker.weights.spec import LoraFile, ModelSpec


@dataclass(frozen=True, slots=True)
class Required:
    """What a bundle must have been made of.

    `fused` is the step count of the LoRA that shall be in the weights, `steps` are those whose LoRA
    shall lie beside them or be it. `commits` are those that the revision is known to mean on this
    machine. `folder` is the published folder on this machine, if there is one; with `only_folder`
    nothing else will do, because the operator named it.
    """

    spec: ModelSpec
    fused: int | None
    steps: tuple[int, ...]
    commits: frozenset[str]
    folder: Content | None
    only_folder: bool


def find_matching(home: Path, wanted: Required) -> Iterator[tuple[Path, Bundle]]:
    """Yield the bundles that surely are the model, whole or not, with its LoRAs or without."""
    for folder, held in layout.list_prepared(home):
        if find_mismatch(folder, held, wanted) is None:
            yield folder, held


def find_best(home: Path, wanted: Required, precision: Precision) -> tuple[Path, str | None] | None:
    """Return the bundle to open at a precision: the model, whole, with its LoRAs.

    Where there is none, return the bundle most like it and why it will not do; None when there is
    nothing like it. Raises WeightsUnavailable when the folder cannot be read.
    """
    usable: list[tuple[int, str, Path]] = []
    alike: list[tuple[Path, str]] = []
    for folder, held in layout.list_prepared(home):
        if held.precision != precision:
            continue
        reason = find_mismatch(folder, held, wanted)
        reason = reason or find_missing_lora(held, wanted) or layout.find_fault(folder)
        if reason is None:
            usable.append((len(held.lightning), folder.name, folder))
        elif _is_alike(held, wanted.spec):
            alike.append((folder, reason))
    if usable:
        return min(usable)[2], None
    return alike[0] if alike else None


def find_mismatch(folder: Path, bundle: Bundle, wanted: Required) -> str | None:
    """Say why a bundle is another model; None when it is surely the one that was asked for.

    A repository and a revision are compared with the manifest, a folder's bytes with the digests
    that the components were made of. Raises WeightsUnavailable when the folder cannot be read.
    """
    spec = wanted.spec
    if spec.pipeline and bundle.pipeline != spec.pipeline:
        return f"holds a {bundle.pipeline[:60]}, not a {spec.pipeline}"
    if bundle.revision != LOCAL and not wanted.only_folder:
        return _published_otherwise(folder, bundle, wanted)
    is_claimed = wanted.only_folder or is_same_repository(bundle.repository, spec.repository)
    if wanted.folder is None or not is_claimed:
        return f"was made of a folder, not of {spec.repository}"
    if (fault := layout.find_fault(folder)) is not None:
        return fault
    own = [spec.lightning[n] for n in bundle.lightning if n in spec.lightning]
    other = wanted.folder.find_difference(
        layout.verify(folder), [lora for lora in own if lora.repository is None]
    )
    return f"was made of other files than the folder's ({other})" if other else None


def _published_otherwise(folder: Path, bundle: Bundle, wanted: Required) -> str | None:
    spec = wanted.spec
    if not is_same_repository(bundle.repository, spec.repository):
        return f"is of {bundle.repository}, not of {spec.repository}"
    revision = spec.revision or MAIN
    is_it = bundle.revision in wanted.commits or layout.is_of_revision(folder, bundle, revision)
    return None if is_it else f"is not known to be of the revision {revision}"


def find_missing_lora(bundle: Bundle, wanted: Required) -> str | None:
    """Say which Lightning LoRA of those asked for a bundle has not; None when it has them all."""
    if bundle.fused != wanted.fused:
        return f"has {_in_weights(bundle.fused)} in its weights, not {_in_weights(wanted.fused)}"
    for count in wanted.steps:
        held, asked = bundle.lightning.get(count), wanted.spec.lightning[count]
        if held is None:
            return f"has no Lightning LoRA for {count} steps"
        repository = asked.repository or bundle.repository
        if held.filename != asked.filename or not is_same_repository(held.repository, repository):
            return f"has another Lightning LoRA for {count} steps"
        if held.scale is None and asked.repository is None and not _states_none(asked, wanted):
            return f"may hold the LoRA for {count} steps in another scale than its file states"
    return None


def _states_none(lora: LoraFile, wanted: Required) -> bool:
    """Tell whether a LoRA of the model's own folder surely states no scale beside its tensors.

    0.1.0 did not read one there; the LoRAs of the catalogue's repositories state none.
    """
    return wanted.folder is not None and not digest_scale(wanted.folder.snapshot, lora.filename)


def _in_weights(fused: int | None) -> str:
    return f"the LoRA for {fused} steps" if fused else "no LoRA"


def _is_alike(bundle: Bundle, spec: ModelSpec) -> bool:
    """Tell whether an operator would look for the model in this bundle."""
    names = (spec.name, spec.listing.plain)
    return bundle.model in names or is_same_repository(bundle.repository, spec.repository)
