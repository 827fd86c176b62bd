"""Evaluate the embedded FLUX.2: the share of pictures that are right, by the worker's own engine.

    python -m training.tiny.flux.evaluate [--count 200] [--precision 4bit]

The cases, the checker and the begun pictures are those of the embedded Qwen-Image. Beyond them the
weights of two references are judged: the heavier one is what a picture must show.
"""

import argparse
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any, Final

from PIL import Image

from training.tiny import begun, evaluate, phrases, world
from training.tiny.cases import PROMPT_SEED, Case, edits, exchanges, prompts
from training.tiny.flux.words import LIKE
from worker import boot, settings
from worker.seam import Model

WAY: Final = "base-4-plain"  # four steps without CFG: how a distilled model is served
BAR: Final = 0.95  # of held-out cases: the least share right of every gate
GATES: Final[Mapping[str, Mapping[str, float]]] = {
    "prompt": dict.fromkeys((*phrases.PARTS, "all five"), BAR),
    "edit": dict.fromkeys((*(f"asked {part}" for part in phrases.PARTS), "rest kept"), BAR),
    "two references": {"all five": BAR},
    "weighed references": {"all five": BAR},
}
# klein's schedule is shifted by 7, Lightning's by 3: this has as much noise, a quarter, as its 0.1.
STAYS: Final[Mapping[float, bool]] = {0.045: True, 0.8: False}
WEIGHTS: Final = ((2.0, 0.5), (0.5, 2.0))
Weighed = tuple[Case, tuple[float, float]]


def weigh(count: int, seed: int) -> Iterator[Weighed]:
    """Yield pairs of references that share no part, weighed one way and then the other.

    The words, the references and the noise of both are equal, and one of the two scenes is held
    out: only the weights say which is to be shown.
    """
    rng = random.Random(seed)
    while count > 0:
        scenes = [world.random_scene(rng, held_out=held) for held in (False, True)]
        rng.shuffle(scenes)
        if any(a == b for a, b in zip(*map(astuple, scenes), strict=True)):
            continue
        drawn = tuple(world.draw(scene, world.random_jitter(rng)) for scene in scenes)
        words = rng.choice(LIKE)
        for scene, weights in zip(scenes, WEIGHTS, strict=True):
            yield Case("weighed references", words, drawn, scene, "all", 7000 + count), weights
        count -= 2


def make(model: Model, case: Case, weights: tuple[float, ...] = ()) -> Image.Image:
    """Return a case's picture by the engine."""
    return evaluate.draw(model, case.prompt, case.references, case.seed, WAY, (), weights)


def run(model: Model, weighed: Sequence[tuple[Case, tuple[float, ...]]], out: Path) -> int:
    """Make the cases of one kind, each with its references' weights; return the gates missed."""
    start = time.monotonic()
    drawn = [make(model, case, weights) for case, weights in weighed]
    each = (time.monotonic() - start) / len(weighed)
    cases = [case for case, _ in weighed]
    result = evaluate.tell("4 steps", cases, drawn, each)
    kind = cases[0].kind
    evaluate.sheet(cases, {WAY: drawn}, out / f"{kind.replace(' ', '-')}.png")
    return evaluate.gate(kind, result, GATES[kind])


def opened(folder: Path, precision: str, home: Path) -> Model:
    """Open the checkpoint as a worker would."""
    chosen = {
        "MODEL": str(folder.resolve()),
        "MODEL_DIR": str(home),
        "PRECISION_MODE": precision,
        "LOG_LEVEL": "ERROR",
    }
    models: Any = boot.boot(settings.read(chosen))
    (served,) = models.served
    model: Model = models.take(served.id)
    return model


def main() -> None:
    """Print the accuracy table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("checkpoints/tiny/flux"))
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--out", type=Path, default=Path("out/eval-flux"))
    options = parser.parse_args()
    model = opened(options.folder, options.precision, options.out / "models")
    count, out = options.count, options.out
    plain = (prompts(count, PROMPT_SEED), edits(count, 12), exchanges(count // 4, 13))
    missed = sum(run(model, [(case, ()) for case in cases], out) for cases in plain)
    missed += run(model, list(weigh(count // 2, 15)), out)
    models, schedules = {"image": model, "edit": model}, {"4 steps": evaluate.WAYS[WAY]}
    missed += begun.run(models, count, schedules, "4 steps", out, STAYS)
    print(f"{missed} of {sum(map(len, GATES.values())) + len(begun.GATES)} gates not met")


if __name__ == "__main__":
    main()
