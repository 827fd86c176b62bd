"""Qwen-Image's real shapes with random weights, on any CUDA machine: the stock pipeline and ours.

    python bench/gpu.py                      everything, in parts that fit ten minutes each
    python bench/gpu.py --part bf16 4bit     only these; earlier measurements are kept
    python bench/gpu.py --tiny --device cpu  the same code on the embedded checkpoint's sizes

Needs torch 2.10 or newer, no network and no weights. A case is on disk once its line is printed,
so that an interrupted run continues where it stopped. Both sides are built, measured and dropped in
turn, in one process and with the same weights.
"""

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "src")]  # the worker may not be installed on a CUDA machine

import torch  # noqa: E402 - the path comes first

from bench.real_shapes import job, measure, memory, ours, shapes, stock  # noqa: E402
from bench.real_shapes.job import Case  # noqa: E402
from bench.real_shapes.measure import Product  # noqa: E402
from bench.real_shapes.results import Results, table  # noqa: E402
from bench.real_shapes.shapes import Architecture  # noqa: E402
from worker import log  # noqa: E402
from worker.engine.device import limit_threads, reset_peak  # noqa: E402
from worker.engine.quantise import PRECISIONS, Precision  # noqa: E402
from worker.errors import CudaOutOfMemory  # noqa: E402
from worker.tasks.picture import PictureWish  # noqa: E402

PARTS: Final = ("ceiling", "bf16", "4bit", "8bit", "memory", "cold", "profile")
SIDES: Final = ("ours", "fused", "stock")
OUT_OF_MEMORY: Final = (CudaOutOfMemory, torch.OutOfMemoryError)


@dataclass(frozen=True, slots=True)
class Run:
    """One invocation: what to build, where, how often, until when, and where to write."""

    architecture: Architecture
    device: torch.device
    results: Results
    warmups: int
    repeats: int
    batches: tuple[int, ...]
    steps: tuple[int, ...]
    only: tuple[str, ...]
    precision: Precision
    patience_s: float
    until: float

    def say(self, text: str) -> None:
        """Print a line at once, with the seconds left."""
        print(f"[{self.until - time.monotonic():5.0f} s left] {text}", flush=True)

    @property
    def late(self) -> bool:
        """Whether no new case may start."""
        return time.monotonic() > self.until


def ceiling(run: Run) -> None:
    """Measure the matrix-multiply ceiling: a large square, and an MLP's own shape."""
    config = run.architecture.transformer
    dim = config["num_attention_heads"] * config["attention_head_dim"]
    square = 8192 if run.device.type == "cuda" else 512
    tokens = (run.architecture.small // 16) ** 2
    products = [Product(square, square, square), Product(tokens, dim, 4 * dim)]
    rates = measure.ceiling(run.device, products, repeats=run.repeats)
    run.results.put(rates, "ceiling")
    run.say(f"ceiling: {rates} TFLOP/s")


def _work(run: Run, case: Case, text_tokens: int, *, rank: int) -> float:
    """Return the floating-point operations of all denoising steps of a case."""
    config = run.architecture.transformer
    references = case.references * run.architecture.small**2
    return case.steps * measure.forward_flops(
        blocks=config["num_layers"],
        dim=config["num_attention_heads"] * config["attention_head_dim"],
        image_tokens=(case.side**2 + references) // 256,
        text_tokens=text_tokens,
        rank=rank,
        batch=case.batch,
    )


def _measured(run: Run, side: str, model: Any, case: Case, text_tokens: int) -> dict[str, Any]:
    """Return the median of several jobs after warm-up; of fewer if they are long."""
    asked = job.inputs(case)
    for _ in range(run.warmups):
        model.job(case, next(asked))
    reset_peak(run.device)
    walls: list[float] = []
    phases: list[dict[str, float]] = []
    start = time.monotonic()
    while len(walls) < run.repeats and (
        len(walls) < 2 or time.monotonic() - start < run.patience_s
    ):
        generations = next(asked)

        def work(generations: list[PictureWish] = generations) -> None:
            phases.append(model.job(case, generations))

        walls.append(measure.seconds(run.device, work))
    middle = {
        name: round(statistics.median(p.get(name, 0.0) for p in phases), 3) for name in phases[0]
    }
    work_done = _work(run, case, text_tokens, rank=0 if side == "fused" else 64)
    return {
        "median_s": round(statistics.median(walls), 4),
        "fastest_s": round(min(walls), 4),
        "slowest_s": round(max(walls), 4),
        "runs": len(walls),
        "steps": case.steps,
        "batch": case.batch,
        "text_tokens": text_tokens,
        "phases_ms": middle,
        "tflops": round(work_done / (middle["denoise"] / 1000) / 1e12, 3),
        **measure.peak(run.device),
    }


def _open_cases(run: Run, precision: Precision, side: str, *, edit: bool) -> list[Case]:
    """Return the cases of one side that are not measured yet; a fused model has one LoRA."""
    found = job.cases(
        run.architecture.small, run.architecture.large, steps=run.steps, batches=run.batches
    )
    return [
        case
        for case in found
        if case.edit == edit
        and not run.results.has("cases", f"{precision}/{case.name}", side)
        and (side != "fused" or case.steps == run.steps[0])
        and (not run.only or any(word in case.name for word in run.only))
    ]


def _models(run: Run, precision: Precision, side: str) -> Iterator[tuple[bool, Any]]:
    """Build one side's models one after the other; they share a text encoder and a VAE.

    The caller must drop a model before it takes the next, so that peaks are those of one model.
    """
    lent: ours.Lent | None = None
    for edit in (True, False):
        if run.late or not _open_cases(run, precision, side, edit=edit):
            continue
        kind = "edit" if edit else "text-to-image"
        start = time.monotonic()
        model: Any
        if side == "stock":
            model = stock.Stock(
                run.architecture,
                edit=edit,
                precision=precision,
                device=run.device,
                steps=run.steps[0],
                lent=lent,
            )
        else:
            parts = ours.components(
                run.architecture,
                edit=edit,
                precision=precision,
                device=run.device,
                fused=run.steps[0] if side == "fused" else None,
                lent=lent,
            )
            model = ours.Ours(run.architecture, parts, edit=edit, precision=precision)
            del parts
        lent = model.lent
        measure.free(run.device)
        built = {
            "seconds": round(time.monotonic() - start, 1),
            "weights_gib": measure.held(run.device),
        }
        run.results.put(built, "built", f"{precision}/{kind}/{side}")
        run.say(f"{precision} {side} {kind} built: {built}")
        yield edit, model
        del model
        measure.free(run.device)


def speed(run: Run, precision: Precision) -> None:
    """Measure every case of a precision on every side."""
    kept: dict[str, torch.Tensor] = {}
    for side in SIDES:
        for edit, model in _models(run, precision, side):
            for case in _open_cases(run, precision, side, edit=edit):
                if run.late:
                    run.say("time is up: start again with the same --out to go on")
                    return
                _one(run, precision, side, model, case)
                if precision == "bf16" and case.batch == 1 and case.name in _compared(run):
                    _compare(run, case, side, model, kept)
            del model


def _one(run: Run, precision: Precision, side: str, model: Any, case: Case) -> None:
    """Measure one case on one side and write the result."""
    name, task = f"{precision}/{case.name}", case.name.partition("/")[0]
    try:
        if side != "stock" and not run.results.has("text_tokens", task):
            first = next(job.inputs(case))[0]
            run.results.put(model.text_tokens(first), "text_tokens", task)
        tokens = run.results.held.get("text_tokens", {}).get(task, 0)
        result = _measured(run, side, model, case, tokens)
    except OUT_OF_MEMORY:
        result = {"error": "out of memory"}
    run.results.put(result, "cases", name, side)
    run.say(f"{name} {side}: {result.get('median_s', result.get('error'))} s")


def _compared(run: Run) -> set[str]:
    """Name the case in which both sides compute the same: edits differ in the VL positions."""
    return {Case(run.architecture.small, 0, run.steps[0]).name}


def _compare(run: Run, case: Case, side: str, model: Any, kept: dict[str, torch.Tensor]) -> None:
    """Compare ours with the stock pipeline: same weights, so same latents except rounding."""
    if side == "fused":
        return
    latents = model.make_latents(next(job.inputs(case, itertools.count(1)))).float().cpu()
    if side == "ours":
        kept[case.name] = latents
    elif case.name in kept:
        difference = (latents - kept[case.name]).norm() / latents.norm()
        result = {"relative_difference": float(difference)}
        result["finite"] = bool(latents.isfinite().all())
        run.results.put(result, "same", f"bf16/{case.name}")
        run.say(f"ours against stock, same weights: {result}")


def caps(run: Run) -> None:
    """Show what fits on a card of 16 GB and on one of 24 GB in 4bit."""
    for card in memory.CARDS:
        if run.late or run.results.has("memory", card.name):
            continue
        result = memory.fits(run.architecture, card, "4bit", run.device)
        run.results.put(result, "memory", card.name)
        run.say(f"{card.name}: {result}")
        measure.free(run.device)


def cold(run: Run) -> None:
    """Prepare a bundle from shards made on the fly, open it from disk, draw a picture."""
    from bench.real_shapes import cold as starts  # noqa: PLC0415 - it needs more packages

    precision: Precision = "4bit"
    if not run.results.has("cold", precision):
        result = starts.start(run.architecture, precision, run.device, run.say)
        run.results.put(result, "cold", precision)
        run.say(f"cold start: {result}")


def profile(run: Run, precision: Precision) -> None:
    """Show where one edit's time goes, kernel by kernel, to guide changes for speed."""
    edit = Case(run.architecture.small, 1, run.steps[0])
    parts = ours.components(run.architecture, edit=True, precision=precision, device=run.device)
    model = ours.Ours(run.architecture, parts, edit=True, precision=precision)
    asked = job.inputs(edit)
    model.job(edit, next(asked))
    run.results.put(measure.kernels(run.device, lambda: model.job(edit, next(asked))), "profile")
    run.say(f"profile of {precision}/{edit.name}, milliseconds and calls:")
    for name, kernel in run.results.held["profile"].items():
        print(f"{kernel['ms']:10.2f} {kernel['calls']:6d}  {name[:120]}", flush=True)


def carry_out(run: Run, part: str) -> None:
    """Carry out one part."""
    run.say(f"part {part}")
    match part:
        case "ceiling":
            ceiling(run)
        case "bf16" | "4bit" | "8bit":
            speed(run, part)
        case "memory":
            caps(run)
        case "cold":
            cold(run)
        case "profile":
            profile(run, run.precision)
    measure.free(run.device)


def main() -> None:
    """Read the command line, measure, print the table."""
    parser = argparse.ArgumentParser(description="Real shapes with random weights: stock and ours.")
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="the embedded checkpoint's sizes")
    parser.add_argument("--minutes", type=float, default=8.0, help="start no case after this many")
    parser.add_argument("--repeats", type=int, help="default 5; 1 with --tiny")
    parser.add_argument("--warmups", type=int, help="default 2; 0 with --tiny")
    parser.add_argument("--batch", type=int, nargs="+", help="default 1 2 4; 1 with --tiny")
    parser.add_argument(
        "--steps", type=int, nargs="+", choices=ours.STEPS, help="4 8; 4 with --tiny"
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="only these cases")
    parser.add_argument("--precision", choices=PRECISIONS, default="bf16", help="for part profile")
    parser.add_argument("--out", type=Path, help="default: bench/results/gpu-DEVICE.json")
    parser.add_argument("--again", action="store_true", help="discard earlier measurements")
    given = parser.parse_args()
    # --tiny shows that everything runs, in a minute on two cores; its times mean nothing
    usual: dict[str, Any] = {"repeats": 5, "warmups": 2, "batch": [1, 2, 4], "steps": [4, 8]}
    quick: dict[str, Any] = {"repeats": 1, "warmups": 0, "batch": [1], "steps": [4]}
    for name, value in (quick if given.tiny else usual).items():
        if getattr(given, name) is None:
            setattr(given, name, value)
    device = torch.device(given.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no CUDA device here; --tiny --device cpu runs the same code on a CPU")
    if device.type == "cuda":
        device = torch.device("cuda", torch.cuda.current_device())
    limit_threads(device)
    log.configure("WARNING")
    architecture = shapes.tiny() if given.tiny else shapes.full()
    facts = measure.machine(device)
    slug = "".join(c if c.isalnum() else "-" for c in str(facts["device"]).lower())
    default = ROOT / "bench" / "results" / f"gpu-{slug}.json"
    if given.tiny:
        default = ROOT / "out" / "gpu-tiny.json"
    results = Results(given.out or default, again=given.again)
    results.put({**facts, "architecture": architecture.name}, "machine")
    run = Run(
        architecture=architecture,
        device=device,
        results=results,
        warmups=given.warmups,
        repeats=given.repeats,
        batches=tuple(given.batch),
        steps=tuple(given.steps),
        only=tuple(given.only),
        precision=given.precision,
        patience_s=20.0,
        until=time.monotonic() + given.minutes * 60,
    )
    for part in given.part:
        if run.late:
            run.say(f"no time left for {part}: start again with the same --out to go on")
            continue
        carry_out(run, part)
    print(table(results.held))
    print(f"written to {results.path}")


if __name__ == "__main__":
    main()
