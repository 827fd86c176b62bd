"""What becomes of every published tensor, and so how many bytes each precision takes."""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from worker.bundle.tensors import Header, UnknownFormat, header
from worker.engine.quantise import Precision, is_quantised, stored_bytes
from worker.errors import WeightsUnavailable
from worker.weights.layout import SHARD, needed, other_weights
from worker.weights.proof import RemoteFile
from worker.weights.snapshot import Snapshot

WITH_WEIGHTS: Final = ("transformer", "text_encoder", "vae")
COPIED: Final = ("tokenizer", "processor", "scheduler")
SMALL: Final = ".safetensors.index.json"
INDEXED: Final = ".index.json"
MODULATION: Final = re.compile(r"transformer_blocks\.(\d+)\.(img_mod|txt_mod)\.1\.(weight|bias)")


@dataclass(frozen=True, slots=True)
class Shard:
    """One published safetensors file and what is in it."""

    file: RemoteFile
    header: Header


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes that one model takes at one precision: its files, and the device memory of its parts.

    `disk` holds the modulation rows, which are mapped and never in device memory as a whole.
    """

    disk: int
    transformer: int
    text_encoder: int
    vae: int
    adapters: int

    @property
    def memory(self) -> int:
        """Return the device memory of all weights."""
        return self.transformer + self.text_encoder + self.vae + self.adapters


def target(role: str, name: str) -> str | None:
    """Return the name that a published tensor has in our modules; None when it is not kept.

    Text encoders are published under the names of transformers 4 ("model.layers", "visual"), whose
    modules have moved since. lm_head is run over every token by the stock model and never used.
    """
    if role != "text_encoder":
        return name
    if name == "lm_head.weight":
        return None
    if name.startswith("visual."):
        return f"model.{name}"
    if name.startswith("model.") and not name.startswith(("model.visual.", "model.language_model")):
        return f"model.language_model.{name.removeprefix('model.')}"
    return name


def names(role: str, published: Iterable[str]) -> Callable[[str], str]:
    """Return what names our tensors as a publisher does, whose own names are `published`."""
    if role != "text_encoder" or not any(
        target(role, name) not in (name, None) for name in published
    ):
        return lambda name: name

    def named(name: str) -> str:
        if name.startswith("model.language_model."):
            return f"model.{name.removeprefix('model.language_model.')}"
        return name.removeprefix("model.") if name.startswith("model.visual.") else name

    return named


def weight_files(snapshot: Snapshot, role: str) -> list[RemoteFile]:
    """Return the shards of a component, in order: those that its index names, if it has one.

    Raises WeightsUnavailable when the index cannot be read or names a file that is not there.
    """
    by_path = {file.path: file for file in snapshot.files}
    there = {
        path.removeprefix(f"{role}/"): by_path[path]
        for path in needed(by_path, (role,))
        if path.startswith(f"{role}/") and path.endswith(".safetensors")
    }
    wanted = sorted(there)
    for path, file in sorted(by_path.items()):
        folder, _, name = path.rpartition("/")
        if folder == role and name.endswith(SMALL) and SHARD.fullmatch(name.removesuffix(INDEXED)):
            wanted = _indexed(snapshot, file)
    for name in wanted:
        if name not in there:
            raise WeightsUnavailable(
                f"{snapshot.repository} lacks {role}/{name}, a shard of its index"
            )
    return [there[name] for name in wanted]


def _indexed(snapshot: Snapshot, file: RemoteFile) -> list[str]:
    """Return the files that a component's index names."""
    try:
        return sorted(
            {str(name) for name in json.loads(snapshot.read_file(file))["weight_map"].values()}
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise WeightsUnavailable(
            f"{snapshot.repository}: {file.path} is no index of shards"
        ) from None


def configuration_files(snapshot: Snapshot, role: str) -> list[RemoteFile]:
    """Return the small files of a component that its modules are built from."""
    by_path = {file.path: file for file in snapshot.files}
    return [
        by_path[path]
        for path in needed(by_path, (role,))
        if path.startswith(f"{role}/") and not path.endswith((".safetensors", SMALL))
    ]


def shards(snapshot: Snapshot, role: str) -> list[Shard]:
    """Read the headers of a component's shards by range.

    Raises WeightsUnavailable when there are none or one cannot be read, UnknownFormat.
    """
    found = []
    for file in weight_files(snapshot, role):
        try:
            held = header(partial(snapshot.read_range, file))
        except UnknownFormat:
            raise
        except ValueError as error:
            raise WeightsUnavailable(
                f"{snapshot.repository}: {file.path} is no readable safetensors file ({error})"
            ) from None
        if (end := max((entry.end for entry in held.values()), default=file.size)) != file.size:
            raise WeightsUnavailable(
                f"{snapshot.repository}: {file.path} has {file.size} bytes instead of {end}"
            )
        found.append(Shard(file, held))
    if not found:
        instead = other_weights((other.path for other in snapshot.files), role)
        raise WeightsUnavailable(f"{snapshot.repository} lacks the weights of {role}/{instead}")
    return found


def merged(found: Sequence[Shard]) -> Header:
    """Return all tensors of a component's shards by their published names."""
    return {name: entry for shard in found for name, entry in shard.header.items()}


def modules(found: Sequence[Shard]) -> frozenset[str]:
    """Return the names of a component's modules that have a weight."""
    names = (name for name in merged(found) if name.endswith(".weight"))
    return frozenset(name.removesuffix(".weight") for name in names)


def stored(role: str, tensors: Header, precision: Precision) -> int:
    """Return the bytes of a component's tensors in the bundle, without modulation rows."""
    total = 0
    for name, entry in tensors.items():
        kept = target(role, name)
        if kept is None or (role == "transformer" and MODULATION.fullmatch(kept)):
            continue
        is_small = is_quantised(role, kept, entry.shape, precision)
        total += (
            stored_bytes(entry.shape, precision)
            if is_small
            else entry.count * (2 if entry.dtype.is_floating_point else entry.dtype.itemsize)
        )
    return total


def row_bytes(transformer: Header, keys: int) -> int:
    """Return the bytes of the modulation rows of `keys` timesteps."""
    widths = [
        entry.shape[0]
        for name, entry in transformer.items()
        if (match := MODULATION.fullmatch(name)) and match[3] == "bias"
    ]
    return 2 * keys * sum(widths)


def sizes(
    parts: Mapping[str, Sequence[Shard]], precision: Precision, *, keys: int, adapters: int
) -> Sizes:
    """Compute what a model takes before anything is prepared.

    `parts` maps transformer, text_encoder and vae to their shards; `keys` timesteps have a row;
    `adapters` bytes of LoRAs stay beside the weights.
    """
    tensors = {role: merged(found) for role, found in parts.items()}
    held = {role: stored(role, entries, precision) for role, entries in tensors.items()}
    return Sizes(
        disk=sum(held.values()) + adapters + row_bytes(tensors["transformer"], keys),
        transformer=held["transformer"],
        text_encoder=held["text_encoder"],
        vae=held["vae"],
        adapters=adapters,
    )
