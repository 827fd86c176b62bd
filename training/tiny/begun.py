"""Evaluate what begins from a picture: img2img, inpaint and outpaint, by the pixels.

The gates are of held-out scenes in Lightning's 8 steps, on both models where both can do a task.
Inside is read by the checker; outside of a mask every pixel must be the source's.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageDraw

from training.tiny import checker, phrases, world
from worker import settings
from worker.media.masks import feather
from worker.media.picture import Picture
from worker.seam import Model, Unheard, take_made
from worker.tasks.picture import PictureWish
from worker.tasks.repaint import Margins, Repaint

GATES: Final[Mapping[str, float]] = {"img2img": 0.95, "inpaint": 0.98, "outpaint": 0.95}
BLUR: Final = 4
APART: Final = 60  # of a pixel's three levels together: the object, and not its soft edge
ROOM: Final = 8  # around the object, for a larger one in its place
CUT: Final = 24  # what is cut off a picture, and added again
# strength: whether the source stays, whatever the prompt says; else the prompt decides
STAYS: Final[Mapping[float, bool]] = {0.1: True, 0.8: False}
PARTS: Final = ("colour", "position")


@dataclass(frozen=True, slots=True)
class Begun:
    """One picture to begin from: the words, the scene that it must show, and which model makes it.

    `parts` are those of the scene that are read.
    """

    kind: str
    model: str
    prompt: str
    source: Image.Image
    scene: world.Scene
    seed: int
    strength: float = 1.0
    mask: Image.Image | None = None
    parts: Sequence[str] = field(default=phrases.PARTS)


def vary(count: int, seed: int, stays: Mapping[float, bool] = STAYS) -> Iterator[Begun]:
    """Yield pictures whose prompt asks for another colour and place, at each strength in turn.

    `stays` tells the two strengths, and at which of them the source stays.
    """
    rng, strengths = random.Random(seed), list(stays)
    while count:
        strength, held_out = strengths[count % 2], count // 2 % 2 == 1
        scene, other = world.random_scene(rng, held_out=held_out), world.random_scene(rng)
        if scene.colour == other.colour or scene.position == other.position:
            continue
        count -= 1
        before, asked = (scene, other) if stays[strength] else (other, scene)
        yield Begun(
            "img2img",
            "image",
            phrases.describe(asked, rng.choice(phrases.WHOLE)).prompt,
            world.draw(before, world.random_jitter(rng)),
            scene,
            4000 + count,
            strength,
            parts=PARTS,
        )


def repaint(count: int, seed: int) -> Iterator[Begun]:
    """Yield pictures whose object gets another colour or shape, each model in turn."""
    rng = random.Random(seed)
    while count:
        model, part = ("image", "edit")[count % 2], ("colour", "shape")[count // 2 % 2]
        before = world.random_scene(rng, held_out=rng.random() < 0.2)
        after = phrases.change(before, part, rng)
        if after.held_out != bool(count // 4 % 2):
            continue
        count -= 1
        prompt = phrases.describe(after, rng.choice(phrases.WHOLE)).prompt
        if model == "edit":
            prompt = phrases.instruct(before, after, part, rng.choice(phrases.EDITS[part])).prompt
        source = world.draw(before, world.random_jitter(rng))
        mask = feather(surround(source), BLUR)
        yield Begun("inpaint", model, prompt, source, after, 5000 + count, mask=mask)


def widen(count: int, seed: int) -> Iterator[Begun]:
    """Yield pictures that lack a side, a part of the object with it, each model in turn."""
    rng, given = random.Random(seed), settings.read({})
    while count:
        model = ("image", "edit")[count % 2]
        scene = world.random_scene(rng, held_out=count // 2 % 2 == 1)
        if scene.position == "center":
            continue
        count -= 1
        prompt = phrases.describe(scene, rng.choice(phrases.WHOLE)).prompt
        if model == "edit":
            phrase = rng.choice(phrases.EDITS["position"])
            prompt = phrases.instruct(scene, scene, "position", phrase).prompt
        complete = world.draw(scene, world.random_jitter(rng))
        if scene.position == "left":
            source, margins = complete.crop((CUT, 0, *complete.size)), Margins(left=CUT)
        else:
            source = complete.crop((0, 0, world.SIDE - CUT, world.SIDE))
            margins = Margins(right=CUT)
        repaint = Repaint(BLUR, invert=False, field="outpaint", margins=margins)
        part = repaint.apply(source, None, given, lambda _: None)
        yield Begun("outpaint", model, prompt, part.image, scene, 6000 + count, mask=part.mask)


def surround(picture: Image.Image) -> Image.Image:
    """Return a mask that is white around the object of a picture, with room on each side."""
    pixels = np.asarray(picture, int)
    rows, columns = np.nonzero(np.abs(pixels - pixels[0, 0]).sum(axis=2) > APART)
    mask = Image.new("L", picture.size)
    corners = (
        (int(columns.min()) - ROOM, int(rows.min()) - ROOM),
        (int(columns.max()) + ROOM, int(rows.max()) + ROOM),
    )
    ImageDraw.Draw(mask).rectangle(corners, fill=255)
    return mask


def make(models: Mapping[str, Model], case: Begun, schedule: tuple[bool, int, float]) -> Picture:
    """Return a case's picture by the engine, by (lightning, steps, true CFG)."""
    lightning, steps, scale = schedule
    wish = PictureWish(
        task=case.kind,
        prompt=case.prompt,
        negative_prompt=None if lightning else " ",
        references=(case.source,) if case.model == "edit" else (),
        width=world.SIDE,
        height=world.SIDE,
        steps=steps,
        true_cfg_scale=scale,
        lightning=lightning,
        seed=case.seed,
        source=case.source,
        mask=case.mask,
        strength=case.strength,
    )
    (made,) = map(take_made, models[case.model].make([wish], [Unheard()]))
    assert isinstance(made.piece, Picture)
    return made.piece


def is_right(case: Begun, shown: Image.Image) -> bool:
    """Return whether a picture shows what it must, and its source where that stays."""
    seen = checker.read(shown)
    if case.mask is not None:
        before, after = np.asarray(case.source), np.asarray(shown)
        outside = np.asarray(case.mask) == 0
        if not (before[outside] == after[outside]).all():
            return False
    return all(getattr(seen, part) == getattr(case.scene, part) for part in case.parts)


def sheet(cases: Sequence[Begun], shown: Sequence[Image.Image], target: Path, rows: int) -> None:
    """Write a contact sheet: one row per case, with the source, its mask and what was made."""
    step = world.SIDE + 4
    page = Image.new("RGB", (3 * step - 4, rows * step - 4), "gray")
    for row, (case, made) in enumerate(zip(cases[:rows], shown[:rows], strict=True)):
        mask = case.mask or Image.new("L", case.source.size, 255)
        for column, one in enumerate((case.source, mask.convert("RGB"), made)):
            page.paste(one, (column * step, row * step))
    target.parent.mkdir(parents=True, exist_ok=True)
    page.quantize(64).save(target, optimize=True)


def run(
    models: Mapping[str, Model],
    count: int,
    schedules: Mapping[str, tuple[bool, int, float]],
    gated: str,
    out: Path,
    stays: Mapping[float, bool] = STAYS,
) -> int:
    """Make every case in every schedule and print the rates; return the gates missed."""
    missed = 0
    for cases in (list(vary(count, 21, stays)), list(repaint(count, 22)), list(widen(count, 23))):
        kind = cases[0].kind
        for name, schedule in schedules.items():
            shown = [make(models, case, schedule).show() for case in cases]
            for which, held_out in (("seen", False), ("held-out", True)):
                right = [
                    is_right(case, one)
                    for case, one in zip(cases, shown, strict=True)
                    if case.scene.held_out == held_out
                ]
                rate = sum(right) / len(right)
                print(f"{kind} | {name} | {which} {len(right)} | right {rate:.1%}", flush=True)
                if held_out and name == gated and rate < GATES[kind]:
                    print(f"gate not met | {kind} | right {rate:.1%} of {GATES[kind]:.0%}")
                    missed += 1
            if name == gated:
                sheet(cases, shown, out / f"{kind}.png", min(8, len(cases)))
    return missed
