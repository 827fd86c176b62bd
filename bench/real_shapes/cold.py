"""A cold start at real size: shards made on the fly, one bundle, opened from the disk, a picture.

python -m bench.real_shapes.cold BUNDLE DEVICE ARCHITECTURE STARTED   (the child process)
"""

import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from bench.real_shapes import job, ours, shapes, weights
from bench.real_shapes.job import Case
from bench.real_shapes.shapes import CHECKPOINT, Architecture
from worker import settings
from worker.bundle.plan import Order
from worker.bundle.prepare import compute_sizes, prepare
from worker.engine.device import limit_threads
from worker.engine.quantise import Precision
from worker.families.qwen_image.opening import open_bundle
from worker.families.qwen_image.recipe import RECIPE
from worker.weights.proof import RemoteFile
from worker.weights.snapshot import Proven, ReportProgress, ignore_progress
from worker.weights.spec import ModelSpec

ROOT: Final = Path(__file__).resolve().parents[2]
SHARD_BYTES: Final = {"Qwen-Image": 4_990_000_000, "tiny": 2_000_000}  # as the hub's are cut
STEPS: Final = 4
LORA: Final = f"lightning/Random-Lightning-{STEPS}steps.safetensors"
READ_BYTES: Final = 1 << 26


@dataclass(frozen=True, slots=True)
class _Tensor:
    """One tensor to be: its module, name and place in the file."""

    owner: nn.Module
    name: str
    like: Tensor
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class _Shard:
    """One safetensors file to be: its header's bytes and its tensors, all bf16."""

    header: bytes
    tensors: tuple[_Tensor, ...]

    @property
    def size(self) -> int:
        """Return the file's size in bytes."""
        return len(self.header) + (self.tensors[-1].end if self.tensors else 0)


def _shard(tensors: list[tuple[nn.Module, str, Tensor]]) -> _Shard:
    facts: dict[str, Any] = {}
    placed, end = [], 0
    for owner, name, like in tensors:
        start, end = end, end + 2 * like.numel()
        facts[name] = {"dtype": "BF16", "shape": list(like.shape), "data_offsets": [start, end]}
        placed.append(_Tensor(owner, name, like, start, end))
    text = json.dumps(facts, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return _Shard(len(text).to_bytes(8, "little") + text, tuple(placed))


def _cut(model: nn.Module, limit: int) -> Iterator[_Shard]:
    """Cut a model's parameters into shards of at most `limit` bytes, in their order."""
    waiting: list[tuple[nn.Module, str, Tensor]] = []
    size = 0
    for path, owner in model.named_modules():
        for leaf, like in owner.named_parameters(recurse=False):
            if waiting and size + 2 * like.numel() > limit:
                yield _shard(waiting)
                waiting, size = [], 0
            waiting.append((owner, f"{path}.{leaf}", like))
            size += 2 * like.numel()
    if waiting:
        yield _shard(waiting)


@dataclass(frozen=True)
class RandomSnapshot:
    """A published edit model of an architecture whose shards come into being when fetched."""

    architecture: Architecture
    device: torch.device
    repository: str = "bench/random"
    commit: str = "random"
    spent: dict[str, float] = field(default_factory=lambda: {"seconds": 0.0, "bytes": 0.0})

    @cached_property
    def _models(self) -> dict[str, Any]:
        return {
            "transformer": shapes.transformer(self.architecture, edit=True),
            "text_encoder": shapes.text_encoder(self.architecture),
            "vae": shapes.vae(self.architecture),
        }

    @cached_property
    def _shards(self) -> dict[str, _Shard]:
        limit, found = SHARD_BYTES[self.architecture.name], {}
        for role, model in self._models.items():
            stem = "model" if role == "text_encoder" else "diffusion_pytorch_model"
            cut = list(_cut(model, limit))
            for number, shard in enumerate(cut, 1):
                name = f"{stem}-{number:05d}-of-{len(cut):05d}.safetensors"
                found[f"{role}/{name}"] = shard
        lora = weights.lightning(self._models["transformer"], STEPS, torch.device("meta"))
        found[LORA] = _shard([(nn.Identity(), name, like) for name, like in lora.items()])
        return found

    @cached_property
    def _small(self) -> dict[str, bytes]:
        configurations = {
            "model_index.json": {"_class_name": ours.PIPELINES[True]},
            "transformer/config.json": self.architecture.transformer_config(edit=True),
            "text_encoder/config.json": self.architecture.text_encoder,
            "vae/config.json": self.architecture.vae,
            "scheduler/scheduler_config.json": self.architecture.scheduler,
        }
        copied = [p for role in ("tokenizer", "processor") for p in (CHECKPOINT / role).iterdir()]
        return {
            **{name: json.dumps(value).encode() for name, value in configurations.items()},
            **{p.relative_to(CHECKPOINT).as_posix(): p.read_bytes() for p in copied},
        }

    @cached_property
    def files(self) -> tuple[RemoteFile, ...]:
        """Return every file that the model would be published as."""
        small = [RemoteFile(name, len(data)) for name, data in self._small.items()]
        return (*small, *(RemoteFile(name, s.size) for name, s in self._shards.items()))

    def digest(self, file: RemoteFile) -> str:
        """Return what stands for the bytes: they follow from the name and the architecture."""
        return f"sha256:{hashlib.sha256((self.architecture.name + file.path).encode()).hexdigest()}"

    def fetch_file(
        self, file: RemoteFile, into: Path, progress: ReportProgress = ignore_progress
    ) -> Proven:
        """Make a shard on the device and write it."""
        began = time.monotonic()
        shard, path = self._shards[file.path], into / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as out:
            out.write(shard.header)
            for tensor in shard.tensors:
                made = self._value(tensor).cpu().contiguous()
                out.write(made.view(torch.uint8).numpy().data)
        progress(file, file.size)
        self.spent["seconds"] += time.monotonic() - began
        self.spent["bytes"] += file.size
        return Proven(path, self.digest(file).removeprefix("sha256:"), disposable=True)

    def _value(self, tensor: _Tensor) -> Tensor:
        if "lora_" in tensor.name:
            return weights.lora(tensor.name, tuple(tensor.like.shape), STEPS, self.device)
        return weights.value(tensor.owner, tensor.name, tensor.like, self.device)

    def read_range(self, file: RemoteFile, start: int, end: int) -> bytes:
        """Return bytes `start` up to `end`: of a header, or of whole tensors."""
        shard = self._shards[file.path]
        if end <= len(shard.header):
            return shard.header[start:end]
        base, parts = len(shard.header), []
        for tensor in shard.tensors:
            if base + tensor.start >= start and base + tensor.end <= end:
                made = self._value(tensor).cpu().contiguous()
                parts.append(made.view(torch.uint8).numpy().tobytes())
        data = b"".join(parts)
        if len(data) != end - start:
            raise ValueError(f"{file.path}: bytes {start} to {end} are no whole tensors")
        return data

    def read_file(self, file: RemoteFile) -> bytes:
        """Return a small file's bytes."""
        return self._small[file.path]


def order(
    architecture: Architecture, precision: Precision, device: torch.device, to: Path
) -> Order:
    """Return what the worker would be told to prepare."""
    snapshot = RandomSnapshot(architecture, device)
    chosen = settings.read({"MODEL_DIR": str(to), "MIN_STORAGE_FREE_GB": "0"})
    return Order(
        spec=ModelSpec("random-edit", snapshot.repository, ours.PIPELINES[True], tasks=("edit",)),
        recipe=RECIPE,
        snapshot=snapshot,
        precision=precision,
        settings=chosen,
        device=device,
        home=to,
        into=to / "published",
        lightning={STEPS: (snapshot, LORA)},
    )


def drop_caches(folder: Path, *, whole: bool) -> bool:
    """Take a folder's files out of the page cache; return whether the kernel dropped all of it.

    `whole` asks for that too: on a machine of one's own only, since it slows everybody down.
    """
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if not whole:
        return False
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        return False
    return True


def _read_all(folder: Path) -> float:
    """Return the seconds to read every byte of a folder with eight threads: the floor."""
    pieces = [
        (path, start)
        for path in folder.rglob("*")
        if path.is_file()
        for start in range(0, path.stat().st_size, READ_BYTES)
    ]

    def read(piece: tuple[Path, int]) -> int:
        with piece[0].open("rb", buffering=0) as file:
            file.seek(piece[1])
            return len(file.read(READ_BYTES))

    began = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        sum(pool.map(read, pieces))
    return time.monotonic() - began


def start(
    architecture: Architecture,
    precision: Precision,
    device: torch.device,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Prepare, drop the caches, start a process that opens and draws; return seconds and bytes."""
    with tempfile.TemporaryDirectory(prefix="cold-") as temporary:
        home = Path(temporary)
        asked = order(architecture, precision, device, home)
        needed = compute_sizes(asked)[precision].disk + 2 * SHARD_BYTES[architecture.name]
        free = shutil.disk_usage(home).free
        if free < needed:
            return {"skipped": f"needs {needed / 1e9:.0f} GB of disk, {free / 1e9:.0f} are free"}
        began = time.monotonic()
        folder = prepare(asked)
        told: dict[str, Any] = {"prepare_s": round(time.monotonic() - began, 2)}
        snapshot = asked.snapshot
        assert isinstance(snapshot, RandomSnapshot)
        told["published_gb"] = round(snapshot.spent["bytes"] / 1e9, 3)
        told["of_it_making_shards_s"] = round(snapshot.spent["seconds"], 2)
        bundle = sum(p.stat().st_size for p in home.rglob("*") if p.is_file())
        told["bundle_gb"] = round(bundle / 1e9, 3)
        say(f"prepared: {told}")
        if device.type == "cuda":
            torch.cuda.empty_cache()
            _run_child(["-c", "import bench.real_shapes.cold"])  # an image has its bytecode too
        whole = device.type == "cuda"
        told["caches_dropped"] = drop_caches(home, whole=whole)
        told["read_all_s"] = round(_read_all(home), 2)
        # a second time from the page cache, where the disk is worth telling from the rest
        for name in ("cold", "again") if whole else ("cold",):
            if name == "cold":
                drop_caches(home, whole=whole)
            told[name] = _child(folder, device, architecture)
            say(f"{name}: {told[name]}")
        return told


def _child(folder: Path, device: torch.device, architecture: Architecture) -> dict[str, Any]:
    words = ["-m", "bench.real_shapes.cold", str(folder), str(device), architecture.name]
    told: dict[str, Any] = json.loads(_run_child([*words, str(time.time())]).splitlines()[-1])
    return told


def _run_child(words: list[str]) -> str:
    """Return what Python prints for these words, with the bytecode of all imports kept."""
    environ = {**os.environ}
    environ.pop("PYTHONDONTWRITEBYTECODE", None)
    environ["PYTHONPATH"] = f"{ROOT}:{ROOT / 'src'}:{environ.get('PYTHONPATH', '')}"
    return subprocess.run(
        [sys.executable, *words],
        env=environ,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout


def _draw(folder: Path, device: torch.device, architecture: Architecture, began: float) -> None:
    """Open a bundle, draw one edit, and print the seconds since the process was started."""
    limit_threads(device)
    told = {"imports_s": time.time() - began}
    opening = time.time()
    parts = open_bundle(folder, device)
    told["open_s"] = time.time() - opening
    model = ours.open_model(architecture, parts, edit=True, precision="4bit")
    case = Case(architecture.small, 1, STEPS)
    drawing = time.time()
    model.job(case, next(job.inputs(case)))
    told["first_picture_s"] = time.time() - drawing
    told["total_s"] = time.time() - began
    told["peak_rss_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
    print(json.dumps({name: round(value, 2) for name, value in told.items()}))


if __name__ == "__main__":
    chosen = {"tiny": shapes.tiny, "Qwen-Image": shapes.full}[sys.argv[3]]
    _draw(Path(sys.argv[1]), torch.device(sys.argv[2]), chosen(), float(sys.argv[4]))
