"""How far each precision's pictures are from the bf16 pipeline's, in dB, over many prompts.

    python bench/quality.py              96 prompts on the embedded checkpoint, 8 and 4 steps
    python bench/quality.py --prompts 4  a quick look

The reference is the stock pipeline in bf16 with the Lightning LoRA loaded by diffusers. Every other
way makes the same pictures from the same seeds:

    bf16          our bundle: modulation rows, LoRA as adapter
    8bit          our bundle: int8 weights, rows in bf16, LoRA as adapter
    4bit          our bundle: NF4 weights, rows in bf16, LoRA as adapter
    4bit fused    our bundle with the LoRA baked into bf16 before quantising
    usual         the usual recipe: NF4 of everything except block 0's img_mod, LoRA as adapter

PSNR is 10 log10(255^2 / mean squared error) over a picture's RGB values, capped at 99 dB where
pictures are equal. The figures mean something only for a trained checkpoint.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

import numpy as np  # noqa: E402 - the path comes first
import torch  # noqa: E402 - the same
from PIL import Image  # noqa: E402 - the same

from bench import pictures  # noqa: E402 - the same
from training.tiny.cases import prompts  # noqa: E402 - the same
from worker import settings  # noqa: E402 - the same
from worker.bundle.plan import Order  # noqa: E402 - the same
from worker.bundle.prepare import prepare  # noqa: E402 - the same
from worker.engine.quantise import Precision  # noqa: E402 - the same
from worker.families.catalogue import CATALOGUE  # noqa: E402 - the same
from worker.families.qwen_image.opening import open_bundle  # noqa: E402 - the same
from worker.families.qwen_image.recipe import RECIPE  # noqa: E402 - the same
from worker.weights.meaning import find_checkpoints  # noqa: E402 - the same
from worker.weights.snapshot import LocalSnapshot  # noqa: E402 - the same

RESULTS: Final = ROOT / "bench" / "results" / "quality.json"
SPEC: Final = CATALOGUE.find_row("tiny-image")
FOLDER: Final = find_checkpoints() / str(SPEC.embedded)
CPU: Final = torch.device("cpu")
SIDE: Final = 96
EQUAL_DB: Final = 99.0
OURS: Final[Mapping[str, tuple[Precision, bool]]] = {
    "bf16": ("bf16", False),
    "8bit": ("8bit", False),
    "4bit": ("4bit", False),
    "4bit fused": ("4bit", True),
}
Draw = Callable[[str, int], Image.Image]


def psnr(ours: Image.Image, theirs: Image.Image) -> float:
    """Return the peak signal-to-noise ratio of two RGB pictures in dB, at most 99."""
    pair = [np.asarray(image.convert("RGB"), dtype=np.float64) for image in (ours, theirs)]
    error = float(np.mean((pair[0] - pair[1]) ** 2))
    return EQUAL_DB if error == 0 else min(EQUAL_DB, float(10 * np.log10(255**2 / error)))


def stock(steps: int, *, quantised: bool) -> Draw:
    """Return the stock pipeline with the LoRA by peft, in bf16 or by the usual recipe."""
    pipeline: Any = pictures.loaded(FOLDER)
    if quantised:
        pictures.quantised(pipeline)
    pictures.with_lora(pipeline, FOLDER / SPEC.lightning[steps].filename)
    return lambda prompt, seed: pictures.theirs(pipeline, prompt, SIDE, steps, seed)


def bundle(home: Path, precision: Precision, steps: int, *, fused: bool) -> Draw:
    """Return our engine with a bundle prepared for it."""
    snapshot = LocalSnapshot(FOLDER, SPEC.repository)
    folder = prepare(
        Order(
            SPEC,
            RECIPE,
            snapshot,
            precision,
            settings.read({}),
            CPU,
            home,
            home / "downloads",
            lightning={steps: (snapshot, SPEC.lightning[steps].filename)},
            fused=steps if fused else None,
        )
    )
    engine = pictures.engine(open_bundle(folder, CPU), SIDE, steps)
    return lambda prompt, seed: pictures.ours(engine, prompt, SIDE, steps, seed)


def summary(values: Sequence[float]) -> dict[str, float]:
    """Return statistics of the PSNR of one way over the prompts, in dB."""
    ranked = sorted(values)
    return {
        "mean": statistics.fmean(values),
        "median": statistics.median(values),
        "worst tenth": statistics.fmean(ranked[: max(1, len(ranked) // 10)]),
        "equal": sum(value == EQUAL_DB for value in values) / len(values),
    }


def compared(steps: int, asked: Sequence[tuple[str, int]]) -> dict[str, Any]:
    """Draw every prompt in every way and return the PSNR of each against the reference."""
    draw = stock(steps, quantised=False)
    reference = [draw(*one) for one in asked]
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        ways: dict[str, Callable[[], Draw]] = {
            name: partial(bundle, Path(scratch) / name, precision, steps, fused=fused)
            for name, (precision, fused) in OURS.items()
        }
        ways["usual"] = partial(stock, steps, quantised=True)
        for name, made in ways.items():
            draw = made()
            found[name] = [psnr(draw(*o), r) for o, r in zip(asked, reference, strict=True)]
            print(f"{steps} steps, {name}: {statistics.fmean(found[name]):.2f} dB", flush=True)
    usual = found["usual"]
    return {
        name: summary(values)
        | {
            "better than usual": sum(a > b for a, b in zip(values, usual, strict=True))
            / len(usual),
            "mean gain": statistics.fmean(a - b for a, b in zip(values, usual, strict=True)),
        }
        for name, values in found.items()
    }


def main() -> None:
    """Compare all ways at 8 and 4 steps, print a table and write the results."""
    parser = argparse.ArgumentParser(description="PSNR of every precision")
    parser.add_argument("--prompts", type=int, default=96)
    parser.add_argument("--out", type=Path, default=None, help="where to write results, as JSON")
    given = parser.parse_args()
    asked = [(case.prompt, case.seed) for case in prompts(given.prompts, seed=11)]
    by_steps = {str(steps): compared(steps, asked) for steps in (8, 4)}
    results = {"checkpoint": SPEC.name, "prompts": len(asked), "side": SIDE, "steps": by_steps}
    columns = ("mean", "median", "worst tenth", "equal", "better than usual", "mean gain")
    for steps, ways in by_steps.items():
        print(" ".join(f"{name:>18}" for name in (f"{steps} steps, dB", *columns)))
        for way, figures in ways.items():
            cells = (f"{figures[column]:18.2f}" for column in columns)
            print(" ".join((f"{way:>18}", *cells)))
    out = given.out or (RESULTS if len(asked) >= 64 else None)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
