"""Which files a component is published as, and which tensors their headers list."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from worker.bundle.pickled import is_pickle, read_pickled_header
from worker.bundle.tensors import Header, UnknownFormat, read_header
from worker.errors import WeightsUnavailable
from worker.weights.checkpoint import SHARD, describe_other_weights, list_needed
from worker.weights.proof import RemoteFile
from worker.weights.snapshot import Snapshot

INDEX_ENDING: Final = ".safetensors.index.json"
INDEX_SUFFIX: Final = ".index.json"


@dataclass(frozen=True, slots=True)
class Shard:
    """One published safetensors file and its header."""

    file: RemoteFile
    header: Header


def list_weight_files(snapshot: Snapshot, role: str, pickle: str = "") -> list[RemoteFile]:
    """Return the shards of a component, in order: those that its index names, if it has one.

    Where there is none, it is the `pickle` of that name, if any. Raises WeightsUnavailable when the
    index cannot be read or names a file that is not there.
    """
    by_path = {file.path: file for file in snapshot.files}
    there = {
        path.removeprefix(f"{role}/"): by_path[path]
        for path in list_needed(by_path, (role,))
        if path.startswith(f"{role}/") and path.endswith(".safetensors")
    }
    names = sorted(there)
    for path, file in sorted(by_path.items()):
        folder, _, name = path.rpartition("/")
        if (
            folder == role
            and name.endswith(INDEX_ENDING)
            and SHARD.fullmatch(name.removesuffix(INDEX_SUFFIX))
        ):
            names = _read_index(snapshot, file)
    for name in names:
        if name not in there:
            raise WeightsUnavailable(
                f"{snapshot.repository} lacks {role}/{name}, a shard of its index"
            )
    if not names and pickle and f"{role}/{pickle}" in by_path:
        return [by_path[f"{role}/{pickle}"]]
    return [there[name] for name in names]


def _read_index(snapshot: Snapshot, file: RemoteFile) -> list[str]:
    """Return the files that a component's index names."""
    try:
        return sorted(
            {str(name) for name in json.loads(snapshot.read_file(file))["weight_map"].values()}
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise WeightsUnavailable(
            f"{snapshot.repository}: {file.path} is not an index of shards"
        ) from None


def list_configuration_files(snapshot: Snapshot, role: str) -> list[RemoteFile]:
    """Return the small files of a component that its modules are built from."""
    by_path = {file.path: file for file in snapshot.files}
    return [
        by_path[path]
        for path in list_needed(by_path, (role,))
        if path.startswith(f"{role}/") and not path.endswith((".safetensors", INDEX_ENDING))
    ]


def read_shards(snapshot: Snapshot, role: str, pickle: str = "") -> list[Shard]:
    """Read the headers of a component's shards by range; a `pickle` is read as a complete file.

    Raises UnknownFormat, and WeightsUnavailable when there is no shard or one cannot be read.
    """
    found = []
    for file in list_weight_files(snapshot, role, pickle):
        if is_pickle(file.path):
            found.append(Shard(file, read_pickled_header(snapshot.read_file(file), file.path)))
            continue
        try:
            contents = read_header(partial(snapshot.read_range, file))
        except UnknownFormat:
            raise
        except ValueError as error:
            raise WeightsUnavailable(
                f"{snapshot.repository}: {file.path} is not a readable safetensors file ({error})"
            ) from None
        if (end := max((entry.end for entry in contents.values()), default=file.size)) != file.size:
            raise WeightsUnavailable(
                f"{snapshot.repository}: {file.path} has {file.size} bytes instead of {end}"
            )
        found.append(Shard(file, contents))
    if not found:
        instead = describe_other_weights((other.path for other in snapshot.files), role)
        raise WeightsUnavailable(f"{snapshot.repository} lacks the weights of {role}/{instead}")
    return found


def merge(found: Sequence[Shard]) -> Header:
    """Return all tensors of a component's shards by their published names."""
    return {name: entry for shard in found for name, entry in shard.header.items()}


def list_modules(found: Sequence[Shard]) -> frozenset[str]:
    """Return the names of a component's modules that have a weight."""
    names = (name for name in merge(found) if name.endswith(".weight"))
    return frozenset(name.removesuffix(".weight") for name in names)
