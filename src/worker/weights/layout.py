"""Which files of a published repository a model needs, and whether a folder has them all."""

import json
import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Final

from worker.weights.proof import safetensors_fault

INDEX: Final = "model_index.json"
# What a checkpoint tells this worker of itself, where model_index.json has no place for it.
ABOUT: Final = "worker.json"
# A bundle's own description, see bundle/format.py.
MANIFEST: Final = "manifest.json"
LIGHTNING: Final = "lightning"
# The published shards without a variant: "diffusion_pytorch_model.fp16.safetensors" and
# "pytorch_model.bin" are other copies of the same weights.
SHARD: Final = re.compile(r"(?:diffusion_pytorch_)?model(?:-\d{5}-of-\d{5})?\.safetensors")
CONFIGURATION: Final = (".json", ".txt", ".model", ".jinja")
# Endings of weights in forms that this worker does not read -> what they are.
OTHER: Final = (
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


def is_needed(path: str, components: Collection[str]) -> bool:
    """Tell whether a model of these components is built from this file of its repository."""
    folder, _, name = path.rpartition("/")
    if not folder:
        return name in (INDEX, ABOUT)
    if folder == LIGHTNING:
        return name.endswith(".safetensors")
    if folder not in components:
        return False
    return name.endswith(CONFIGURATION) or SHARD.fullmatch(name) is not None


def needed(paths: Iterable[str], components: Collection[str]) -> tuple[str, ...]:
    """Return the files that a model is built from, small ones (configuration) first."""
    found = (path for path in paths if is_needed(path, components))
    return tuple(sorted(found, key=lambda path: (path.endswith(".safetensors"), path)))


def other_weights(paths: Iterable[str], folder: str = "") -> str:
    """Tell in which other form a folder of a repository has weights, as the end of a sentence.

    Empty when it has none. `folder` "" stands for the whole repository.
    """
    names = [path.lower() for path in paths if not folder or path.startswith(f"{folder}/")]
    told = [word for ending, word in OTHER if any(name.endswith(ending) for name in names)]
    if not told:
        return ""
    return (
        f": it has {' and '.join(told)}, and a bundle is made from plain safetensors weights alone"
    )


def fault(folder: Path, with_weights: Sequence[str], copied: Sequence[str]) -> str | None:
    """Say why a folder cannot be opened as a published model; None when it can.

    The components that its index names are there: those `with_weights`, and those `copied`, which
    are small files alone. Looks at names, headers and sizes only: the shards that an index names
    are there, and no safetensors file is cut short. Reads no weights.
    """
    try:
        index = json.loads((folder / INDEX).read_bytes())
    except OSError:
        return f"has no {INDEX}"
    except (ValueError, RecursionError):
        return f"has an unreadable {INDEX}"
    if not isinstance(index, dict):
        return f"has an unreadable {INDEX}"
    try:
        for component in with_weights:
            if component in index and (reason := _weights_fault(folder, component)):
                return reason
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"cannot be read ({type(error).__name__})"
    components = (*with_weights, *copied)
    absent = [c for c in components if c in index and not (folder / c).is_dir()]
    return f"lacks {absent[0]}/" if absent else None


def _weights_fault(folder: Path, component: str) -> str | None:
    if not (folder / component / "config.json").is_file():
        return f"lacks {component}/config.json"
    shards = {path.name for path in (folder / component).glob("*.safetensors")}
    indexes = [
        path
        for path in (folder / component).glob("*.safetensors.index.json")
        if SHARD.fullmatch(path.name.removesuffix(".index.json"))
    ]
    wanted = {name for name in shards if SHARD.fullmatch(name)}
    for path in indexes:
        wanted = set(json.loads(path.read_bytes())["weight_map"].values())
    if not wanted:
        there = (f"{component}/{path.name}" for path in (folder / component).iterdir())
        return f"lacks the weights of {component}/{other_weights(there, component)}"
    for name in sorted(wanted):
        if name not in shards:
            return f"lacks {component}/{name}"
        if reason := safetensors_fault(folder / component / name):
            return f"{component}/{name} has {reason}"
    return None
