"""Published headers against modules: every tensor once, in its shape, and none too many."""

from collections.abc import Iterator, Mapping, Sequence

from worker.bundle.expected import Expected
from worker.bundle.headers import Shard
from worker.bundle.making import Part
from worker.errors import WeightsUnavailable

# A published name, the file that it is in.
TensorPlace = tuple[str, str]


def list_places(
    part: Part, shards: Sequence[Shard], wanted: Expected
) -> Iterator[tuple[str, TensorPlace]]:
    """Yield every published tensor that is not dropped: its name in our modules, and its place."""
    for shard in shards:
        for name in shard.header:
            target = part.keep(name)
            if target is not None and target not in wanted.dropped:
                yield target, (name, shard.file.path)


def check(part: Part, shards: Sequence[Shard], wanted: Expected) -> None:
    """Compare a part's headers with its modules.

    Raises WeightsUnavailable naming the first tensor that is there twice, too many, missing, or of
    another shape, and how many more there are of its kind.
    """
    found: dict[str, TensorPlace] = {}
    twice: list[str] = []
    for target, (name, path) in list_places(part, shards, wanted):
        if target in found:
            twice.append(f"{name} is in {found[target][1]} and again in {path}")
        found[target] = (name, path)
    unknown = [
        f"{name} of {path} has no place in the model" for name, path in _unknown(found, wanted)
    ]
    published = part.shown(name for shard in shards for name in shard.header)
    missing = [f"{part.role}/ lacks {published(name)}" for name in wanted.kept if name not in found]
    headers = {shard.file.path: shard.header for shard in shards}
    shaped = [
        f"{name} of {path} has the shape {list(entry.shape)}, not {list(wanted.kept[target])}"
        for target, (name, path) in found.items()
        if target in wanted.kept and (entry := headers[path][name]).shape != wanted.kept[target]
    ]
    for faults in (twice, missing, unknown, shaped):
        if faults:
            more = f" (and {len(faults) - 1} more such)" if len(faults) > 1 else ""
            raise WeightsUnavailable(
                f"the weights do not fit {part.role}/config.json: {faults[0]}{more}; the repository"
                " or folder is not whole, or of another model"
            )


def _unknown(found: Mapping[str, TensorPlace], wanted: Expected) -> Iterator[TensorPlace]:
    return (place for target, place in found.items() if target not in wanted.kept)


def drop_unkept(part: Part, shards: Sequence[Shard], wanted: Expected) -> list[Shard]:
    """Return the shards as if what no module keeps were not in them."""
    return [
        Shard(
            shard.file,
            {name: entry for name, entry in shard.header.items() if part.keep(name) in wanted.kept},
        )
        for shard in shards
    ]
