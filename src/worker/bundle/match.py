"""Which bundle on MODEL_DIR is the requested model, as far as the manifests can show."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from worker.bundle import layout
from worker.bundle.content import Content
from worker.bundle.declared import SHOWN_CHARACTERS
from worker.bundle.layout import Bundle
from worker.bundle.stated import digest_scale
from worker.engine.quantise import Precision
from worker.weights.names import MAIN, is_same_repository
from worker.weights.snapshot import LOCAL
from worker.weights.sources import find_other_parts
from worker.weights.spec import LoraFile, ModelSpec


@dataclass(frozen=True, slots=True)
class Required:
    """What a bundle must have been made from.

    `fused` is the step count of the LoRA that must be in the weights; `steps` are the counts whose
    LoRA must be there, fused or as a file. `commits` are those that the revision is known on this
    machine to mean. `folder` is the published folder on this machine, if there is one; with
    `only_folder` nothing else will do, because the operator named it.
    """

    spec: ModelSpec
    fused: int | None
    steps: tuple[int, ...]
    commits: frozenset[str]
    folder: Content | None
    only_folder: bool


def find_matching(home: Path, required: Required) -> Iterator[tuple[Path, Bundle]]:
    """Yield the bundles that certainly are the model, complete or not, with its LoRAs or not."""
    for folder, bundle in layout.list_prepared(home):
        if find_mismatch(folder, bundle, required) is None:
            yield folder, bundle


def find_best(
    home: Path, required: Required, precision: Precision
) -> tuple[Path, str | None] | None:
    """Return the bundle to open at a precision: the complete model with its LoRAs.

    Where there is none, return the most similar bundle and why it will not do, or None.
    Raises WeightsUnavailable when the folder cannot be read.
    """
    usable: list[tuple[int, str, Path]] = []
    similar: list[tuple[Path, str]] = []
    for folder, bundle in layout.list_prepared(home):
        if bundle.precision != precision:
            continue
        reason = find_mismatch(folder, bundle, required)
        reason = reason or find_missing_lora(bundle, required) or layout.find_fault(folder)
        if reason is None:
            usable.append((len(bundle.lightning), folder.name, folder))
        elif _is_similar(bundle, required.spec):
            similar.append((folder, reason))
    if usable:
        return min(usable)[2], None
    return similar[0] if similar else None


def find_mismatch(folder: Path, bundle: Bundle, required: Required) -> str | None:
    """Return why a bundle is another model; None when it is certainly the requested one.

    A repository and a revision are compared with the manifest, a folder's bytes with the digests
    of what the components were made from. Raises WeightsUnavailable when the folder cannot be read.
    """
    spec = required.spec
    if spec.pipeline and bundle.pipeline != spec.pipeline:
        return f"holds a {bundle.pipeline[:SHOWN_CHARACTERS]}, not a {spec.pipeline}"
    if (reason := find_other_parts(spec, bundle.model_dump())) is not None:
        return reason
    if bundle.revision != LOCAL and not required.only_folder:
        return _find_published_mismatch(folder, bundle, required)
    is_claimed = required.only_folder or is_same_repository(bundle.repository, spec.repository)
    if required.folder is None or not is_claimed:
        return f"was made of a folder, not of {spec.repository}"
    if (fault := layout.find_fault(folder)) is not None:
        return fault
    own = [spec.lightning[n] for n in bundle.lightning if n in spec.lightning]
    other = required.folder.find_difference(
        layout.verify(folder), [lora for lora in own if lora.repository is None]
    )
    return f"was made of other files than the folder's ({other})" if other else None


def _find_published_mismatch(folder: Path, bundle: Bundle, required: Required) -> str | None:
    spec = required.spec
    if not is_same_repository(bundle.repository, spec.repository):
        return f"is of {bundle.repository}, not of {spec.repository}"
    revision = spec.revision or MAIN
    is_it = bundle.revision in required.commits or layout.is_of_revision(folder, bundle, revision)
    return None if is_it else f"is not known to be of the revision {revision}"


def find_missing_lora(bundle: Bundle, required: Required) -> str | None:
    """Name the requested Lightning LoRA that a bundle lacks; None when it has them all."""
    if bundle.fused != required.fused:
        has, needs = _describe_fused(bundle.fused), _describe_fused(required.fused)
        return f"has {has} in its weights, not {needs}"
    for count in required.steps:
        recorded, requested = bundle.lightning.get(count), required.spec.lightning[count]
        if recorded is None:
            return f"has no Lightning LoRA for {count} steps"
        repository = requested.repository or bundle.repository
        if recorded.filename != requested.filename or not is_same_repository(
            recorded.repository, repository
        ):
            return f"has another Lightning LoRA for {count} steps"
        if (
            recorded.scale is None
            and requested.repository is None
            and not _has_no_scale(requested, required)
        ):
            return f"may hold the LoRA for {count} steps in another scale than its file states"
    return None


def _has_no_scale(lora: LoraFile, required: Required) -> bool:
    """Return whether a LoRA of the model's own folder surely states no scale besides its tensors.

    0.1.0 did not read such a scale; the LoRAs of the catalogue's repositories state none.
    """
    return required.folder is not None and not digest_scale(required.folder.snapshot, lora.filename)


def _describe_fused(fused: int | None) -> str:
    return f"the LoRA for {fused} steps" if fused else "no LoRA"


def _is_similar(bundle: Bundle, spec: ModelSpec) -> bool:
    """Return whether an operator would expect the model in this bundle."""
    names = (spec.name, spec.listing.plain)
    return bundle.model in names or is_same_repository(bundle.repository, spec.repository)
