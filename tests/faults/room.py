"""One trial of a fault: a hub with a repository, an empty volume, and what came of it."""

import json
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from faults.driver import Orders, Process

from worker import settings
from worker.settings import Settings
from worker.weights import metadata
from worker.weights.download import HubSnapshot, fetch_snapshot
from worker.weights.proof import RemoteFile
from worker.weights.retry import Patience
from worlds.hub import Hub, running

REPOSITORY = "acme/painter"
TOKEN = "hf_loopback_token"
SHARD = "transformer/diffusion_pytorch_model-00001-of-00002.safetensors"

# Waits short enough for a campaign. A busy machine must not look like a hub that stands still, so
# only where standing still is the fault is it told soon: after the time of a process to start.
FAST = Patience(
    first_wait_s=0.02, longest_wait_s=0.1, longest_asked_wait_s=0.3, connect_s=30, stall_s=30
)
SOON = replace(FAST, connect_s=3, stall_s=2)


@dataclass
class Room:
    """Everything one trial works with; `parallel` says which way large files take."""

    hub: Hub
    home: Path
    rng: random.Random
    parallel: bool
    patience: Patience = FAST
    environ: dict[str, str] = field(default_factory=dict)
    published: dict[str, bytes] = field(default_factory=dict)
    prepares: bool = False
    leaving: ExitStack = field(default_factory=ExitStack)

    @property
    def into(self) -> Path:
        """The folder of the snapshot's files."""
        return self.home / "sources"

    @property
    def settings(self) -> Settings:
        """What the operator set."""
        return settings.read(self.variables)

    @property
    def variables(self) -> dict[str, str]:
        """The environment of a worker in this room."""
        return {
            "HF_ENDPOINT": self.hub.endpoint,
            "HF_TOKEN": TOKEN,
            "MODEL_DIR": str(self.home),
            "MIN_STORAGE_FREE_GB": "0",
            "DOWNLOAD_WORKERS": "4",
            **self.environ,
        }

    def snapshot(self) -> HubSnapshot:
        """Resolve the repository."""
        found = metadata.resolve(REPOSITORY, None, self.settings, patience=self.patience)
        return replace(
            found, parallel_from=300_000 if self.parallel else 1 << 60, range_bytes=200_000
        )

    def fetch(self, progress: Callable[[RemoteFile, int], None] | None = None) -> None:
        """Fetch the whole repository, as a start does."""
        snapshot = self.snapshot()
        files = snapshot.files
        if progress is None:
            fetch_snapshot(snapshot, files, self.into, self.settings)
        else:
            fetch_snapshot(snapshot, files, self.into, self.settings, progress)

    def process(
        self, *, stop: str = "", go_on: bool = False, wait: bool = False, locks: bool = True
    ) -> Process:
        """Start a process that does as `fetch`, see `Orders`."""
        orders = Orders(
            self.variables,
            REPOSITORY,
            None if self.prepares else self.into,
            self.patience,
            self.parallel,
            stop,
            go_on,
            wait,
            locks,
        )
        process = Process(orders)
        self.leaving.callback(process.kill)
        return process

    def wrong(self) -> list[str]:
        """Return the files under a final name whose bytes are not the published ones."""
        named = {
            path.relative_to(self.into).as_posix(): path
            for path in self.into.rglob("*")
            if path.is_file() and not path.name.startswith(".")
        }
        return [
            name for name, path in named.items() if path.read_bytes() != self.published.get(name)
        ]

    def missing(self) -> list[str]:
        """Return the published files that are not there."""
        return [name for name in self.published if not (self.into / name).is_file()]

    def parts(self) -> list[Path]:
        """Return the parts that lie about."""
        return list(self.home.rglob("*.part"))


def repository(rng: random.Random) -> dict[str, bytes]:
    """Make the files of a repository in diffusers' layout, of random bytes."""
    return {
        "model_index.json": json.dumps({"_class_name": "QwenImagePipeline"}).encode(),
        "transformer/config.json": rng.randbytes(700),
        SHARD: rng.randbytes(rng.randrange(900_000, 1_500_000)),
        SHARD.replace("00001", "00002", 1): rng.randbytes(rng.randrange(310_000, 600_000)),
        "vae/config.json": b"",
        "vae/diffusion_pytorch_model.safetensors": rng.randbytes(rng.randrange(1, 90_000)),
    }


@contextmanager
def room(home: Path, seed: int, environ: Mapping[str, str] | None = None) -> Iterator[Room]:
    """Give a room whose repository, sizes and way follow from the seed."""
    rng = random.Random(seed)
    with running() as hub:
        made = Room(hub, home, rng, parallel=seed % 2 == 0, environ=dict(environ or {}))
        made.published = repository(rng)
        hub.add(REPOSITORY, made.published)
        with made.leaving:
            yield made
