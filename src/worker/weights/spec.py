"""What a model is as published: where, by whom, of which class, and with which Lightning LoRAs."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from worker.errors import InvalidSettings
from worker.setting_values import STEPS_IN_NAME
from worker.settings import Settings


@dataclass(frozen=True, slots=True)
class LoraFile:
    """One Lightning LoRA: a file of a hub repository, or of the model's own folder (None)."""

    repository: str | None
    filename: str


@dataclass(frozen=True, slots=True)
class Parts:
    """The folders of a published model, in order: those with weights, and the others.

    "" is the repository's root, where a model that is one part has its weights.
    """

    weights: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Another repository that has a part of a model, at a revision; "" is its newest.

    `embedded` is its path below checkpoints/ where it ships with the worker.
    """

    repository: str
    revision: str = ""
    embedded: str | None = None


@dataclass(frozen=True, slots=True)
class Placement:
    """Where one part of a model is that has no folder of its own: files of a repository's root.

    `names` is a regular expression for them. They are in the model's own repository, or `elsewhere`
    unless that has a folder of the part's name.
    """

    role: str
    names: str
    elsewhere: Elsewhere | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """How the catalogue sees a repository.

    `is_row` when it is one of the catalogue's own. `plain` is its model's name when MODEL names no
    other of that name. `instead` is the repository to use where this one cannot be served as it
    is, empty when there is none.
    """

    plain: str = ""
    is_row: bool = False
    instead: str = ""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One model: where it is published and what its family knows before it is opened.

    `name` is what callers call it, distinct among the models of a worker. `pipeline` is the
    class that it is published as (`_class_name` of model_index.json, or the architecture of a
    config.json); it, `family`, `tasks` and `defaults` are empty for a repository outside the
    catalogue until its own files are read. `family` is the module that opens it, `defaults` is
    that family's own frozen value. `lightning` maps a step count to its LoRA. `folder` is set when
    the weights are a local folder, `embedded` is that folder's path below checkpoints/ for a model
    that ships with the worker. `needs_gpu` is False where a CPU serves it in seconds. `is_alone`
    says whether MODEL names no other published model, so that MODEL_PATH must mean this one.
    `is_gated` says whether the hub gives the files to those alone who accepted the licence.
    `lightning_place` and `transformer` are the settings LIGHTNING and TRANSFORMER, "" where they
    are not set. `placements` say where the parts of a model are that has no model_index.json; none
    where each is a folder of its name.
    """

    name: str
    repository: str
    pipeline: str = ""
    family: str = ""
    tasks: tuple[str, ...] = ()
    defaults: Any = None
    licence: str = "unknown"
    lightning: Mapping[int, LoraFile] = field(default_factory=dict)
    parts: Parts = Parts()
    revision: str | None = None
    embedded: str | None = None
    folder: Path | None = None
    needs_gpu: bool = True
    is_gated: bool = False
    is_alone: bool = True
    listing: Listing = Listing()
    lightning_place: str = ""
    transformer: str = ""
    placements: tuple[Placement, ...] = ()

    @property
    def word(self) -> str:
        """What identifies it: "org/name", "org/name@revision", or its name when it is a folder."""
        if self.folder is not None:
            return self.name
        return f"{self.repository}@{self.revision}" if self.revision else self.repository


def choose_parts(spec: ModelSpec, settings: Settings) -> ModelSpec:
    """Return a model with the Lightning LoRA and the transformer that the settings name."""
    lightning, place = spec.lightning, settings.lightning or ""
    if place:
        owner, name, path = place.split("/", 2)
        found = STEPS_IN_NAME.search(path)
        counts: tuple[int, ...] = (8, 4) if found is None else (int(found[1]),)
        if found is None and "lightning_steps" in settings.model_fields_set:
            counts = settings.lightning_steps
        lightning = {n: LoraFile(f"{owner}/{name}", path.replace("{n}", str(n))) for n in counts}
    return replace(
        spec,
        lightning=lightning,
        lightning_place=place,
        transformer=settings.transformer or "",
    )


def list_lightning_steps(spec: ModelSpec, settings: Settings) -> tuple[int, ...]:
    """Return the step counts whose LoRA is loaded, the default first.

    LIGHTNING_STEPS where it was set, else 8 (both for the embedded pair); none when
    USE_LIGHTNING_LORA is off or the model has no Lightning. Raises InvalidSettings for a count
    for which the model has no LoRA.
    """
    if not settings.use_lightning_lora or not spec.lightning:
        return ()
    if "lightning_steps" not in settings.model_fields_set:
        counts = list_default_steps(spec)
        return counts[:1] if settings.lightning_fused else counts
    missing = [n for n in settings.lightning_steps if n not in spec.lightning]
    if missing:
        has = ", ".join(map(str, spec.lightning))
        raise InvalidSettings(
            f"LIGHTNING_STEPS: {spec.name} has no LoRA for {missing[0]} steps, it has {has}"
        )
    return settings.lightning_steps


def list_default_steps(spec: ModelSpec) -> tuple[int, ...]:
    """Return the step counts whose LoRA is loaded by default."""
    counts = tuple(sorted(spec.lightning, reverse=True))
    return counts if spec.embedded else counts[:1]
