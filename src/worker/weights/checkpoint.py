"""Which files of a published repository a model needs, and whether a folder has them all."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from worker.weights import proof
from worker.weights.spec import Parts

INDEX: Final = "model_index.json"
# The description of a model that is published as one part, in its repository's root.
CONFIG: Final = "config.json"
ROOT: Final = ""
# What a checkpoint says to this worker about itself: model_index.json has no place for it.
ABOUT: Final = "worker.json"
# A bundle's own description, see bundle/layout.py.
BUNDLE_MANIFEST: Final = "manifest.json"
LIGHTNING_FOLDER: Final = "lightning"
# The published shards without a variant: "diffusion_pytorch_model.fp16.safetensors" and
# "pytorch_model.bin" are other copies of the same weights.
SHARD: Final = re.compile(r"(?:diffusion_pytorch_)?model(?:-\d{5}-of-\d{5})?\.safetensors")
SMALL_ENDINGS: Final = (".json", ".txt", ".model", ".jinja")
# Endings of weights in forms that this worker does not read -> their names.
OTHER_FORMS: Final = (
    (".gguf", "GGUF files, quantised"),
    (".bin", "pickled files (.bin)"),
    (".pt", "pickled files (.pt)"),
    (".pth", "pickled files (.pth)"),
    (".ckpt", "pickled files (.ckpt)"),
    (".msgpack", "Flax's files (.msgpack)"),
    (".h5", "TensorFlow's files (.h5)"),
    (".onnx", "ONNX files"),
    (".safetensors", "safetensors files of another name or variant"),
)


def read_class(description: Mapping[str, Any]) -> str:
    """Return the class that a model_index.json or a config.json names; "" when it names none."""
    if "_class_name" in description:
        return str(description["_class_name"])
    named = description.get("architectures")
    return str(named[0]) if isinstance(named, list) and named else ""


def is_needed(path: str, parts: Sequence[str]) -> bool:
    """Return whether a model of these parts is built from this file of its repository."""
    folder, _, name = path.rpartition("/")
    if not folder:
        return name in (INDEX, ABOUT)
    if folder == LIGHTNING_FOLDER:
        return name.endswith(".safetensors")
    if folder not in parts:
        return False
    return name.endswith(SMALL_ENDINGS) or SHARD.fullmatch(name) is not None


def list_needed(paths: Iterable[str], parts: Sequence[str]) -> tuple[str, ...]:
    """Return the files that a model is built from, small ones (configuration) first."""
    return tuple(
        sorted(
            (p for p in paths if is_needed(p, parts)),
            key=lambda p: (p.endswith(".safetensors"), p),
        )
    )


def describe_other_weights(paths: Iterable[str], folder: str = "") -> str:
    """Say in which other form a folder of a repository has weights, as the end of a sentence.

    Empty when it has none. `folder` "" means the whole repository.
    """
    names = [path.lower() for path in paths if not folder or path.startswith(f"{folder}/")]
    forms = [word for ending, word in OTHER_FORMS if any(name.endswith(ending) for name in names)]
    if not forms:
        return ""
    return (
        f": it has {' and '.join(forms)}, and a bundle is made from plain safetensors weights alone"
    )


def find_description(folder: Path, parts: Parts) -> str:
    """Return the name of the file that names the class of a folder of published weights.

    It is the index of its parts, or the config.json of a model that is one part.
    """
    is_one = ROOT in parts.weights and not (folder / INDEX).is_file()
    return CONFIG if is_one and (folder / CONFIG).is_file() else INDEX


def find_fault(folder: Path, parts: Parts) -> str | None:
    """Return why a folder cannot be opened as a published model of these parts; None when it can.

    Checks names, headers and sizes only: the parts that its description names are there, as are
    the shards that an index names, and no safetensors file is cut short. Reads no weights.
    """
    description = find_description(folder, parts)
    try:
        index = json.loads((folder / description).read_bytes())
    except OSError:
        return f"has no {description}"
    except (ValueError, RecursionError):
        return f"has an unreadable {description}"
    if not isinstance(index, dict):
        return f"has an unreadable {description}"
    if description == CONFIG:
        index = {ROOT: index}
    try:
        for component in parts.weights:
            if component in index and (reason := _find_weights_fault(folder, component)):
                return reason
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"cannot be read ({type(error).__name__})"
    names = (*parts.weights, *parts.beside)
    absent = [name for name in names if name in index and not (folder / name).is_dir()]
    return f"lacks {absent[0]}/" if absent else None


def _find_weights_fault(folder: Path, component: str) -> str | None:
    inside = f"{component}/" if component else ""
    if not (folder / component / CONFIG).is_file():
        return f"lacks {inside}{CONFIG}"
    shards = {path.name for path in (folder / component).glob("*.safetensors")}
    indexes = (
        path
        for path in (folder / component).glob("*.safetensors.index.json")
        if SHARD.fullmatch(path.name.removesuffix(".index.json"))
    )
    if (index := next(indexes, None)) is not None:
        required = set(json.loads(index.read_bytes())["weight_map"].values())
    else:
        required = {name for name in shards if SHARD.fullmatch(name)}
    if not required:
        there = (f"{inside}{path.name}" for path in (folder / component).iterdir())
        what = f"the weights of {inside}" if inside else "its weights"
        return f"lacks {what}{describe_other_weights(there, component)}"
    for name in sorted(required):
        if name not in shards:
            return f"lacks {inside}{name}"
        if reason := proof.find_fault(folder / component / name):
            return f"{inside}{name} has {reason}"
    return None
