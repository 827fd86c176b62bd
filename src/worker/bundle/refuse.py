"""What is refused in any published model: broken JSON, and weights already quantised."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from worker.bundle import declared, headers, prequantised
from worker.bundle.expected import CONFIGURATION, Expected
from worker.bundle.headers import Shard
from worker.bundle.recipe import Part
from worker.bundle.tensors import Header, UnknownFormat
from worker.errors import WeightsUnavailable
from worker.weights.checkpoint import ABOUT, INDEX
from worker.weights.snapshot import Snapshot, find_file
from worker.weights.spec import ModelSpec


def read_object(snapshot: Snapshot, path: str) -> dict[str, Any]:
    """Read a JSON object of a model; raises WeightsUnavailable naming its file."""
    return declared.read_object(path, snapshot.read_file(find_file(snapshot, path)))


@contextmanager
def name_repository(snapshot: Snapshot) -> Iterator[None]:
    """Let each WeightsUnavailable that is raised inside begin with the name of the repository."""
    try:
        yield
    except WeightsUnavailable as error:
        if error.message.startswith(snapshot.repository):
            raise
        raise WeightsUnavailable(f"{snapshot.repository}: {error.message}") from error


def read_about(snapshot: Snapshot) -> dict[str, Any]:
    """Read what a model declares for this worker in worker.json, which most do not have."""
    if all(file.path != ABOUT for file in snapshot.files):
        return {}
    return read_object(snapshot, ABOUT)


def read_small(snapshot: Snapshot, roles: Iterable[str]) -> dict[str, dict[str, bytes]]:
    """Read the small files of components, by role and name; raises as `read_object` for JSON."""
    small: dict[str, dict[str, bytes]] = {}
    for role in roles:
        small[role] = {}
        for file in headers.list_configuration_files(snapshot, role):
            data = snapshot.read_file(file)
            name = file.path.rpartition("/")[2]
            if name.endswith(".json"):
                declared.read_json(file.path, data)
            small[role][name] = data
    return small


def check_configured(
    index: Mapping[str, Any], configs: Mapping[str, Mapping[str, Any]], spec: ModelSpec
) -> None:
    """Refuse a model that calls itself quantised.

    Raises WeightsUnavailable, which names what to use instead.
    """
    declared = {INDEX: index} | {f"{r}/{CONFIGURATION}": config for r, config in configs.items()}
    for path, config in declared.items():
        if method := prequantised.find_declared(config):
            where = path.rpartition("/")[0]
            raise prequantised.make_refusal(
                f"{where}/" if where else "it", f"{method}, says {path}", spec
            )


def read_shards(snapshot: Snapshot, role: str, spec: ModelSpec, pickle: str = "") -> list[Shard]:
    """Read the headers of a component; refuse, by its name, a format that has no torch.dtype.

    Raises WeightsUnavailable.
    """
    try:
        return headers.read_shards(snapshot, role, pickle)
    except UnknownFormat as error:
        raise prequantised.make_refusal(
            f"{role}/", f"{error.written}, as {error.tensor}", spec
        ) from None


def check_stored(part: Part, found: Sequence[Shard], expected: Expected, spec: ModelSpec) -> None:
    """Refuse other number formats and tensors of quantisers; raises WeightsUnavailable."""
    merged: Header = headers.merge(found)
    kept, beside = [], []
    for name in merged:
        target = part.keep(name)
        if target in expected.kept:
            kept.append(name)
        elif target is not None and target not in expected.dropped:
            beside.append(name)
    if what := prequantised.find_stored(merged, kept, beside):
        raise prequantised.make_refusal(f"{part.role}/", what, spec)
