"""A shard is done when its receipt and every file in it are there, whole; else it is made again."""

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from worker.bundle import stream, tensors
from worker.bundle.headers import Shard
from worker.bundle.layout import FileRecord
from worker.bundle.stream import ReadTensor, Route, forget_receipts
from worker.weights.proof import RemoteFile
from worker.weights.snapshot import Proven, ReportProgress, ignore_progress
from worlds.repository import Copying

COUNT = 4


def doubled_and_halved(shard: Shard, read: ReadTensor) -> dict[str, dict[str, torch.Tensor]]:
    """Make two files of a shard, as weights and modulation rows are, and none of what is empty."""
    state = {name: read(name) for name in shard.header}
    return {
        "doubled": {name: t * 2 for name, t in state.items()},
        "halved": {name: t / 2 for name, t in state.items()},
        "empty": {},
    }


@dataclass
class World:
    """A published component of COUNT shards and the folder that it is prepared in."""

    home: Path
    source: Copying
    shards: list[Shard]
    keep: bool = False
    progress: ReportProgress = ignore_progress
    made: list[str] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        """The component's folder."""
        return self.home / "component"

    def stream(self) -> dict[str, FileRecord]:
        """Make what is missing; note which shards were worked on."""

        def transform(shard: Shard, read: ReadTensor) -> dict[str, dict[str, torch.Tensor]]:
            self.made.append(shard.file.path)
            return doubled_and_halved(shard, read)

        place = Route(self.source, self.home / "into", self.folder, self.keep, self.progress)
        return stream.stream(place, self.shards, transform)

    def again(self) -> tuple[list[str], list[str]]:
        """Make what is missing once more; return what was fetched and what was worked on."""
        self.source.fetched.clear()
        self.made.clear()
        self.stream()
        return self.source.fetched, self.made

    def receipt(self, index: int) -> Path:
        """Return where a shard's receipt is."""
        return self.folder / f".shard-{index:05d}.json"

    def files(self, index: int) -> list[Path]:
        """Return the files that a shard became."""
        return [self.folder / name for name in json.loads(self.receipt(index).read_bytes())]

    def assert_whole(self, records: dict[str, FileRecord]) -> None:
        """Every shard's tensors are in two files, and the records are theirs."""
        assert len(records) == 2 * COUNT
        found: dict[str, torch.Tensor] = {}
        for name, record in records.items():
            path = self.folder / name
            assert path.stat().st_size == record.size
            found |= {f"{name.split('-')[0]} {key}": t for key, t in load_file(path).items()}
        for number in range(COUNT):
            assert found[f"doubled t{number}"].tolist() == [2.0 * number] * 3
            assert found[f"halved t{number}"].tolist() == [number / 2] * 3


@pytest.fixture
def world(tmp_path: Path) -> World:
    published = tmp_path / "published"
    published.mkdir()
    for number in range(COUNT):
        name = f"model-{number + 1:05d}-of-{COUNT:05d}.safetensors"
        save_file({f"t{number}": torch.full((3,), float(number))}, published / name)
    source = Copying(published)
    shards = [
        Shard(file, tensors.read_file_header(published / file.path))
        for file in sorted(source.files, key=lambda file: file.path)
    ]
    (tmp_path / "home/component").mkdir(parents=True)
    return World(tmp_path / "home", source, shards)


def paths(world: World, *indices: int) -> list[str]:
    return [world.shards[index].file.path for index in indices]


def test_every_shard_is_fetched_and_made_once_in_order(world: World) -> None:
    world.assert_whole(world.stream())
    assert world.source.fetched == world.made == paths(world, *range(COUNT))
    assert world.again() == ([], [])
    world.assert_whole(world.stream())


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


@pytest.mark.parametrize("damage", [Path.unlink, cut, lengthen])
@pytest.mark.parametrize("which", [[0], [1], [0, 1]], ids=["weights", "rows", "both"])
def test_a_shard_with_a_file_missing_or_of_another_size_is_made_again(
    world: World, damage: Callable[[Path], None], which: list[int]
) -> None:
    world.stream()
    for number in which:
        damage(world.files(2)[number])
    assert world.again() == (paths(world, 2), paths(world, 2))
    world.assert_whole(world.stream())


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"doubled": 3}', '{"doubled-x.safetensors": {"size": 1}}', "\x00"],
)
def test_a_receipt_that_says_nothing_is_none(world: World, text: str) -> None:
    world.stream()
    world.receipt(1).write_text(text)
    assert world.again() == (paths(world, 1), paths(world, 1))
    world.assert_whole(world.stream())


def test_a_shard_without_a_receipt_is_made_again_whatever_files_lie_there(world: World) -> None:
    world.stream()
    world.receipt(0).unlink()
    world.receipt(3).unlink()
    assert world.again() == (paths(world, 0, 3), paths(world, 0, 3))


def test_what_another_worker_made_meanwhile_is_not_made_again(world: World) -> None:
    """Receipts are read once more when their shard's turn comes."""
    world.stream()
    receipts = {index: world.receipt(index).read_bytes() for index in range(COUNT)}
    world.receipt(0).unlink()
    world.receipt(2).unlink()

    def finish(path: str) -> None:
        if path == paths(world, 0)[0]:
            world.receipt(2).write_bytes(receipts[2])

    world.source.before = finish
    _, made = world.again()
    assert made == paths(world, 0)
    world.assert_whole(world.stream())


def test_receipts_are_forgotten_and_nothing_else(world: World) -> None:
    records = world.stream()
    other = world.folder / ".other.json"
    other.touch()
    forget_receipts(world.folder)
    assert {path.name for path in world.folder.iterdir()} == {*records, ".other.json"}


@pytest.mark.parametrize("keep", [False, True])
def test_downloaded_shards_are_dropped_unless_they_are_to_be_kept(
    world: World, *, keep: bool
) -> None:
    world.keep = keep
    world.stream()
    left = sorted(path.name for path in (world.home / "into").rglob("*.safetensors"))
    assert left == (paths(world, *range(COUNT)) if keep else [])


def test_what_is_not_ours_to_delete_stays(world: World) -> None:
    place = Route(world.source._local, world.home / "into", world.folder, False, ignore_progress)
    world.assert_whole(stream.stream(place, world.shards, doubled_and_halved))
    assert len(list(world.source.folder.iterdir())) == COUNT


def test_the_next_shard_is_fetched_while_this_one_is_made(world: World) -> None:
    """One ahead, not more: at most two lie on the disk."""
    started = [threading.Event() for _ in range(COUNT)]

    def before(path: str) -> None:
        started[paths(world, *range(COUNT)).index(path)].set()

    world.source.before = before
    place = Route(world.source, world.home / "into", world.folder, False, ignore_progress)

    def transform(shard: Shard, read: ReadTensor) -> dict[str, dict[str, torch.Tensor]]:
        index = world.shards.index(shard)
        if index + 1 < COUNT:
            assert started[index + 1].wait(60)
        assert not any(event.is_set() for event in started[index + 2 :])
        return doubled_and_halved(shard, read)

    world.assert_whole(stream.stream(place, world.shards, transform))


def test_a_shard_dropped_by_another_worker_before_it_is_opened_is_fetched_again(
    world: World,
) -> None:
    dropped = 0

    class Dropping(Copying):
        def fetch_file(
            self, file: RemoteFile, into: Path, progress: ReportProgress = ignore_progress
        ) -> Proven:
            nonlocal dropped
            found = super().fetch_file(file, into, progress)
            if file.path == paths(world, 1)[0] and dropped < 2:
                dropped += 1
                found.path.unlink()
            return found

    world.source = Dropping(world.source.folder)
    world.assert_whole(world.stream())
    assert world.source.fetched.count(paths(world, 1)[0]) == 3


def test_a_shard_that_is_dropped_every_time_is_not_fetched_for_ever(world: World) -> None:
    class Dropping(Copying):
        def fetch_file(
            self, file: RemoteFile, into: Path, progress: ReportProgress = ignore_progress
        ) -> Proven:
            found = super().fetch_file(file, into, progress)
            found.path.unlink()
            return found

    world.source = Dropping(world.source.folder)
    with pytest.raises(FileNotFoundError):
        world.stream()
    assert world.source.fetched.count(paths(world, 0)[0]) == 3


def test_a_file_that_a_transform_misses_is_not_a_shard_that_was_dropped(world: World) -> None:
    calls = []

    def transform(_shard: Shard, _read: ReadTensor) -> dict[str, dict[str, torch.Tensor]]:
        calls.append(1)
        raise FileNotFoundError("of the transform's own")

    place = Route(world.source, world.home / "into", world.folder, False, ignore_progress)
    with pytest.raises(FileNotFoundError, match="own"):
        stream.stream(place, world.shards, transform)
    assert len(calls) == 1


class Failure(Exception):
    """What a transform may raise."""


@pytest.fixture
def reporting() -> Iterator[threading.Event]:
    """Let go of the download at the end, whatever the test did."""
    event = threading.Event()
    yield event
    event.set()


def test_a_component_that_fails_does_not_wait_for_the_download_ahead_of_it(
    world: World, reporting: threading.Event
) -> None:
    """The download learns at its next step that nothing will read it."""
    begun = threading.Event()
    steps: list[int] = []

    class Slow(Copying):
        def fetch_file(
            self,
            file: RemoteFile,
            into: Path,
            progress: ReportProgress = ignore_progress,
        ) -> Proven:
            if file.path == paths(world, 1)[0]:
                begun.set()
                for step in range(600):
                    progress(file, step)
                    steps.append(step)
                    if reporting.wait(0.1):
                        break
            return super().fetch_file(file, into, progress)

    def transform(_shard: Shard, _read: ReadTensor) -> dict[str, dict[str, torch.Tensor]]:
        assert begun.wait(60)
        raise Failure

    place = Route(
        Slow(world.source.folder), world.home / "into", world.folder, False, ignore_progress
    )
    with pytest.raises(Failure):
        stream.stream(place, world.shards, transform)
    assert len(steps) < 600, "it went on to its end"


def test_progress_is_told_of_every_shard(world: World) -> None:
    reported: dict[str, int] = {}

    def progress(file: RemoteFile, done: int) -> None:
        reported[file.path] = done

    world.progress = progress
    world.stream()
    assert reported == {shard.file.path: shard.file.size for shard in world.shards}


def test_a_shard_that_another_worker_drops_after_it_is_made_is_no_failure(world: World) -> None:
    def transform(shard: Shard, read: ReadTensor) -> dict[str, dict[str, torch.Tensor]]:
        made = doubled_and_halved(shard, read)
        (world.home / "into" / shard.file.path).unlink()
        return made

    place = Route(world.source, world.home / "into", world.folder, False, ignore_progress)
    world.assert_whole(stream.stream(place, world.shards, transform))


def test_two_workers_may_forget_receipts_at_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.stream()
    original = Path.unlink

    def race(path: Path, *, missing_ok: bool = False) -> None:
        original(path)
        original(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", race)
    forget_receipts(world.folder)
    assert not list(world.folder.glob(".shard-*"))


def test_a_component_that_fails_fetches_nothing_that_is_only_queued(world: World) -> None:
    """Not even what it was about to fetch when it failed."""
    begun, released = threading.Event(), threading.Event()

    def before(path: str) -> None:
        if path == paths(world, 1)[0]:
            begun.set()
            assert released.wait(60)

    world.source.before = before

    def transform(_shard: Shard, _read: ReadTensor) -> dict[str, dict[str, torch.Tensor]]:
        assert begun.wait(60)
        released.set()
        raise Failure

    place = Route(world.source, world.home / "into", world.folder, False, ignore_progress)
    with pytest.raises(Failure):
        stream.stream(place, world.shards, transform)
    assert set(world.source.fetched) <= set(paths(world, 0, 1))
