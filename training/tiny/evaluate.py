"""Evaluate the tiny checkpoint by the pixels that the worker's own engine makes.

    python -m training.tiny.evaluate [--folder checkpoints/tiny] [--count 200] [--out out/eval]

Seen and held-out combinations are reported apart; the checker does not know how scenes are drawn.
The style LoRA is evaluated on prompts: whether the picture is framed, and right within its frame.
What begins from a picture is in begun.py.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from training.tiny import begun, checker, frames, style, world
from training.tiny.cases import PROMPT_SEED, Case, edits, exchanges, prompts, rates
from worker import boot, settings
from worker.loras.ready import ReadyLora
from worker.media.picture import Picture
from worker.seam import Model, Unheard, take_made
from worker.tasks.picture import PictureWish

WAYS: Final = {  # name: (lightning, steps, true CFG)
    "teacher": (False, 40, 4.0),
    "base-4": (False, 4, 4.0),
    "base-4-plain": (False, 4, 1.0),  # as many passes as the LoRA's
    "lightning-4": (True, 4, 1.0),
    "lightning-8": (True, 8, 1.0),
}
EQUAL_PASSES: Final = ("lightning-4", "base-4-plain")  # the first must halve the other's error
GATES: Final = {  # of held-out cases in lightning-8: the least share right
    "prompt": {
        "colour": 0.98,
        "background": 0.98,
        "position": 0.98,
        "size": 0.95,
        "shape": 0.90,
        "all five": 0.85,
    },
    "edit": {
        "asked colour": 0.95,
        "asked background": 0.95,
        "asked position": 0.95,
        "asked size": 0.95,
        "asked shape": 0.85,
        "rest kept": 0.85,
    },
    "two references": {"all five": 0.80},
}
GATED: Final = "lightning-8"
STYLE_WAYS: Final = {  # name: (way, scale)
    "base-4, framed": ("base-4", 1.0),
    "lightning-4, framed": ("lightning-4", 1.0),
    "lightning-8, framed": ("lightning-8", 1.0),
    "lightning-8, half framed": ("lightning-8", 0.5),
}
STYLE_GATE: Final = 0.95  # of held-out cases in every way: the least share framed, and right within
STRONG_FRAME: Final = 0.75  # of a full frame: the least at scale 1
WEAK_FRAME: Final = 0.95  # of a full frame: the most below scale 1
HALF_FRAME: Final = (0.3, 0.7)  # of a full frame: the mean of the cases at half strength
HALF: Final = "mean strength"
SHOWN: Final = 8  # rows of the contact sheet


def draw(
    model: Model,
    prompt: str,
    references: tuple[Image.Image, ...],
    seed: int,
    way: str,
    loras: tuple[ReadyLora, ...] = (),
    weights: tuple[float, ...] = (),
) -> Image.Image:
    """Return one picture by the engine, at the checkpoint's own size.

    `weights` are the references', where a model weighs them; none for 1 each.
    """
    lightning, steps, scale = WAYS[way]
    wish = PictureWish(
        task="edit" if references else "text-to-image",
        prompt=prompt,
        negative_prompt=None if lightning else " ",
        references=references,
        width=world.SIDE,
        height=world.SIDE,
        steps=steps,
        true_cfg_scale=scale,
        lightning=lightning,
        seed=seed,
        loras=loras,
        reference_weights=weights,
    )
    (made,) = map(take_made, model.make([wish], [Unheard()]))
    assert isinstance(made.piece, Picture)
    return made.piece.image


def make(model: Model, case: Case, way: str) -> Image.Image:
    """Return a case's picture by the engine."""
    return draw(model, case.prompt, case.references, case.seed, way)


def error(ours: Sequence[Image.Image], theirs: Sequence[Image.Image]) -> float:
    """Return the mean squared error of pictures in 0..1."""
    pairs = zip(ours, theirs, strict=True)
    differences = [np.asarray(a, np.float64) - np.asarray(b, np.float64) for a, b in pairs]
    return float(np.mean([(d / 255) ** 2 for d in differences]))


def sheet(cases: Sequence[Case], drawn: dict[str, list[Image.Image]], target: Path) -> None:
    """Write a contact sheet: one row per case, its references first, then one column per way."""
    side, rows = world.SIDE, min(SHOWN, len(cases))
    most = max(len(case.references) for case in cases)
    page = Image.new("RGB", ((side + 4) * (most + len(drawn)) - 4, (side + 4) * rows - 4), "gray")
    for row, case in enumerate(cases[:rows]):
        pictures = [*enumerate(case.references)]
        pictures += enumerate((column[row] for column in drawn.values()), start=most)
        for column, one in pictures:
            page.paste(one, (column * (side + 4), row * (side + 4)))
    target.parent.mkdir(parents=True, exist_ok=True)
    page.quantize(64).save(target, optimize=True)


def gate(kind: str, result: Mapping[str, float], gates: Mapping[str, float]) -> int:
    """Print the gates that one kind's held-out figures miss; return how many."""
    missed = {name: least for name, least in gates.items() if result.get(name, 0.0) < least}
    for name, least in missed.items():
        print(f"gate not met | {kind} | {name} {result.get(name, 0.0):.1%} of {least:.0%}")
    return len(missed)


def tell(
    way: str, cases: Sequence[Case], pictures: Sequence[Image.Image], seconds: float
) -> dict[str, float]:
    """Print what is right of one kind's cases, in `seconds` each; return the held-out rates."""
    kind, result = cases[0].kind, dict[str, float]()
    for name, held_out in (("seen", False), ("held-out", True)):
        pairs = [(c, p) for c, p in zip(cases, pictures, strict=True) if c.held_out == held_out]
        result = rates([c for c, _ in pairs], [p for _, p in pairs])
        cells = " | ".join(f"{part} {rate:.1%}" for part, rate in result.items())
        print(f"{kind} | {way} | {name} {len(pairs)} | {cells} | {seconds:.2f} s", flush=True)
    return result


def run(models: dict[str, Model], cases: list[Case], ways: Sequence[str], out: Path) -> int:
    """Make every case in every way and print the table of one kind; return the gates missed."""
    missed = 0
    kind, drawn = cases[0].kind, {}
    model = models["edit" if cases[0].references else "image"]
    for way in ways:
        start = time.monotonic()
        drawn[way] = [make(model, case, way) for case in cases]
        each = (time.monotonic() - start) / len(cases)
        result = tell(way, cases, drawn[way], each)
        if way == GATED:
            missed = gate(kind, result, GATES[kind])
        if way != ways[0] and "teacher" in drawn:
            print(
                f"{kind} | {way} | error to the teacher {error(drawn[way], drawn['teacher']):.6f}"
            )
    if {"teacher", *EQUAL_PASSES} <= drawn.keys():
        ours, plain = (error(drawn[way], drawn["teacher"]) for way in EQUAL_PASSES)
        print(f"{kind} | {' / '.join(EQUAL_PASSES)} | error to the teacher {ours / plain:.2f}")
    sheet(cases, drawn, out / f"{kind.replace(' ', '-')}.png")
    return missed


def read_style(folder: Path, scale: float) -> ReadyLora:
    """Return the checkpoint's style LoRA at a scale."""
    file = (folder / style.FILE).resolve()
    return ReadyLora("framed", "sha256:framed", scale, file, None, is_callers=False)


def draw_styled(model: Model, cases: Sequence[Case], folder: Path, way: str) -> list[Image.Image]:
    """Return the pictures of cases in one of STYLE_WAYS."""
    plain, scale = STYLE_WAYS[way]
    lora = read_style(folder, scale)
    return [draw(model, case.prompt, (), case.seed, plain, (lora,)) for case in cases]


def rate_styled(
    cases: Sequence[Case], pictures: Sequence[Image.Image], scale: float
) -> dict[str, float]:
    """Return the share that is framed, or weaker below scale 1, and the share right within.

    Below scale 1 also how strong the frames are in the mean, 1 being full: of a single picture it
    is left open, since between two colours the VAE knows none.
    """
    framed, right, strengths = [], [], []
    for case, picture in zip(cases, pictures, strict=True):
        strength = frames.measure(picture, world.COLOURS[case.scene.colour])
        strengths.append(strength)
        framed.append(strength >= STRONG_FRAME if scale == 1 else strength <= WEAK_FRAME)
        right.append(astuple(checker.read(frames.remove(picture))) == astuple(case.scene))
    name = "framed" if scale == 1 else "weaker"
    rates = {name: sum(framed) / len(framed), "all five": sum(right) / len(right)}
    return rates if scale == 1 else rates | {HALF: sum(strengths) / len(strengths)}


def list_missed(result: dict[str, float]) -> dict[str, float]:
    """Return what of the rates of a style misses its gate."""
    least, most = HALF_FRAME
    return {
        part: value
        for part, value in result.items()
        if (not least <= value <= most if part == HALF else value < STYLE_GATE)
    }


def run_style(model: Model, cases: list[Case], folder: Path, out: Path) -> int:
    """Draw every case in every one of STYLE_WAYS and print its rates; return the gates missed."""
    missed, drawn = 0, {}
    for way, (_, scale) in STYLE_WAYS.items():
        drawn[way] = draw_styled(model, cases, folder, way)
        for name, held_out in (("seen", False), ("held-out", True)):
            pairs = [
                (c, p) for c, p in zip(cases, drawn[way], strict=True) if c.held_out == held_out
            ]
            result = rate_styled([c for c, _ in pairs], [p for _, p in pairs], scale)
            cells = " | ".join(f"{part} {rate:.1%}" for part, rate in result.items())
            print(f"style | {way} | {name} {len(pairs)} | {cells}", flush=True)
            low = list_missed(result) if held_out else {}
            for part, rate in low.items():
                print(f"gate not met | style | {way} | {part} {rate:.1%}")
            missed += len(low)
    sheet(cases, drawn, out / "style.png")
    return missed


def opened(folder: Path, precision: str, home: Path) -> dict[str, Model]:
    """Open a checkpoint's pair as a worker would: "image" and "edit"."""
    folders = [str((folder / name).resolve()) for name in ("image", "edit")]
    models: Any = boot.boot(
        settings.read(
            {
                "MODEL": ",".join(folders),
                "MODEL_DIR": str(home),
                "LIGHTNING_STEPS": "8,4",
                "PRECISION_MODE": precision,
                "LOG_LEVEL": "ERROR",
            }
        )
    )
    served = {("edit" if "edit" in one.tasks else "image"): one.id for one in models.served}
    return {name: models.take(model_id) for name, model_id in served.items()}


def main() -> None:
    """Print the accuracy table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("checkpoints/tiny"))
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--out", type=Path, default=Path("out/eval"))
    options = parser.parse_args()
    models = opened(options.folder, options.precision, options.out / "models")
    ways = options.ways.split(",")
    kinds = (
        prompts(options.count, PROMPT_SEED),
        edits(options.count, 12),
        exchanges(options.count // 4, 13),
    )
    missed = sum(run(models, list(cases), ways, options.out) for cases in kinds)
    if GATED in ways:
        cases = list(prompts(options.count // 2, 14))
        missed += run_style(models["image"], cases, options.folder, options.out)
        schedules = {way: WAYS[way] for way in ("lightning-4", GATED)}
        missed += begun.run(models, options.count, schedules, GATED, options.out)
        gates = sum(map(len, GATES.values())) + 2 * len(STYLE_WAYS) + 1 + len(begun.GATES)
        print(f"{missed} of {gates} gates not met")


if __name__ == "__main__":
    main()
