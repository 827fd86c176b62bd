"""What a job's LoRA takes before its first step: the worker against diffusers' loader.

    python -m bench.lora [--runs 7] [--out bench/results/lora.json]

The model has the published number of blocks and modules, 60 and 840, at the widths of the embedded
one, whose trained blocks are repeated: what is measured is the work per module and per file. The
LoRA has rank 16 in all of them, and lies on a loopback hub. The worker's seconds are those of
fetching, reading, attaching, switching and computing its modulation rows for 8 steps: cold (nothing
is here), cached (its file is), warm (the last job but one had it). diffusers' are those of
load_lora_weights of the file and unload_lora_weights. They take turns, so that anything else on the
machine affects both; the medians count. A job is 8 steps of one picture without CFG. The exit
status is 1 where a warm LoRA adds more than a hundredth of a job.
"""

import argparse
import asyncio
import gc
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import torch
from diffusers import QwenImagePipeline, QwenImageTransformer2DModel
from diffusers.utils import logging as diffusers_logging

from worker import boot, log, settings
from worker.loras.fetching import LoraFetcher
from worker.loras.origin import HubFile, LoraSource
from worker.loras.ready import ReadyLora
from worker.seam import Unheard, take_made
from worker.tasks.picture import PictureWish
from worker.weights.meaning import find_checkpoints
from worlds.hub import Hub
from worlds.loras import FORMS, RANK, random_pairs, write_form

BLOCKS: Final = 60
REPEATED: Final = 4  # times the rank of a test's LoRA: 16
MODULES: Final = (
    *(f"attn.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0", "to_add_out")),
    *(f"attn.add_{name}_proj" for name in "qkv"),
    *(f"{stream}_mlp.net.{layer}" for stream in ("img", "txt") for layer in ("0.proj", "2")),
    *("img_mod.1", "txt_mod.1"),
)
RESULTS: Final = Path(__file__).parent / "results" / "lora.json"
WARM_SHARE: Final = 0.01  # of a job: the most that a LoRA may take that an earlier job had
WISH: Final = PictureWish(
    task="text-to-image",
    prompt="a large red star on a blue background, on the left",
    negative_prompt=None,
    references=(),
    width=96,
    height=96,
    steps=8,
    true_cfg_scale=1.0,
    lightning=False,
    seed=7,
)


def write_model(folder: Path) -> Any:
    """Write the embedded model with its blocks repeated to BLOCKS, and return its transformer."""
    source = find_checkpoints() / "tiny" / "image"
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("lightning", "transformer"))
    trained: Any = QwenImageTransformer2DModel.from_pretrained(source / "transformer")
    config = {**trained.config, "num_layers": BLOCKS}
    deep: Any = QwenImageTransformer2DModel.from_config(config)
    state = dict(trained.state_dict())
    own = len(trained.transformer_blocks)
    for block in range(BLOCKS):
        for name, tensor in trained.transformer_blocks[block % own].state_dict().items():
            state[f"transformer_blocks.{block}.{name}"] = tensor
    deep.load_state_dict(state)
    deep.to(torch.bfloat16).save_pretrained(folder / "transformer")
    return deep


class Worker:
    """The worker's model, and what brings its LoRAs here."""

    def __init__(self, folder: Path, home: Path, hub: Hub) -> None:
        self.settings = settings.read(
            {
                "MODEL": str(folder),
                "MODEL_DIR": str(home),
                "HF_ENDPOINT": hub.endpoint,
                "MIN_STORAGE_FREE_GB": "0",
                "LOG_LEVEL": "ERROR",
            }
        )
        models: Any = boot.boot(self.settings)
        self.model: Any = models.take(models.served[0].id)
        self.fetcher = LoraFetcher(self.settings)
        self.source = LoraSource("style", HubFile("org/style"), 1.0, is_callers=True)

    def fetch(self) -> ReadyLora:
        """Return the LoRA, its file on this machine."""

        async def obtain() -> ReadyLora:
            async with self.fetcher.obtain([self.source]) as ready:
                return ready[0]

        return asyncio.run(obtain())

    def prepare(self) -> None:
        """Have the LoRA in use and its rows computed, as before the first step of a job."""
        self.model._loras.use(None, (self.fetch(),))  # noqa: SLF001 - what a job does first
        self.model._parts.modulation.load(self.timesteps)  # noqa: SLF001 - the same

    def leave(self) -> None:
        """Make a job without it: it stays attached."""
        self.draw()

    def forget(self) -> None:
        """Drop it from the device."""
        self.model._loras.use(None, ())  # noqa: SLF001 - what running out of memory does
        self.model._loras.forget()  # noqa: SLF001 - the same
        self.model._parts.modulation._kept_adapted.clear()  # noqa: SLF001 - the same
        self.model._parts.modulation._loaded = None  # noqa: SLF001 - the same

    def draw(self, *loras: ReadyLora) -> None:
        """Make a picture, and keep its timesteps."""
        modulation = self.model._parts.modulation  # noqa: SLF001 - to see its timesteps
        stock = modulation.load

        def load(timesteps: torch.Tensor) -> None:
            self.timesteps = timesteps
            stock(timesteps)

        modulation.load = load
        try:
            for made in self.model.make([replace(WISH, loras=loras)], [Unheard()]):
                take_made(made)
        finally:
            modulation.load = stock


def measure(work: Callable[[], object]) -> float:
    """Return the seconds of some work."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def run(runs: int) -> dict[str, Any]:
    """Measure everything in turns and return the medians."""
    found: dict[str, list[float]] = {}

    def note(name: str, work: Callable[[], object]) -> None:
        gc.collect()  # what another way left is not this one's to clean
        found.setdefault(name, []).append(measure(work))

    with tempfile.TemporaryDirectory() as name:
        folder, home = Path(name) / "model", Path(name) / "home"
        deep = write_model(folder)
        modules = [f"transformer_blocks.{n}.{one}" for n in range(BLOCKS) for one in MODULES]
        file = Path(name) / "style.safetensors"
        pairs = random_pairs(deep, modules, 1, 0.02)
        wide = {
            key: (a.repeat(REPEATED, 1).bfloat16(), b.repeat(1, REPEATED).bfloat16())
            for key, (a, b) in pairs.items()
        }
        write_form(wide, 1.0, FORMS["fal"], file)
        hub = Hub()
        hub.add("org/style", {"style.safetensors": file.read_bytes()})
        hub.start()
        try:
            worker = Worker(folder, home, hub)
            pipeline: Any = QwenImagePipeline.from_pretrained(folder, dtype=torch.bfloat16)
            worker.draw()
            for _ in range(runs):
                shutil.rmtree(home / "loras", ignore_errors=True)
                worker.forget()
                worker.fetcher = LoraFetcher(worker.settings)
                note("cold", worker.prepare)
                worker.forget()
                note("cached", worker.prepare)
                lora = worker.fetch()
                note("job with it", partial(worker.draw, lora))
                note("job", worker.leave)
                note("warm", worker.prepare)
                note("diffusers load", lambda: pipeline.load_lora_weights(file, adapter_name="a"))
                note("diffusers unload", pipeline.unload_lora_weights)
        finally:
            hub.stop()
        size = file.stat().st_size
    return {
        "machine": {
            "cpu": read_cpu(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "diffusers": version("diffusers"),
            "peft": version("peft"),
        },
        "runs": runs,
        "modules": len(modules),
        "rank": RANK * REPEATED,
        "file_bytes": size,
        "seconds": {name: round(statistics.median(values), 4) for name, values in found.items()},
    }


def read_cpu() -> str:
    """Return the name of the processor."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def main() -> int:
    """Measure, print and write; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    os.environ.setdefault("NO_PROXY", "127.0.0.1,localhost")
    warnings.simplefilter("ignore")
    diffusers_logging.set_verbosity_error()
    log.configure("ERROR")
    results = run(given.runs)
    print(json.dumps(results, indent=1))
    given.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    seconds = results["seconds"]
    if (share := seconds["warm"] / seconds["job"]) > WARM_SHARE:
        print(f"a warm LoRA adds {share:.1%} of a job, more than {WARM_SHARE:.0%}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
