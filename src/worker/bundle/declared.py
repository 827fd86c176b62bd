"""What the small files of a published model declare, and whether this worker builds that."""

import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from worker.errors import WeightsUnavailable
from worker.weights.checkpoint import INDEX

CLASS_LIBRARIES: Final = ("diffusers", "transformers")
# What a message shows of a published name.
SHOWN_CHARACTERS: Final = 60

# component -> the classes that this worker opens for it
Classes = Mapping[str, tuple[str, ...]]


def read_json(path: str, data: bytes) -> Any:
    """Read a JSON file; raises WeightsUnavailable naming it when it is broken."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise WeightsUnavailable(f"{path} is broken JSON") from None


def read_object(path: str, data: bytes) -> dict[str, Any]:
    """Read a JSON object; raises WeightsUnavailable naming its file for anything else."""
    value = read_json(path, data)
    if not isinstance(value, dict):
        raise WeightsUnavailable(f"{path} is not a JSON object")
    return value


def check_index(index: Mapping[str, Any], pipeline: str, expected: Classes) -> None:
    """Check the classes that model_index.json names for the components of a pipeline.

    A component that it does not name is checked by its own files. Raises WeightsUnavailable.
    """
    if (found := index.get("_class_name")) != pipeline:
        raise WeightsUnavailable(f"{INDEX} is of a {_show_name(found)}, not of a {pipeline}")
    for component, classes in expected.items():
        if component not in index:
            continue
        named = index[component]
        library, kind = named if isinstance(named, list) and len(named) == 2 else (None, named)  # noqa: PLR2004 - library and class
        if kind is None:
            raise WeightsUnavailable(f"{INDEX} names no {component}, which a {pipeline} needs")
        if kind not in classes or library not in CLASS_LIBRARIES:
            raise WeightsUnavailable(
                f"{INDEX} names {_show_name(library)}'s {_show_name(kind)} for {component};"
                f" this worker opens {' or '.join(classes)} alone"
            )


def check_class(path: str, config: Mapping[str, Any], classes: tuple[str, ...]) -> None:
    """Check the class that a component's own configuration names; raises WeightsUnavailable."""
    named = config.get("architectures") or [config.get("_class_name")]
    for kind in named if isinstance(named, list) else [named]:
        if kind is not None and kind not in classes:
            raise WeightsUnavailable(
                f"{path} is of a {_show_name(kind)}; this worker opens {' or '.join(classes)} alone"
            )


def check_type(path: str, config: Mapping[str, Any], expected: str) -> None:
    """Check the model_type of a transformers configuration, if it has one.

    Raises WeightsUnavailable.
    """
    if config.get("model_type", expected) != expected:
        raise WeightsUnavailable(
            f"{path} is of the type {_show_name(config['model_type'])}, not {expected}"
        )


def check_flags(path: str, config: Mapping[str, Any], made: Callable[..., Any]) -> None:
    """Check that every flag that is set is a parameter of `made`, a class of diffusers.

    diffusers ignores what it does not know: numbers that older releases wrote, and switches of
    newer ones, without which it is a different model. Raises WeightsUnavailable for the latter.
    """
    known = inspect.signature(made).parameters
    for name, value in config.items():
        if value is True and name not in known and not name.startswith("_"):
            raise WeightsUnavailable(
                f"{path}: {name[:SHOWN_CHARACTERS]} is set,"
                " which this worker's diffusers does not know"
            )


def _show_name(name: Any) -> str:
    return str(name)[:SHOWN_CHARACTERS] if isinstance(name, str) and name else "nothing"
