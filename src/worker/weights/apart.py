"""The models that MODEL means, each once, under distinct names."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import replace

from worker.weights.names import MAIN, is_same_repository
from worker.weights.spec import ModelSpec


def drop_doubles(specs: Iterable[ModelSpec]) -> list[ModelSpec]:
    """Keep each model once: models of the same repository and revision, or folder, are equal."""
    seen: dict[tuple[str, str | None], ModelSpec] = {}
    for spec in specs:
        key = (
            (spec.repository.casefold(), spec.revision or MAIN)
            if spec.folder is None
            else (str(spec.folder.resolve()), None)
        )
        seen.setdefault(key, spec)
    return list(seen.values())


def rename_doubles(specs: Sequence[ModelSpec]) -> list[ModelSpec]:
    """Give models that share a name distinct ones.

    A model of the catalogue keeps its name. A repository gets its owner's name in front, and
    "@revision" at the end where it occurs more than once; the second of several folders is NAME-2.
    """
    names = {id(spec): _make_name(spec, specs) for spec in specs if _is_published(spec)}
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
    """Return whether a model is known by more than the folder that it is in."""
    return spec.folder is None or spec.embedded is not None


def _make_name(spec: ModelSpec, among: Sequence[ModelSpec]) -> str:
    others = [other for other in among if other is not spec and other.name == spec.name]
    name = spec.repository.lower() if others and not spec.listing.is_row else spec.name
    is_double = any(
        other.folder is None and is_same_repository(other.repository, spec.repository)
        for other in others
    )
    return f"{name}@{spec.revision}" if is_double and spec.revision else name
