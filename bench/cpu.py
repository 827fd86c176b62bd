"""The embedded models on a CPU, through the worker and as users of diffusers run them.

    python bench/cpu.py [--json bench/results/cpu.json] [--repeats 20] [--only 4bit/edit]

A job of the worker goes from RunPod's dict to its reply, as a door hands it in. The stock one is
what users write: from_pretrained, the Lightning LoRA by peft, in 4bit a Linear4bit of bitsandbytes
for each Linear but the first block's img_mod; base64 -> pipeline -> PNG -> base64, and all pictures
of a job in one call (num_images_per_prompt). The two sides take turns, with one thread each, and
no prompt or reference comes twice. `phases` are the milliseconds of one stage, the same on both
sides; what is left of a job is `rest`. Batches are the operator's choice, so that `together` is a
worker with BATCH_SIZE=4, and both are compared with the same stock job.

`cold` is from the start of a process to its first picture, each side in a process of its own with
its files in the page cache. `text` includes the references.
"""

import argparse
import asyncio
import base64
import io
import itertools
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

import torch  # noqa: E402 - the path comes first
from diffusers import (  # noqa: E402 - the same
    FlowMatchEulerDiscreteScheduler,
    QwenImageEditPlusPipeline,
    QwenImagePipeline,
)
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as edit_plus  # noqa: E402 - the same
from PIL import Image  # noqa: E402 - the same

from bench import pictures  # noqa: E402 - the same
from bench.real_shapes.job import draw_reference  # noqa: E402 - the same
from bench.storm import name_cpu  # noqa: E402 - the same
from worker import boot, log, settings  # noqa: E402 - the same
from worker.doors.runpod.wire import Handler, make_handler  # noqa: E402 - the same
from worker.families.catalogue import CATALOGUE  # noqa: E402 - the same
from worker.families.qwen_image.lightning import LIGHTNING  # noqa: E402 - the same
from worker.jobs.serve import Worker  # noqa: E402 - the same
from worker.weights.meaning import find_checkpoints  # noqa: E402 - the same

MODELS: Final = {"image": "tiny-image", "edit": "tiny-edit"}
PIPELINES: Final = {"image": QwenImagePipeline, "edit": QwenImageEditPlusPipeline}
PRECISIONS: Final = ("bf16", "4bit")
STEPS: Final = (8, 4)
COUNTS: Final = (1, 4)
SIDE: Final = 96
COLD_ROUNDS: Final = 3
NUMBERS: Final = itertools.count(10_000)  # five digits: as many tokens each


@dataclass(frozen=True, slots=True)
class Kind:
    """What a job asks for."""

    task: str
    steps: int
    count: int

    @property
    def name(self) -> str:
        """Name it as the results do."""
        return f"{self.task}/{self.steps}/{self.count}"


KINDS: Final = [Kind(t, s, c) for t in MODELS for s in STEPS for c in COUNTS]


def make_input(kind: Kind, number: int) -> dict[str, Any]:
    """Return the input of a job that no cache has seen; all prompts have as many tokens."""
    job: dict[str, Any] = {
        "prompt": f"a large red circle on a blue background, number {number:05d}",
        "seed": number,
        "steps": kind.steps,
        "num_images": kind.count,
        "size": f"{SIDE}x{SIDE}",
    }
    if kind.task == "edit":
        file = io.BytesIO()
        draw_reference(SIDE, number).save(file, "PNG")
        job["image"] = base64.b64encode(file.getvalue()).decode()
    return job


class Phases:
    """Milliseconds by stage of one job of the stock pipeline, by wrapping its parts."""

    def __init__(self, pipeline: Any) -> None:
        self.spent: dict[str, float] = {}
        pipeline.encode_prompt = self._timed("text", pipeline.encode_prompt)
        pipeline.vae.encode = self._timed("reference", pipeline.vae.encode)
        pipeline.vae.decode = self._timed("decode", pipeline.vae.decode)
        pipeline.transformer.forward = self._timed("denoise", pipeline.transformer.forward)

    def _timed(self, phase: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            with self.measure(phase):
                return work(*arguments, **named)

        return wrapped

    @contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        """Add what the block takes to a phase."""
        start = time.perf_counter()
        yield
        self.spent[phase] = self.spent.get(phase, 0.0) + (time.perf_counter() - start) * 1000


class Stock:
    """A stock pipeline with one Lightning LoRA, and a simple handler around it."""

    def __init__(self, task: str, precision: str, steps: int) -> None:
        spec = CATALOGUE.find_row(MODELS[task])
        folder = find_checkpoints() / str(spec.embedded)
        # what the embedded model was trained with; the pipeline reads them at call time
        edit_plus.CONDITION_IMAGE_SIZE = edit_plus.VAE_IMAGE_SIZE = SIDE * SIDE
        pipe: Any = PIPELINES[task].from_pretrained(folder, dtype=torch.bfloat16)
        pipe.scheduler = FlowMatchEulerDiscreteScheduler.from_config(dict(LIGHTNING))
        if precision == "4bit":
            pictures.quantised(pipe)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pictures.with_lora(pipe, folder / spec.lightning[steps].filename)
        pipe.set_progress_bar_config(disable=True)
        self.pipeline, self.phases = pipe, Phases(pipe)

    def handle(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Do a job as a simple handler does."""
        self.phases.spent.clear()
        given: dict[str, Any] = {}
        if "image" in job:
            picture = Image.open(io.BytesIO(base64.b64decode(job["image"]))).convert("RGB")
            given["image"] = [picture]
        images = self.pipeline(
            prompt=job["prompt"],
            width=SIDE,
            height=SIDE,
            num_inference_steps=job["steps"],
            true_cfg_scale=1.0,
            num_images_per_prompt=job["num_images"],
            generator=torch.Generator("cpu").manual_seed(job["seed"]),
            **given,
        ).images
        with self.phases.measure("file"):
            texts = []
            for image in images:
                file = io.BytesIO()
                image.save(file, "PNG")
                texts.append(base64.b64encode(file.getvalue()).decode())
        return {"images": [{"base64": text} for text in texts]}


def start_worker(home: Path, precision: str, task: str, **environ: str) -> Handler:
    """Return a started worker that serves one model with both LoRAs."""
    given = settings.read(
        {
            "MODEL": MODELS[task],
            "MODEL_DIR": str(home),
            "PRECISION_MODE": precision,
            "LIGHTNING_STEPS": "8,4",
            "MIN_STORAGE_FREE_GB": "0",
            **environ,
        }
    )
    return make_handler(Worker(given, boot.boot(given)).handle, given)


class Loop:
    """A worker's handler in an event loop that stays from job to job."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._runner = asyncio.Runner()

    def close(self) -> None:
        """End the loop, and what waits in it."""
        self._runner.close()

    def handle(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Do a job; raise RuntimeError when it fails."""

        async def answer_job() -> dict[str, Any]:
            return await self._handler({"id": str(job["seed"]), "input": dict(job)})

        answer = self._runner.run(answer_job())
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer


def measure_kind(kind: Kind, sides: Mapping[str, Any], repeats: int) -> dict[str, Any]:
    """Return the medians of a kind of job on every side, which take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    phases: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for repeat in range(repeats + 1):
        for name, side in sides.items():
            job = make_input(kind, next(NUMBERS))
            start = time.perf_counter()
            answer = side.handle(job)
            spent = time.perf_counter() - start
            if len(answer["images"]) != kind.count:
                raise RuntimeError(f"{len(answer['images'])} pictures instead of {kind.count}")
            if repeat:  # the first of each loads what a process loads once
                seconds[name].append(spent)
                own = side.phases.spent if isinstance(side, Stock) else answer["timings_ms"]
                phases[name].append(sum_up(own, spent * 1000))
    stock = statistics.median(seconds["stock"])
    return {
        name: {
            "median_ms": round(statistics.median(each) * 1000, 1),
            "stock_by_it": round(stock / statistics.median(each), 2),
            "phases_ms": {
                phase: round(statistics.median(one.get(phase, 0.0) for one in phases[name]), 1)
                for phase in phases[name][0]
            },
        }
        for name, each in seconds.items()
    }


def sum_up(spent: Mapping[str, float], total: float) -> dict[str, float]:
    """Return a job's phases, with what is in none of them as `rest`."""
    known = {"text": ("text", "reference"), "denoise": ("denoise",), "decode": ("decode",)}
    phases = {name: sum(spent.get(phase, 0.0) for phase in parts) for name, parts in known.items()}
    return phases | {"rest": total - sum(phases.values())}


def start_cold(way: str, home: str) -> None:
    """Make a first picture in this process."""
    job = make_input(Kind("image", 8, 1), 20_000)
    if way == "worker":
        loop = Loop(start_worker(Path(home), "bf16", "image", LIGHTNING_STEPS="8"))
        loop.handle(job)
        loop.close()
    else:
        torch.set_num_threads(1)
        Stock("image", "bf16", 8).handle(job)


def measure_cold(home: Path, rounds: int) -> dict[str, Any]:
    """Return the seconds of each side from the start of its process to its end."""
    seconds: dict[str, list[float]] = {"stock": [], "worker": []}
    for round_ in range(rounds + 1):
        for way, each in seconds.items():
            command = [sys.executable, __file__, "--cold", way, str(home)]
            start = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            if round_:  # the first fills the page cache, and prepares the bundle
                each.append(time.perf_counter() - start)
    medians = {way: statistics.median(each) for way, each in seconds.items()}
    return {
        "stock_s": round(medians["stock"], 2),
        "worker_s": round(medians["worker"], 2),
        "stock_by_it": round(medians["stock"] / medians["worker"], 2),
    }


def measure(repeats: int, only: str, rounds: int) -> dict[str, Any]:
    """Measure every case whose name holds `only`, precision by precision."""
    results: dict[str, Any] = {
        "machine": {
            "cpu": name_cpu(),
            "threads": 1,
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        "repeats": repeats,
        "cases": {},
    }
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        for precision in PRECISIONS:
            for task in MODELS:
                chosen = [k for k in KINDS if k.task == task and only in f"{precision}/{k.name}"]
                if not chosen:
                    continue
                alone = Loop(start_worker(home, precision, task))
                together = Loop(start_worker(home, precision, task, BATCH_SIZE="4"))
                stock = {s: Stock(task, precision, s) for s in {k.steps for k in chosen}}
                for kind in chosen:
                    sides = {"stock": stock[kind.steps], "worker": alone}
                    if kind.count > 1:
                        sides["together"] = together
                    found = measure_kind(kind, sides, repeats)
                    results["cases"][f"{precision}/{kind.name}"] = found
                    print(f"{precision}/{kind.name}: {json.dumps(found)}", flush=True)
                alone.close()
                together.close()
        if rounds and not only:
            results["cold"] = measure_cold(home, rounds)
            print(f"cold: {results['cold']}", flush=True)
    return results


def main() -> None:
    """Measure and print, or be one side of a cold start."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="where the figures go too")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=COLD_ROUNDS, help="cold starts of each side")
    parser.add_argument("--only", default="", help="cases whose names hold this")
    parser.add_argument("--cold", nargs=2, metavar=("WAY", "HOME"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    log.configure("ERROR")
    if given.cold:
        start_cold(*given.cold)
        return
    found = measure(given.repeats, given.only, given.rounds)
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
