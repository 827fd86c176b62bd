"""Make a component with weights shard by shard: fetch, transform, write, delete; resumable."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter
from torch import Tensor

from worker import log
from worker.bundle import tensors
from worker.bundle.headers import Shard
from worker.bundle.layout import FileRecord
from worker.bundle.pickled import open_weights
from worker.weights import temporary
from worker.weights.proof import RemoteFile
from worker.weights.snapshot import Proven, ReportProgress, Snapshot

RECEIPT: Final = ".shard-{:05d}.json"
RECORDS: Final = TypeAdapter(dict[str, FileRecord])
# Another worker of the volume may delete a shard between our fetch and our open.
OPEN_TRIES: Final = 3

# A published tensor's name -> the tensor.
ReadTensor = Callable[[str], Tensor]
# What one shard becomes: stem of a file -> its tensors, on the CPU.
Transform = Callable[[Shard, ReadTensor], Mapping[str, Mapping[str, Tensor]]]


class _Stopped(Exception):
    """The component failed: nothing will read the shard being fetched ahead."""


@dataclass(frozen=True, slots=True)
class Route:
    """Where shards come from and go to: `into` is for downloads, `folder` is the component's."""

    snapshot: Snapshot
    into: Path
    folder: Path
    keep: bool
    progress: ReportProgress


def stream(route: Route, shards: Sequence[Shard], transform: Transform) -> dict[str, FileRecord]:
    """Make a component's files from its shards and return their records.

    A shard that has a receipt is done. The next one is fetched while this one is transformed, so at
    most two are on the disk. Memory has what one shard becomes; the shard itself is mapped.
    """
    done = [_read_receipt(route.folder, index) for index in range(len(shards))]
    pending = [shard for shard, records in zip(shards, done, strict=True) if records is None]
    files: dict[str, FileRecord] = {}
    with _fetch_ahead(route, pending) as fetched:
        for index, shard in enumerate(shards):
            records = _read_receipt(
                route.folder, index
            )  # another worker may have made it meanwhile
            if records is None:
                records = _prepare(route, (index, len(shards)), shard, fetched, transform)
            files |= records
    return files


def forget_receipts(folder: Path) -> None:
    """Delete the receipts of a component that is published."""
    for path in folder.glob(".shard-*.json"):
        path.unlink(missing_ok=True)


def _prepare(
    route: Route,
    position: tuple[int, int],
    shard: Shard,
    fetched: Callable[[RemoteFile], Proven],
    transform: Transform,
) -> dict[str, FileRecord]:
    index, count = position
    start = time.monotonic()
    records, proven = _make(route, index, shard, fetched, transform)
    _write_receipt(route.folder, index, records)
    if proven.disposable and not route.keep:
        proven.path.unlink(missing_ok=True)
    log.get().info(
        "shard prepared",
        part=route.folder.name,
        shard=index + 1,
        shards=count,
        seconds=round(time.monotonic() - start, 1),
    )
    return records


def _make(
    route: Route,
    index: int,
    shard: Shard,
    fetched: Callable[[RemoteFile], Proven],
    transform: Transform,
) -> tuple[dict[str, FileRecord], Proven]:
    for attempt in range(OPEN_TRIES):
        proven = fetched(shard.file)
        try:
            with open_weights(proven.path) as read:
                made = transform(shard, read)
                records = {}
                for stem, state in made.items():
                    if state:
                        name, record = tensors.write(route.folder, f"{stem}-{index:05d}", state)
                        records[name] = record
                return records, proven
        except FileNotFoundError:
            if attempt + 1 == OPEN_TRIES or proven.path.exists():
                raise
    raise AssertionError("the last attempt returns or raises")


@contextmanager
def _fetch_ahead(
    route: Route, pending: Sequence[Shard]
) -> Iterator[Callable[[RemoteFile], Proven]]:
    """Yield a function that fetches a shard and then starts on the next one."""
    stopped = threading.Event()

    def note_progress(file: RemoteFile, done: int) -> None:
        if stopped.is_set():
            raise _Stopped
        route.progress(file, done)

    def fetch(file: RemoteFile) -> Proven:
        return route.snapshot.fetch_file(file, route.into, note_progress)

    order = [shard.file for shard in pending]
    after = {file.path: following for file, following in itertools.pairwise(order)}
    waiting: dict[str, Future[Proven]] = {}
    pool = ThreadPoolExecutor(1, thread_name_prefix="fetch-ahead")

    def fetch_one(file: RemoteFile) -> Proven:
        future = waiting.pop(file.path, None) or pool.submit(fetch, file)
        proven = future.result()
        following = after.get(file.path)
        if following is not None and following.path not in waiting:
            waiting[following.path] = pool.submit(fetch, following)
        return proven

    try:
        yield fetch_one
    finally:
        stopped.set()
        pool.shutdown(cancel_futures=True)


def _read_receipt(folder: Path, index: int) -> dict[str, FileRecord] | None:
    """Return the files that a shard became, if they are all there."""
    try:
        records = RECORDS.validate_json((folder / RECEIPT.format(index)).read_bytes())
        whole = all((folder / name).stat().st_size == r.size for name, r in records.items())
    except (OSError, ValueError):
        return None
    return records if whole else None


def _write_receipt(folder: Path, index: int, records: Mapping[str, FileRecord]) -> None:
    target = folder / RECEIPT.format(index)
    part = temporary.make_path(target)
    part.write_bytes(RECORDS.dump_json(dict(records)))
    temporary.publish(part, target)
