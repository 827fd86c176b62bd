"""Faults while a whole bundle is prepared from a hub: the embedded model, published in shards."""

import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

from faults.machine import disk, together
from faults.network import Case, Expected
from faults.room import TOKEN, Room
from safetensors.torch import load, save

from worker.bundle import layout
from worker.bundle.obtain import Obtained, obtain
from worker.families.catalogue import CATALOGUE
from worker.families.qwen_image.recipe import RECIPE
from worker.settings import Settings, read
from worker.weights.meaning import find_checkpoints
from worker.weights.proof import digest_file
from worlds.hub import Fault, running
from worlds.repository import in_shards

REPOSITORY = "acme/tiny-image"
SHARDS = 4
SHARD = f"transformer/diffusion_pytorch_model-00002-of-{SHARDS:05d}.safetensors"
FIRST = SHARD.replace("00002", "00001", 1)  # the time embedding is in it, read by ranges
LORA = "lightning/tiny-Lightning-8steps.safetensors"


def obtained(settings: Settings) -> Obtained:
    """Get the bundle, as a start on a CPU does."""
    (spec,) = CATALOGUE.resolve((REPOSITORY,), settings, has_gpu=False)
    return obtain(spec, RECIPE, settings, None, CATALOGUE)


@cache
def _published() -> Mapping[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        out = in_shards(find_checkpoints() / "tiny" / "image", Path(folder) / "x", SHARDS)
        return {
            path.relative_to(out).as_posix(): path.read_bytes()
            for path in out.rglob("*")
            if path.is_file()
        }


@cache
def right() -> Mapping[str, str]:
    """Return the sha256 of every file of every component of a bundle made without any fault."""
    with tempfile.TemporaryDirectory() as folder, running() as hub:
        home = Path(folder)
        hub.add(REPOSITORY, _published())
        obtained(read(PreparingRoom(hub, home, Random(0), parallel=False).variables))
        return _components(home)


def _components(home: Path) -> dict[str, str]:
    found = {}
    for path in (home / layout.COMPONENTS).rglob("*"):
        hidden = path.name.startswith(".") or layout.DAMAGED in path.parent.name
        if path.is_file() and not hidden and path.name != layout.MANIFEST:
            found[f"{path.parent.name}/{path.name}"] = digest_file(path, blob_id=False).sha256
    return found


@dataclass
class PreparingRoom(Room):
    """A room in which a start prepares and opens a bundle."""

    prepares: bool = True

    @property
    def variables(self) -> dict[str, str]:
        """The environment of a worker in this room."""
        return super().variables | {
            "PRECISION_MODE": "4bit",
            "LIGHTNING_STEPS": "8",
            "DOWNLOAD_STALL_S": str(self.patience.stall_s),
            "RUNPOD_CACHE_DIR": str(self.home / "no-cache"),
            **self.environ,
        }

    def fetch(self, progress: object = None) -> None:
        """Get the bundle and prove it whole."""
        assert progress is None, "a start reports its progress itself"
        layout.verify(obtained(self.settings).folder, "full")

    def wrong(self) -> list[str]:
        """Return the components' files whose bytes are not those of a bundle without faults."""
        wanted = right()
        return [name for name, sha in _components(self.home).items() if wanted.get(name) != sha]

    def missing(self) -> list[str]:
        """Return the files that the bundle lacks."""
        return sorted(set(right()) - set(_components(self.home)))


@contextmanager
def room(home: Path, seed: int) -> Iterator[Room]:
    """Give a room whose hub has the model."""
    right()
    with running() as hub:
        made = PreparingRoom(hub, home, Random(seed), parallel=False)
        hub.tokens[TOKEN] = set()
        hub.add(REPOSITORY, _published())
        with made.leaving:
            yield made


def _case(name: str, expected: Expected, *faults: Fault, stalls: bool = False) -> Case:
    def run(made: Room) -> None:
        made.hub.misbehave(*(Fault(**vars(fault)) for fault in faults))
        made.fetch()

    return Case(name, expected, run, "prepare", False, room, stalls)


def _killed(stop: str, name: str, how: signal.Signals = signal.SIGKILL) -> Case:
    def run(made: Room) -> None:
        process = made.process(stop=stop)
        process.await_line(f"at {stop}")
        process.signal(how)
        process.ended()
        made.fetch()
        assert not made.parts(), "parts of a dead process were left"

    return Case(name, "recovered", run, "prepare", False, room)


def _gated(made: Room) -> None:
    made.hub.gated.add(REPOSITORY)
    made.fetch()


def _another_lora(made: Room) -> None:
    """The LoRA of a model with fewer layers."""
    kept = {k: v for k, v in load(_published()[LORA]).items() if "transformer_blocks.1." not in k}
    made.hub.add(REPOSITORY, {**_published(), LORA: save(kept)})
    made.fetch()


def _full_at_start(made: Room) -> None:
    disk(made, 2 * 1024 * 1024)
    try:
        made.fetch()
    finally:
        assert not made.hub.requests("bytes", "*.safetensors") or all(
            seen.span for seen in made.hub.requests("bytes", "*.safetensors")
        ), "a whole file was asked for before there was room"


def _full_in_the_middle(made: Room) -> None:
    """A neighbour fills the disk while a process stops between two shards."""
    disk(made, 64 * 1024 * 1024)
    process = made.process(stop="after part 2", go_on=True)
    process.await_line("at after part 2")
    neighbour = made.home / "neighbour"
    with neighbour.open("wb", buffering=0) as opened:
        try:
            while opened.write(bytes(4096)):
                pass
        except OSError:
            pass
    process.go()
    said = process.ended()
    assert said.startswith("failed VOLUME_FULL"), said
    neighbour.unlink()
    made.fetch()


def _read_only(made: Room) -> None:
    disk(made, 64 * 1024 * 1024)
    subprocess.run(["mount", "-o", "remount,ro", str(made.home)], check=True)
    made.fetch()


def _together(count: int, *, locks: bool) -> Case:
    def run(made: Room) -> None:
        together(made, count, locks=locks)

    flock = "true" if locks else "a no-op"
    name = f"prepare: {count} processes, flock {flock}"
    return Case(name, "recovered", run, "prepare", False, room)


def _hub_down_afterwards(made: Room) -> None:
    made.fetch()
    made.hub.stop()
    made.fetch()


def _at_rest(name: str, damage: str) -> Case:
    def run(made: Room) -> None:
        made.fetch()
        files = [
            path
            for path in sorted((made.home / layout.COMPONENTS).rglob("*.safetensors"))
            if not path.name.startswith(".")
        ]
        chosen = made.rng.choice(files)
        if damage == "truncated":
            chosen.write_bytes(chosen.read_bytes()[: made.rng.randrange(chosen.stat().st_size)])
        else:
            chosen.unlink()
        made.fetch()

    return Case(name, "recovered", run, "prepare", False, room)


def _moved_on(made: Room) -> None:
    """The branch moves between a kill and the next start, which goes on with the first commit."""
    process = made.process(stop="after part 1")
    process.await_line("at after part 1")
    process.kill()
    made.hub.add(REPOSITORY, {**_published(), "transformer/config.json": b"{}"})
    made.fetch()


CASES: tuple[Case, ...] = (
    _case("prepare: 503 three times", "recovered", Fault("status", path=SHARD, times=3)),
    _case("prepare: shard cut by RST", "recovered", Fault("reset", path=SHARD, times=2)),
    _case("prepare: one byte flipped", "recovered", Fault("flip", path=SHARD, skip=4)),
    _case(
        "prepare: small file flipped",
        "recovered",
        Fault("flip", path="transformer/config.json"),
    ),
    _case(
        "prepare: stall in the body",
        "recovered",
        Fault("stall-body", path=SHARD, skip=4),
        stalls=True,
    ),
    _case("prepare: HTML for ever", "try later", Fault("html", path=SHARD, times=None, skip=4)),
    Case("prepare: gated", "WEIGHTS_UNAVAILABLE", _gated, "prepare", False, room),
    _case(
        "prepare: LoRA gone (404)",
        "WEIGHTS_UNAVAILABLE",
        Fault("status", "resolve", LORA, times=None, status=404),
    ),
    _case("prepare: header flipped", "recovered", Fault("flip", path=SHARD, skip=2)),
    _case("prepare: range of a tensor flipped", "recovered", Fault("flip", path=FIRST, skip=4)),
    Case(
        "prepare: LoRA of another model",
        "LORA_NOT_APPLIED",
        _another_lora,
        "prepare",
        False,
        room,
    ),
    _killed("before shard 2", "prepare: SIGKILL before a shard's name"),
    _killed("after shard 2", "prepare: SIGKILL after a shard"),
    _killed("before part 2", "prepare: SIGKILL before a part's name"),
    _killed("after part 2", "prepare: SIGKILL after a part"),
    _killed("before component 3", "prepare: SIGKILL before a manifest"),
    _killed("before bundle 1", "prepare: SIGKILL in publish"),
    _killed("after part 2", "prepare: SIGTERM after a part", signal.SIGTERM),
    Case("prepare: disk full at start", "VOLUME_FULL", _full_at_start, "prepare", False, room),
    Case(
        "prepare: disk full in the middle",
        "recovered",
        _full_in_the_middle,
        "prepare",
        False,
        room,
    ),
    Case("prepare: read-only", "WEIGHTS_UNAVAILABLE", _read_only, "prepare", False, room),
    _together(2, locks=True),
    _together(2, locks=False),
    Case("prepare: hub down afterwards", "recovered", _hub_down_afterwards, "prepare", False, room),
    _at_rest("prepare: component truncated at rest", "truncated"),
    _at_rest("prepare: component's file missing", "missing"),
    Case("prepare: the branch moves", "recovered", _moved_on, "prepare", False, room),
)
