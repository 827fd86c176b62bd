"""Published headers against modules: every tensor exactly once and in its shape."""

from collections.abc import Iterator, Mapping, Sequence

from worker.bundle.expected import Expected
from worker.bundle.headers import Shard
from worker.bundle.recipe import Part
from worker.errors import WeightsUnavailable

# A published name and the file that it is in.
TensorPlace = tuple[str, str]


def list_places(
    part: Part, shards: Sequence[Shard], expected: Expected
) -> Iterator[tuple[str, TensorPlace]]:
    """Yield the name in our modules and the place of every published tensor that is not dropped."""
    for shard in shards:
        for name in shard.header:
            target = part.keep(name)
            if target is not None and target not in expected.dropped:
                yield target, (name, shard.file.path)


def check(part: Part, shards: Sequence[Shard], expected: Expected) -> None:
    """Compare a part's headers with its modules.

    Raises WeightsUnavailable naming the first tensor that is duplicate, missing, unknown or of
    another shape, and how many more such faults there are.
    """
    found: dict[str, TensorPlace] = {}
    twice: list[str] = []
    for target, (name, path) in list_places(part, shards, expected):
        if target in found:
            twice.append(f"{name} is in {found[target][1]} and again in {path}")
        found[target] = (name, path)
    unknown = [
        f"{name} of {path} has no place in the model"
        for name, path in _find_unknown(found, expected)
    ]
    published = part.shown(name for shard in shards for name in shard.header)
    missing = [
        f"{part.role}/ lacks {published(name)}" for name in expected.kept if name not in found
    ]
    headers = {shard.file.path: shard.header for shard in shards}
    shaped = [
        f"{name} of {path} has the shape {list(entry.shape)}, not {list(expected.kept[target])}"
        for target, (name, path) in found.items()
        if target in expected.kept and (entry := headers[path][name]).shape != expected.kept[target]
    ]
    for faults in (twice, missing, unknown, shaped):
        if faults:
            more = f" (and {len(faults) - 1} more such)" if len(faults) > 1 else ""
            raise WeightsUnavailable(
                f"the weights do not fit {part.role}/config.json: {faults[0]}{more}; the repository"
                " or folder is incomplete, or of another model"
            )


def _find_unknown(found: Mapping[str, TensorPlace], expected: Expected) -> Iterator[TensorPlace]:
    return (place for target, place in found.items() if target not in expected.kept)


def drop_unkept(part: Part, shards: Sequence[Shard], expected: Expected) -> list[Shard]:
    """Return the shards without the tensors that no module keeps."""
    return [
        Shard(
            shard.file,
            {
                name: entry
                for name, entry in shard.header.items()
                if part.keep(name) in expected.kept
            },
        )
        for shard in shards
    ]
