"""A published model in many shards, and a source that serves copies and counts them."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from safetensors.torch import load_file, save_file

from worker.weights import temporary
from worker.weights.proof import RemoteFile
from worker.weights.snapshot import LocalSnapshot, Proven, ReportProgress, ignore_progress
from worlds.altered import configure


def in_shards(folder: Path, out: Path, count: int) -> Path:
    """Copy a published model, with its transformer in `count` shards.

    Tensors go into the shards in reverse order of their names, so that the time embedding is last
    and some layers have their weight in one shard and their bias in the next.
    """
    shutil.copytree(folder, out)
    transformer = out / "transformer"
    single = transformer / "diffusion_pytorch_model.safetensors"
    tensors = load_file(single)
    single.unlink()
    names = sorted(tensors, reverse=True)
    size = -(-len(names) // count)
    placed: dict[str, str] = {}
    for index in range(count):
        name = f"diffusion_pytorch_model-{index + 1:05d}-of-{count:05d}.safetensors"
        mine = names[index * size : (index + 1) * size]
        save_file({key: tensors[key] for key in mine}, transformer / name)
        placed |= dict.fromkeys(mine, name)
    index_file = transformer / "diffusion_pytorch_model.safetensors.index.json"
    index_file.write_text(json.dumps({"weight_map": placed}))
    return out


def _nothing(_path: str) -> None:
    """Do nothing before a fetch."""


@dataclass
class Copying:
    """A repository whose files are copied to the caller, as a download would.

    `fetched` lists the paths in order; `before` is called with each and may raise or block.
    """

    folder: Path
    repository: str = "org/model"
    commit: str = "0123456789abcdef0123456789abcdef01234567"
    before: Callable[[str], None] = _nothing
    fetched: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._local = LocalSnapshot(self.folder, self.repository)

    @property
    def files(self) -> tuple[RemoteFile, ...]:
        """Return every file."""
        return self._local.files

    def digest(self, file: RemoteFile) -> str:
        """Return "sha256:..."."""
        return self._local.digest(file)

    def fetch_file(
        self, file: RemoteFile, into: Path, progress: ReportProgress = ignore_progress
    ) -> Proven:
        """Copy the file below `into`; the caller may delete it."""
        self.before(file.path)
        found = self._local.fetch_file(file, into, progress)
        target = into / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        part = temporary.make_path(target)
        shutil.copyfile(found.path, part)
        part.replace(target)
        self.fetched.append(file.path)
        return Proven(target, found.sha256, disposable=True)

    def read_range(self, file: RemoteFile, start: int, end: int) -> bytes:
        """Return some bytes of a file."""
        return self._local.read_range(file, start, end)

    def read_file(self, file: RemoteFile) -> bytes:
        """Return a small file's bytes."""
        return self._local.read_file(file)


def brief(folder: Path, out: Path) -> Path:
    """Copy a published model with a schedule that ends where Lightning's do.

    It has a third of the modulation rows, which are half of the time to prepare so small a model.
    """
    shutil.copytree(folder, out)
    configure(out / "scheduler" / "scheduler_config.json", shift_terminal=0.3)
    return out


def tuned(folder: Path, out: Path, by: float) -> Path:
    """Copy a published model as a brief fine-tune: one tensor changed, every size the same."""
    brief(folder, out)
    file = out / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["proj_out.bias"] += by
    save_file(tensors, file)
    return out
