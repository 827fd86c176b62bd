"""From files to a first picture: a bundle compared with reading its bytes and with the usual way.

    python bench/cold_start.py                    a checkpoint of a few GB, three rounds
    python bench/cold_start.py --tiny --rounds 1  the embedded checkpoint's sizes, for a quick look

The checkpoint has Qwen-Image's own layer shapes and random weights: a few transformer blocks, a few
text encoder layers and the complete VAE. Every start is a separate process, its files dropped from
the page cache first. The ways:

    floor   read every byte of the bundle, eight ranges at once, and do nothing with them
    open    open the bundle after all imports, so that only the opening is timed
    start   open the bundle as a worker does: the kernel reads ahead during the imports
    today   what users do: from_pretrained in bf16, quantise to NF4, load the LoRA with peft

from_pretrained maps the published files: their bytes are read while they are quantised, and on a
CPU quantising takes longer than reading. A GPU quantises faster than disks read: there, the
difference shrinks to the ratio of the bytes.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
RESULTS: Final = ROOT / "bench" / "results" / "cold_start.json"
STEPS: Final = 4
SIDE: Final = 64  # pixels, the least a job may request: little time next to the opening
RANGE_BYTES: Final = 16 << 20
THREADS: Final = 8
BLOCKS: Final = 4
LAYERS: Final = 2
SHARD_BYTES: Final = 1_000_000_000
GB: Final = 1_000_000_000
PROMPT: Final = "a first picture"
Figures = dict[str, float]


def files_below(folder: Path) -> list[Path]:
    """Return the weight files of a bundle's home or of a published folder."""
    return sorted(folder.rglob("*.safetensors"))


def drop(files: Sequence[Path]) -> float:
    """Drop files from the page cache and return the share of them that stayed in it."""
    os.sync()
    for path in files:
        number = os.open(path, os.O_RDONLY)
        os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(number)
    probed, cached = 0, 0
    for path in files:
        number = os.open(path, os.O_RDONLY)
        for offset in range(0, path.stat().st_size, RANGE_BYTES):
            probed += 1
            try:
                cached += bool(os.preadv(number, [bytearray(1)], offset, os.RWF_NOWAIT))
            except BlockingIOError:
                continue
        os.close(number)
    return cached / max(probed, 1)


def read_everything(files: Sequence[Path]) -> None:
    """Read every byte, several ranges at once, and discard them."""

    def read(place: tuple[Path, int]) -> None:
        path, offset = place
        number = os.open(path, os.O_RDONLY)
        view = memoryview(bytearray(RANGE_BYTES))
        while view and (count := os.preadv(number, [view], offset)):
            view, offset = view[count:], offset + count
        os.close(number)

    ranges = [(p, at) for p in files for at in range(0, p.stat().st_size, RANGE_BYTES)]
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(read, ranges))


class Clock:
    """Seconds by phase, each from the end of the phase before.

    "PHASE cpu" is the processor time of a phase, which a busy machine changes less.
    """

    def __init__(self, started: float) -> None:
        self.figures: Figures = {}
        self._last = started
        self._cpu = 0.0

    def end(self, phase: str) -> None:
        """End a phase."""
        now, cpu = time.time(), time.process_time()
        self.figures |= {phase: now - self._last, f"{phase} cpu": cpu - self._cpu}
        self._last, self._cpu = now, cpu


def child_floor(clock: Clock, home: Path, _published: Path) -> None:
    """Read the bundle's bytes."""
    clock.end("process")
    read_everything(files_below(home))
    clock.end("read")


def child_open(clock: Clock, home: Path, _published: Path) -> None:
    """Open the bundle after the imports."""
    _imports()
    clock.end("imports")
    _open_and_draw(clock, home)


def child_start(clock: Clock, home: Path, _published: Path) -> None:
    """Open the bundle as a worker does, reading ahead of the imports."""
    from worker.bundle import layout  # noqa: PLC0415 - timed

    folder = next((home / layout.BUNDLES).iterdir())
    layout.read_ahead(layout.verify(folder))
    _imports()
    clock.end("imports")
    _open_and_draw(clock, home)


def _imports() -> None:
    """Import everything that either way uses."""
    import bitsandbytes  # noqa: F401, PLC0415 - timed
    import diffusers  # noqa: PLC0415 - timed
    import peft  # noqa: F401, PLC0415 - timed
    import transformers  # noqa: PLC0415 - timed

    from worker.families.qwen_image import model  # noqa: F401, PLC0415 - timed

    for name in ("QwenImagePipeline", "QwenImageTransformer2DModel", "AutoencoderKLQwenImage"):
        getattr(diffusers, name)
    for name in ("AutoTokenizer", "Qwen2_5_VLForConditionalGeneration"):
        getattr(transformers, name)


def _open_and_draw(clock: Clock, home: Path) -> None:
    import torch  # noqa: PLC0415 - the floor's process does not need it

    from bench import pictures  # noqa: PLC0415 - the same
    from worker.bundle import layout  # noqa: PLC0415 - the same
    from worker.families.qwen_image.opening import open_bundle  # noqa: PLC0415 - the same

    parts = open_bundle(next((home / layout.BUNDLES).iterdir()), torch.device("cpu"))
    clock.end("open")
    pictures.ours(pictures.engine(parts, SIDE, STEPS), PROMPT, SIDE, STEPS)
    clock.end("picture")


def child_today(clock: Clock, _home: Path, published: Path) -> None:
    """Load the published weights, quantise them and attach the LoRA with peft."""
    _imports()
    clock.end("imports")
    from bench import pictures, synthetic  # noqa: PLC0415 - the floor needs neither

    pipeline = pictures.loaded(published)
    clock.end("from_pretrained")
    pictures.quantised(pipeline)
    clock.end("quantise")
    pictures.with_lora(pipeline, published / synthetic.LORA.format(STEPS))
    clock.end("lora")
    pictures.theirs(pipeline, PROMPT, SIDE, STEPS)
    clock.end("picture")


WAYS: Final = {
    "floor": child_floor,
    "open": child_open,
    "start": child_start,
    "today": child_today,
}


def child(way: str, started: float, home: Path, published: Path) -> None:
    """Run one way in this process and print its figures."""
    clock = Clock(started)
    WAYS[way](clock, home, published)
    figures = clock.figures | {
        "total": time.time() - started,
        "total cpu": time.process_time(),
        "peak_gb": _peak_bytes() / GB,
    }
    print(json.dumps(figures))


def _peak_bytes() -> int:
    """Return the most memory this process had, mapped files included.

    Read from the kernel's own high-water mark: getrusage's starts at the parent's.
    """
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def measured(way: str, home: Path, published: Path) -> Figures:
    """Run one way in a separate process, its files dropped from the page cache first."""
    cached = drop([*files_below(home), *files_below(published)])
    load = os.getloadavg()[0]
    command = [sys.executable, __file__, "--child", way, str(time.time()), str(home)]
    done = subprocess.run(
        [*command, str(published)],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"},
        stdout=subprocess.PIPE,
        check=True,
    )
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures | {"cached_before": cached, "load_before": load}


def prepared(home: Path, published: Path) -> Figures:
    """Prepare the bundle in 4bit and return how long that took."""
    import torch  # noqa: PLC0415 - children that need no torch do not pay for it

    from bench import synthetic  # noqa: PLC0415 - the same
    from worker import settings  # noqa: PLC0415 - the same
    from worker.bundle.plan import Order  # noqa: PLC0415 - the same
    from worker.bundle.prepare import prepare  # noqa: PLC0415 - the same
    from worker.families.qwen_image.recipe import RECIPE  # noqa: PLC0415 - the same
    from worker.weights.snapshot import LocalSnapshot  # noqa: PLC0415 - the same
    from worker.weights.spec import ModelSpec  # noqa: PLC0415 - the same

    start = time.monotonic()
    snapshot = LocalSnapshot(published, "bench/model")
    prepare(
        Order(
            ModelSpec("model", "bench/model", "QwenImagePipeline"),
            RECIPE,
            snapshot,
            "4bit",
            settings.read({}),
            torch.device("cpu"),
            home,
            home / "downloads",
            lightning={STEPS: (snapshot, synthetic.LORA.format(STEPS))},
        )
    )
    return {"seconds": time.monotonic() - start}


def medians(rounds: Sequence[Figures]) -> Figures:
    """Return the median of each figure over the rounds."""
    return {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}


def report(results: dict[str, Any]) -> Iterator[str]:
    """Yield the table's lines."""
    ways: dict[str, Figures] = results["ways"]
    sizes = results["bytes"]
    yield f"{results['model']}: published {sizes['published'] / GB:.2f} GB,"
    yield f"bundle {sizes['bundle'] / GB:.2f} GB of which {sizes['rows'] / GB:.2f} GB rows, mapped"
    phases = ("process", "read", "imports", "from_pretrained", "quantise", "lora", "open")
    columns = (*phases, "picture", "total")
    extra = ("peak_gb", "cached_before", "load_before")
    yield " ".join(f"{name:>15}" for name in ("seconds", *columns, *extra))
    for way, figures in ways.items():
        for kind, names in (("", (*columns, *extra)), (" cpu", columns)):
            values = (figures.get(name + kind) for name in names)
            cells = (" " * 15 if value is None else f"{value:15.2f}" for value in values)
            yield " ".join((f"{way + kind:>15}", *cells))
    for name, value in results["ratios"].items():
        yield f"{name}: {value:.2f}"


def ratios(ways: dict[str, Figures]) -> Figures:
    """Compare the ways; imports are left out of all but the last line."""
    opening = ways["open"]["open"]
    today = sum(ways["today"][phase] for phase in ("from_pretrained", "quantise", "lora"))
    return {
        "open / floor": opening / ways["floor"]["read"],
        "today / open": today / opening,
        "today / open, each to its first picture": (today + ways["today"]["picture"])
        / (opening + ways["open"]["picture"]),
        "today / start, process to first picture": ways["today"]["total"] / ways["start"]["total"],
        "the same in processor time": ways["today"]["total cpu"] / ways["start"]["total cpu"],
    }


def main() -> None:
    """Measure all ways in turn, print the table and write the results."""
    parser = argparse.ArgumentParser(description="time cold starts")
    parser.add_argument("--tiny", action="store_true", help="the embedded checkpoint's sizes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="keep the checkpoint and the bundle here")
    parser.add_argument("--out", type=Path, default=None, help="where to write results, as JSON")
    given = parser.parse_args()
    sys.path[:0] = [str(ROOT), str(ROOT / "src")]
    from bench import synthetic  # noqa: PLC0415 - children that need no torch do not pay for it
    from bench.real_shapes import shapes  # noqa: PLC0415 - the same

    architecture = shapes.tiny() if given.tiny else synthetic.few_blocks(BLOCKS, LAYERS)
    with tempfile.TemporaryDirectory() as scratch:
        root = given.folder or Path(scratch)
        home, published = root / "home", root / "published"
        if not published.exists():
            synthetic.publish(
                published, architecture, edit=False, shard_bytes=SHARD_BYTES, steps=STEPS
            )
        prepare = prepared(home, published)
        rounds: dict[str, list[Figures]] = {way: [] for way in WAYS}
        for number in range(given.rounds):
            for way in WAYS:
                rounds[way].append(measured(way, home, published))
                print(f"round {number + 1}, {way}: {rounds[way][-1]['total']:.1f} s", flush=True)
        ways = {way: medians(figures) for way, figures in rounds.items()}
        bundle = files_below(home)
        sizes = {
            "published": sum(p.stat().st_size for p in files_below(published)),
            "bundle": sum(p.stat().st_size for p in bundle),
            "rows": sum(p.stat().st_size for p in bundle if p.name.startswith("modulation")),
        }
        results = {
            "model": architecture.name,
            "machine": {
                "cores": os.cpu_count(),
                "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GB),
                "architecture": platform.machine(),
                "gpu": None,
            },
            "rounds": given.rounds,
            "bytes": sizes,
            "prepare": prepare,
            "ways": ways,
            "ratios": ratios(ways)
            | {"bytes, published / opened": sizes["published"] / (sizes["bundle"] - sizes["rows"])},
            "every_round": rounds,
        }
    for line in report(results):
        print(line)
    out = given.out or (None if given.tiny else RESULTS)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], float(sys.argv[3]), Path(sys.argv[4]), Path(sys.argv[5]))
    else:
        main()
