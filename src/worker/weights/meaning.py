"""What the words of MODEL mean, and what a model is by its own files, given every row."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from worker.errors import InvalidSettings, WeightsUnavailable
from worker.settings import Settings
from worker.weights.apart import drop_doubles, rename_doubles
from worker.weights.checkpoint import ABOUT, BUNDLE_MANIFEST, CONFIG, INDEX, read_class
from worker.weights.instead import Relative, find_instead, find_relative
from worker.weights.names import is_same_repository
from worker.weights.spec import Listing, LoraFile, ModelSpec, Parts, choose_parts

REPOSITORY: Final = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
# huggingface_hub's validate_repo_id: "a--b/c" and "a/b--c" would have one folder in its cache
FORBIDDEN: Final = re.compile(r"--|\.\.")
LIGHTNING_FILE: Final = re.compile(
    r"(?:.*[-_/])?lightning-(\d+)steps?\b.*\.safetensors", re.IGNORECASE
)

# Completes a model of one published class from its worker.json: family, tasks, parts, defaults.
Complete = Callable[[ModelSpec, Mapping[str, Any]], ModelSpec]


def find_checkpoints() -> Path:
    """Return the folder of the embedded models: next to src/ (editable), else the image's."""
    beside = Path(__file__).resolve().parents[3] / "checkpoints"
    return beside if beside.is_dir() else Path("/app/checkpoints")


@dataclass(frozen=True)
class Catalogue:
    """The models that this version knows by name, and the published classes that it can serve.

    `groups` maps a word to the names of several rows. `default` is the word that an empty MODEL
    stands for, `embedded` the one where there is neither a GPU nor RunPod. `forms` say in words
    what a folder of published weights may be. `relatives` are refused by their names.
    """

    rows: tuple[ModelSpec, ...]
    groups: Mapping[str, tuple[str, ...]]
    classes: Mapping[str, Complete]
    forms: tuple[str, ...]
    default: str
    embedded: str
    relatives: tuple[Relative, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Every word of the catalogue that MODEL may contain."""
        return (*(row.name for row in self.rows), *self.groups)

    @property
    def families(self) -> tuple[str, ...]:
        """The modules that open its models, each once."""
        return tuple(dict.fromkeys(row.family for row in self.rows))

    def find_row(self, name: str) -> ModelSpec:
        """Return the row of a name with its listing; raises KeyError."""
        for row in self.rows:
            if row.name == name:
                return replace(row, listing=self.make_listing(row.repository, row.pipeline))
        raise KeyError(name)

    def make_listing(self, repository: str, pipeline: str = "") -> Listing:
        """Return how the catalogue sees a repository, whose class may not be known yet.

        Its plain name is its row's, else its own last part, unless another row has that name.
        """
        copied = find_instead(self.rows, repository, pipeline)
        advice = copied.repository if copied else ""
        for row in self.rows:
            if is_same_repository(repository, row.repository):
                return Listing(row.name, is_row=True, instead=advice)
        name = repository.rpartition("/")[2].lower()
        is_taken = any(name == row.name for row in self.rows)
        return Listing(repository.lower() if is_taken else name, instead=advice)

    def resolve(
        self, models: Sequence[str], settings: Settings, *, has_gpu: bool
    ) -> tuple[ModelSpec, ...]:
        """Turn the words of MODEL into models, in the caller's order and without doubles.

        A word is a catalogue name (a group gives several), a repository "org/name" or
        "org/name@revision", or a local folder. Without words: MODEL_PATH if it is set, else the
        embedded models when there is neither a GPU nor RunPod, else the default model.
        Models that share a name get distinct ones, see `rename_doubles`. Raises
        WeightsUnavailable for a word that means nothing, InvalidSettings when MODEL_REVISION could
        mean more than one model, as LIGHTNING and TRANSFORMER could.
        """
        words = list(models)
        if not words and settings.model_path is not None:
            words = [str(settings.model_path)]
        if not words:
            words = [self.default if has_gpu or settings.on_platform else self.embedded]
        specs = drop_doubles(spec for word in words for spec in self._resolve_word(word))
        published = [spec for spec in specs if spec.folder is None]
        if settings.model_revision is not None:
            if len(published) > 1:
                raise InvalidSettings(
                    "MODEL_REVISION: MODEL names several models; write org/name@revision for each"
                )
            specs = [
                spec
                if spec.folder or spec.revision
                else replace(spec, revision=settings.model_revision)
                for spec in specs
            ]
        if len(specs) > 1 and settings.lightning is not None:
            raise InvalidSettings("LIGHTNING: is for one model, and MODEL names several")
        if len(specs) > 1 and settings.transformer is not None:
            raise InvalidSettings("TRANSFORMER: is for one model, and MODEL names several")
        return tuple(
            replace(choose_parts(spec, settings), is_alone=len(published) <= 1)
            for spec in rename_doubles(specs)
        )

    def describe_folder(self, folder: Path) -> ModelSpec:
        """Describe a local folder: a bundle, or published weights that name their class.

        A folder named like a row, of that row's class, is that model: its Lightning files are
        known. Raises WeightsUnavailable when it is no model of a known family.
        """
        name = folder.resolve().name.lower()
        spec = self._describe_outside(name, folder=folder)
        index = _read_json(folder / INDEX)
        if index is None and (manifest := _read_json(folder / BUNDLE_MANIFEST)):
            return self.complete_by_manifest(spec, manifest)
        if index is None and self.can_serve(config := _read_json(folder / CONFIG) or {}):
            index = config
        if index is None:
            raise WeightsUnavailable(
                "MODEL: the folder has no readable model_index.json; give the folder of a bundle or"
                f" of {' or of '.join(self.forms)}"
            )
        for row in self.rows:
            tail = row.repository.rpartition("/")[2].lower()
            known = row.embedded is None and name in (row.name, tail)
            if known and read_class(index) == row.pipeline:
                return replace(self.find_row(row.name), folder=folder)
        files = [p.relative_to(folder).as_posix() for p in sorted(folder.rglob("*.safetensors"))]
        return self.classify(spec, index, files, _read_json(folder / ABOUT))

    def can_serve(self, description: Mapping[str, Any]) -> bool:
        """Return whether a model_index.json or config.json names a class of a known family."""
        return read_class(description) in self.classes

    def classify(
        self,
        spec: ModelSpec,
        description: Mapping[str, Any],
        files: Sequence[str],
        about: Mapping[str, Any] | None = None,
    ) -> ModelSpec:
        """Complete a model from outside the catalogue from its own files.

        `description` is its model_index.json or, where its family has none, its config.json;
        `files` are the paths of its files, `about` its worker.json, if it has one. Lightning LoRAs
        are taken from its own files, named like "...Lightning-8steps...safetensors". A row is
        returned as it is when the class agrees. Raises WeightsUnavailable when the class is not of
        a known family.
        """
        pipeline = read_class(description)
        if pipeline not in self.classes:
            self._refuse_relative(spec.name, spec.repository, pipeline)
            raise WeightsUnavailable(
                f"MODEL: {spec.name} is a {pipeline[:60] or 'repository without a pipeline class'};"
                f" this worker serves {', '.join(self.classes)}"
            )
        if spec.pipeline == pipeline:
            return spec
        own = {
            int(match[1]): LoraFile(None, name)
            for name in files
            if (match := LIGHTNING_FILE.fullmatch(name))
        }
        known = replace(
            spec,
            pipeline=pipeline,
            lightning=spec.lightning or own,
            listing=self.make_listing(spec.repository, pipeline),
        )
        # what a pipeline's own switches say (is_distilled), and what the model says to this worker
        switches = {key: value for key, value in description.items() if isinstance(value, bool)}
        return self.classes[pipeline](known, {**switches, **(about or {})})

    def complete_by_manifest(self, spec: ModelSpec, manifest: Mapping[str, Any]) -> ModelSpec:
        """Complete a model that is a bundle from the bundle's manifest.

        A bundle of a row's repository is that model, as is one with its name and no repository.
        Raises WeightsUnavailable when the class is not of a known family.
        """
        pipeline = str(manifest.get("pipeline", ""))
        made_of = str(manifest.get("repository", ""))
        for row in self.rows:
            is_row = (
                is_same_repository(made_of, row.repository)
                if made_of
                else manifest.get("model") == row.name
            )
            if is_row and pipeline == row.pipeline:
                return replace(
                    row,
                    repository=spec.repository,
                    revision=spec.revision,
                    folder=spec.folder,
                    embedded=None,
                    is_alone=spec.is_alone,
                    listing=self.make_listing(spec.repository, pipeline),
                    lightning=spec.lightning or row.lightning,
                    lightning_place=spec.lightning_place,
                    transformer=spec.transformer,
                )
        loras = manifest.get("lightning")
        files = [str(lora.get("filename")) for lora in loras.values()] if loras else []
        return self.classify(spec, {"_class_name": pipeline}, files, manifest.get("facts"))

    def _resolve_word(self, word: str) -> tuple[ModelSpec, ...]:
        if word.lower() in self.groups:
            return tuple(_place(self.find_row(name)) for name in self.groups[word.lower()])
        if any(word.lower() == row.name for row in self.rows):
            return (_place(self.find_row(word.lower())),)
        try:
            path = Path(word).expanduser()
        except RuntimeError:  # the home of nobody
            path = Path(word)
        if path.is_absolute() or word.startswith("."):
            return (self.describe_folder(path),)
        repository, _, revision = word.partition("@")
        if REPOSITORY.fullmatch(repository) and not FORBIDDEN.search(repository):
            for row in self.rows:
                if is_same_repository(repository, row.repository):
                    return (_place(replace(self.find_row(row.name), revision=revision or None)),)
            self._refuse_relative(word, repository)
            return (replace(self._describe_outside(repository), revision=revision or None),)
        raise WeightsUnavailable(
            f"MODEL: no model is called {word[:80]!r}; known are {', '.join(self.names)}; a"
            " repository (org/name) and an absolute folder work too"
        )

    def _refuse_relative(self, name: str, repository: str, pipeline: str = "") -> None:
        """Raise WeightsUnavailable for a model that is known and not served."""
        relative = find_relative(self.relatives, repository, pipeline)
        if relative is None:
            return
        raise WeightsUnavailable(
            f"MODEL: {name[:80]} is {relative.name}{f' ({pipeline})' if pipeline else ''}, which"
            f" this worker does not serve; take {relative.instead}"
        )

    def _describe_outside(self, repository: str, folder: Path | None = None) -> ModelSpec:
        """Return a model that no row describes, before its own files are read.

        A folder's name stands for its repository.
        """
        listing = self.make_listing(repository)
        weights = dict.fromkeys(part for row in self.rows for part in row.parts.weights)
        beside = dict.fromkeys(part for row in self.rows for part in row.parts.beside)
        parts = Parts(tuple(weights), tuple(beside))
        return ModelSpec(listing.plain, repository, parts=parts, folder=folder, listing=listing)


def _place(row: ModelSpec) -> ModelSpec:
    """Return the row, with its folder when the model ships with the worker."""
    if row.embedded is None:
        return row
    folder = find_checkpoints() / row.embedded
    if not any((folder / name).is_file() for name in (INDEX, CONFIG)):
        raise WeightsUnavailable(
            f"MODEL: {row.name} ships in checkpoints/, which this installation does not have; take"
            " the project's image or folder, or name another model"
        )
    return replace(row, folder=folder)


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
