"""Which models exist: one table, one row a model; and what the words of MODEL mean."""

import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

from worker.errors import InvalidSettings, WeightsUnavailable
from worker.settings import Settings
from worker.weights.layout import ABOUT, INDEX, MANIFEST
from worker.weights.names import MAIN, same

Task = Literal["text-to-image", "edit"]
Sizes = Mapping[str, tuple[int, int]]

DEFAULT: Final = "qwen-image-edit-2511"
EMBEDDED: Final = "tiny"

# Width and height by aspect ratio, as the model cards of Qwen-Image give them.
PUBLISHED_SIZES: Final[Sizes] = {
    "1:1": (1328, 1328),
    "16:9": (1664, 928),
    "9:16": (928, 1664),
    "4:3": (1472, 1104),
    "3:4": (1104, 1472),
    "3:2": (1584, 1056),
    "2:3": (1056, 1584),
}
TINY_AREA: Final = 96 * 96
TINY_SIZES: Final[Sizes] = {
    "1:1": (96, 96),
    "16:9": (128, 64),
    "9:16": (64, 128),
    "4:3": (112, 80),
    "3:4": (80, 112),
    "3:2": (112, 80),
    "2:3": (80, 112),
}


# What the publisher draws Qwen-Image-2512 with (README of QwenLM/Qwen-Image): low resolution, low
# quality, deformed limbs and fingers, oversaturation, waxen faces, chaos, blurred or warped text.
NEGATIVE_2512: Final = (
    "低分辨率，低画质，肢体畸形，手指畸形，画面过饱和，蜡像感，人脸无细节，过度光滑，画面具有AI感。"  # noqa: RUF001 - the publisher's own
    "构图混乱。文字模糊，扭曲。"  # noqa: RUF001 - the publisher's own
)


@dataclass(frozen=True, slots=True)
class LoraFile:
    """One Lightning LoRA: a file of a hub repository, or of the model's own folder (None)."""

    repository: str | None
    filename: str


@dataclass(frozen=True, slots=True)
class Pipeline:
    """What a pipeline class of the family does: its tasks and how many references it takes."""

    tasks: tuple[Task, ...]
    max_references: int
    steps: int


# diffusers' class name, as model_index.json gives it -> what the model can do.
# QwenImageEditPipeline (the first edition) resizes its one reference to the output's area and puts
# no "Picture 1:" before it; EditPlus (2509 and later) takes up to three.
PIPELINES: Final[Mapping[str, Pipeline]] = {
    "QwenImagePipeline": Pipeline(("text-to-image",), 0, 50),
    "QwenImageEditPipeline": Pipeline(("edit",), 1, 50),
    "QwenImageEditPlusPipeline": Pipeline(("edit",), 3, 40),
}


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One model: where it is published, what it does and its defaults.

    `name` is what callers name it by, different for all models of a worker. `pipeline` is
    diffusers' class name, empty for a repository outside the table until `classified` has read its
    model_index.json. `area` is pixels, `sizes` maps an aspect ratio to (width, height). `lightning`
    maps a step count to its LoRA. `folder` is set when the weights are a local folder, `embedded`
    is that folder's path below checkpoints/ for a model that ships with the worker. `is_alone`
    tells whether MODEL names no other published model, so that MODEL_PATH must mean this one.
    Whether the transformer has zero_cond_t (Edit-2511) is in its config.json, not here.
    """

    name: str
    repository: str
    pipeline: str
    licence: str = "apache-2.0"
    family: str = "qwen_image"
    steps: int = 50
    true_cfg_scale: float = 4.0
    negative_prompt: str = " "
    area: int = 1024 * 1024
    sizes: Sizes = field(default_factory=lambda: PUBLISHED_SIZES)
    lightning: Mapping[int, LoraFile] = field(default_factory=dict)
    revision: str | None = None
    embedded: str | None = None
    folder: Path | None = None
    is_alone: bool = True

    @property
    def word(self) -> str:
        """What identifies it: "org/name", "org/name@revision", or its name when it is a folder."""
        if self.folder is not None:
            return self.name
        return f"{self.repository}@{self.revision}" if self.revision else self.repository

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What it can do."""
        return PIPELINES[self.pipeline].tasks if self.pipeline else ()

    @property
    def max_references(self) -> int:
        """How many reference pictures one job may give."""
        return PIPELINES[self.pipeline].max_references if self.pipeline else 0


def _lightning(repository: str | None, pattern: str) -> Mapping[int, LoraFile]:
    return {n: LoraFile(repository, pattern.format(n=n)) for n in (8, 4)}


TABLE: Final = (
    ModelSpec(
        "qwen-image",
        "Qwen/Qwen-Image",
        "QwenImagePipeline",
        lightning=_lightning(
            "lightx2v/Qwen-Image-Lightning",
            "Qwen-Image-Lightning-{n}steps-V2.0-bf16.safetensors",
        ),
    ),
    ModelSpec(
        "qwen-image-2512",
        "Qwen/Qwen-Image-2512",
        "QwenImagePipeline",
        negative_prompt=NEGATIVE_2512,
        lightning=_lightning(
            "lightx2v/Qwen-Image-2512-Lightning",
            "Qwen-Image-2512-Lightning-{n}steps-V1.0-bf16.safetensors",
        ),
    ),
    ModelSpec(
        "qwen-image-edit",
        "Qwen/Qwen-Image-Edit",
        "QwenImageEditPipeline",
        lightning=_lightning(
            "lightx2v/Qwen-Image-Lightning",
            "Qwen-Image-Edit-Lightning-{n}steps-V1.0-bf16.safetensors",
        ),
    ),
    ModelSpec(
        "qwen-image-edit-2509",
        "Qwen/Qwen-Image-Edit-2509",
        "QwenImageEditPlusPipeline",
        steps=40,
        lightning=_lightning(
            "lightx2v/Qwen-Image-Lightning",
            "Qwen-Image-Edit-2509/Qwen-Image-Edit-2509-Lightning-{n}steps-V1.0-bf16.safetensors",
        ),
    ),
    ModelSpec(
        "qwen-image-edit-2511",
        "Qwen/Qwen-Image-Edit-2511",
        "QwenImageEditPlusPipeline",
        steps=40,
        lightning=_lightning(
            "lightx2v/Qwen-Image-Edit-2511-Lightning",
            "Qwen-Image-Edit-2511-Lightning-{n}steps-V1.0-bf16.safetensors",
        ),
    ),
    ModelSpec(
        "tiny-image",
        "tiny/image",
        "QwenImagePipeline",
        steps=40,
        area=TINY_AREA,
        sizes=TINY_SIZES,
        lightning=_lightning(None, "lightning/tiny-Lightning-{n}steps.safetensors"),
        embedded="tiny/image",
    ),
    ModelSpec(
        "tiny-edit",
        "tiny/edit",
        "QwenImageEditPlusPipeline",
        steps=40,
        area=TINY_AREA,
        sizes=TINY_SIZES,
        lightning=_lightning(None, "lightning/tiny-Lightning-{n}steps.safetensors"),
        embedded="tiny/edit",
    ),
)
GROUPS: Final[Mapping[str, tuple[str, ...]]] = {EMBEDDED: ("tiny-image", "tiny-edit")}

REPOSITORY: Final = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
# huggingface_hub's validate_repo_id: "a--b/c" and "a/b--c" would have one folder in its cache
FORBIDDEN: Final = re.compile(r"--|\.\.")
LIGHTNING_FILE: Final = re.compile(
    r"(?:.*[-_/])?lightning-(\d+)steps?\b.*\.safetensors", re.IGNORECASE
)


def names() -> tuple[str, ...]:
    """Return every word of the catalogue that MODEL may hold."""
    return (*(row.name for row in TABLE), *GROUPS)


def lightning_steps(spec: ModelSpec, settings: Settings) -> tuple[int, ...]:
    """Return the step counts whose LoRA is held, the default first.

    LIGHTNING_STEPS where it was set, else 8 (both for the embedded pair); none when
    USE_LIGHTNING_LORA is off or the model has no Lightning. Raises InvalidSettings for a count
    that the model has no LoRA for.
    """
    if not settings.use_lightning_lora or not spec.lightning:
        return ()
    if "lightning_steps" not in settings.model_fields_set:
        held = default_steps(spec)
        return held[:1] if settings.lightning_fused else held
    missing = [n for n in settings.lightning_steps if n not in spec.lightning]
    if missing:
        held_text = ", ".join(map(str, spec.lightning))
        raise InvalidSettings(
            f"LIGHTNING_STEPS: {spec.name} has no LoRA for {missing[0]} steps, it has {held_text}"
        )
    return settings.lightning_steps


def default_steps(spec: ModelSpec) -> tuple[int, ...]:
    """Return the step counts whose LoRA is held when nobody chooses."""
    held = tuple(sorted(spec.lightning, reverse=True))
    return held if spec.embedded else held[:1]


def resolve(models: Sequence[str], settings: Settings, *, has_gpu: bool) -> tuple[ModelSpec, ...]:
    """Turn the words of MODEL into models, in the caller's order and without doubles.

    A word is a catalogue name (a group gives several), a repository "org/name" or
    "org/name@revision", or a local folder. Without words: MODEL_PATH if it is set, else the
    embedded pair when there is neither a GPU nor RunPod, else the default model.
    Models of one name get names that tell them apart, see `_told_apart`. Raises WeightsUnavailable
    for a word that means nothing, InvalidSettings when MODEL_REVISION could mean more than one
    model.
    """
    words = list(models)
    if not words and settings.model_path is not None:
        words = [str(settings.model_path)]
    if not words:
        words = [DEFAULT if has_gpu or settings.on_platform else EMBEDDED]
    found = _distinct(spec for word in words for spec in _meaning(word))
    published = [spec for spec in found if spec.folder is None]
    if settings.model_revision is not None:
        if len(published) > 1:
            raise InvalidSettings(
                "MODEL_REVISION: MODEL names several models; write org/name@revision for each"
            )
        found = [
            spec
            if spec.folder or spec.revision
            else replace(spec, revision=settings.model_revision)
            for spec in found
        ]
    return tuple(replace(spec, is_alone=len(published) <= 1) for spec in _told_apart(found))


def _distinct(specs: Iterable[ModelSpec]) -> list[ModelSpec]:
    """Drop what is the same model once more: the repository and revision, or the folder."""
    seen: dict[tuple[str, str], ModelSpec] = {}
    for spec in specs:
        key = (
            (spec.repository.casefold(), spec.revision or MAIN)
            if spec.folder is None
            else (str(spec.folder.resolve()), "")
        )
        seen.setdefault(key, spec)
    return list(seen.values())


def _told_apart(specs: Sequence[ModelSpec]) -> list[ModelSpec]:
    """Give models that share a name different ones.

    A model of the table keeps its name. A repository takes its owner's name before its own, and
    "@revision" behind where it is there more than once; of several folders the second is NAME-2.
    """
    names = {id(spec): _published_name(spec, specs) for spec in specs if _is_published(spec)}
    for spec in specs:
        if not _is_published(spec):
            numbered = (f"{spec.name}-{number}" for number in itertools.count(2))
            taken = names.values()
            names[id(spec)] = next(
                name
                for name in (spec.name, *itertools.islice(numbered, len(specs)))
                if name not in taken
            )
    return [replace(spec, name=names[id(spec)]) for spec in specs]


def _is_published(spec: ModelSpec) -> bool:
    """Tell whether a model is known by more than the folder that it lies in."""
    return spec.folder is None or spec.embedded is not None


def _published_name(spec: ModelSpec, among: Sequence[ModelSpec]) -> str:
    others = [other for other in among if other is not spec and other.name == spec.name]
    is_row = any(spec.name == row.name for row in TABLE)
    name = spec.repository.lower() if others and not is_row else spec.name
    is_double = any(
        other.folder is None and same(other.repository, spec.repository) for other in others
    )
    return f"{name}@{spec.revision}" if is_double and spec.revision else name


def _meaning(word: str) -> tuple[ModelSpec, ...]:
    if word.lower() in GROUPS:
        return tuple(
            _placed(row) for name in GROUPS[word.lower()] for row in TABLE if row.name == name
        )
    for row in TABLE:
        if word.lower() == row.name:
            return (_placed(row),)
    path = Path(word).expanduser()
    if path.is_absolute() or word.startswith((".", "~")):
        return (of_folder(path),)
    repository, _, revision = word.partition("@")
    if REPOSITORY.fullmatch(repository) and not FORBIDDEN.search(repository):
        for row in TABLE:
            if same(repository, row.repository):
                return (_placed(replace(row, revision=revision or None)),)
        return (
            ModelSpec(
                plain_name(repository),
                repository,
                pipeline="",
                licence="unknown",
                revision=revision or None,
            ),
        )
    raise WeightsUnavailable(
        f"MODEL: no model is called {word[:80]!r}; known are {', '.join(names())}; a repository"
        " (org/name) and an absolute folder work too"
    )


def plain_name(repository: str) -> str:
    """Return what a repository's model is called when MODEL names no other of that name.

    The table's name of it, else its last part, unless that is the name of another one there.
    """
    for row in TABLE:
        if same(repository, row.repository):
            return row.name
    name = repository.rpartition("/")[2].lower()
    return repository.lower() if any(name == row.name for row in TABLE) else name


def _placed(row: ModelSpec) -> ModelSpec:
    """Return the row, with its folder when the model ships with the worker."""
    if row.embedded is None:
        return row
    folder = checkpoints() / row.embedded
    if not (folder / INDEX).is_file():
        raise WeightsUnavailable(
            f"MODEL: {row.name} ships in checkpoints/, which this installation does not have; take"
            " the project's image or folder, or name another model"
        )
    return replace(row, folder=folder)


def checkpoints() -> Path:
    """Return the folder of the embedded models: beside src/ (editable), else the image's."""
    beside = Path(__file__).resolve().parents[3] / "checkpoints"
    return beside if beside.is_dir() else Path("/app/checkpoints")


def of_folder(folder: Path) -> ModelSpec:
    """Describe a local folder: a bundle, or diffusers' layout with a model_index.json.

    A folder named like a row of the table, with that row's pipeline, is that model: its Lightning
    files are known. Raises WeightsUnavailable when it is no model of a known family.
    """
    name = folder.resolve().name.lower()
    index = _json(folder / INDEX)
    if index is None and (manifest := _json(folder / MANIFEST)):
        bundle = ModelSpec(name, name, pipeline="", licence="unknown", folder=folder)
        return of_manifest(bundle, manifest)
    if index is None:
        raise WeightsUnavailable(
            "MODEL: the folder has no readable model_index.json; give the folder of a bundle or of"
            " a diffusers checkpoint (transformer/, text_encoder/, vae/, tokenizer/, scheduler/)"
        )
    for row in TABLE:
        tail = row.repository.rpartition("/")[2].lower()
        known = row.embedded is None and name in (row.name, tail)
        if known and index.get("_class_name") == row.pipeline:
            return replace(row, folder=folder)
    files = [p.relative_to(folder).as_posix() for p in sorted(folder.rglob("*.safetensors"))]
    spec = ModelSpec(name, name, pipeline="", licence="unknown", folder=folder)
    return classified(spec, index, files, _json(folder / ABOUT))


def classified(
    spec: ModelSpec,
    index: Mapping[str, Any],
    files: Sequence[str],
    about: Mapping[str, Any] | None = None,
) -> ModelSpec:
    """Complete a model from outside the table by its own files.

    `index` is its model_index.json, `files` the paths of its files, `about` its worker.json, if it
    has one ("area", in pixels). Lightning LoRAs are taken from its own files, named like
    "...Lightning-8steps...safetensors". A row of the table is returned as it is when the class
    agrees. Raises WeightsUnavailable when the class is not of a known family.
    """
    pipeline = str(index.get("_class_name", ""))
    if pipeline not in PIPELINES:
        raise WeightsUnavailable(
            f"MODEL: {spec.name} is a {pipeline[:60] or 'repository without a pipeline class'};"
            f" this worker serves {', '.join(PIPELINES)}"
        )
    if spec.pipeline == pipeline:
        return spec
    own = {
        int(match[1]): LoraFile(None, name)
        for name in files
        if (match := LIGHTNING_FILE.fullmatch(name))
    }
    area = (about or {}).get("area")
    return replace(
        spec,
        pipeline=pipeline,
        steps=PIPELINES[pipeline].steps,
        lightning=spec.lightning or own,
        area=area if isinstance(area, int) and area > 0 else spec.area,
        sizes=TINY_SIZES if area == TINY_AREA else spec.sizes,
    )


def of_manifest(spec: ModelSpec, manifest: Mapping[str, Any]) -> ModelSpec:
    """Complete a model that is a bundle by the bundle's manifest.

    A bundle of a row's repository is that model, as is one that has its name and no repository.
    Raises WeightsUnavailable when the class is not of a known family.
    """
    pipeline = str(manifest.get("pipeline", ""))
    made_of = str(manifest.get("repository", ""))
    for row in TABLE:
        is_row = same(made_of, row.repository) if made_of else manifest.get("model") == row.name
        if is_row and pipeline == row.pipeline:
            return replace(
                row,
                repository=spec.repository,
                revision=spec.revision,
                folder=spec.folder,
                embedded=None,
                is_alone=spec.is_alone,
            )
    loras = manifest.get("lightning")
    files = [str(lora.get("filename")) for lora in loras.values()] if loras else []
    return classified(spec, {"_class_name": pipeline}, files, manifest.get("facts"))


def _json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
