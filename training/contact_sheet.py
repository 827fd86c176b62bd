"""Draw the pictures of docs/ with the embedded models: `python -m training.contact_sheet`.

contact-sheet.png: pictures from prompts in the first row, each edited in the second. In the third,
the last of them begun from at rising strength; in the fourth, two repainted where a mask is white,
and two with margins added. Masks are outlined, and so is what margins were added to.
lightning.png: the first prompts of `make eval-tiny`, one column for each of its ways, and one for
each of its ways with the style LoRA.
Nothing is picked by eye: the seeds are 1, 2, 3 ..., or the evaluation's.
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from PIL import Image, ImageChops, ImageDraw

from training.tiny import begun, evaluate, phrases, world
from training.tiny.cases import PROMPT_SEED, prompts
from worker.seam import Model

ROOT: Final = Path(__file__).resolve().parents[1]
DOCS: Final = ROOT / "docs"
TINY: Final = ROOT / "checkpoints" / "tiny"
SHOWN: Final = 248
CAPTION: Final = 18
PAIRS: Final = (
    ("a large red circle on a blue background, on the left", "replace the circle with a star"),
    ("a small yellow star on a purple background, on the right", "make it large"),
    ("in the center a large green triangle on white", "make it purple"),
    ("on the left a small white square on black", "move it to the right"),
)
COLUMNS: Final = 4
STRENGTHS: Final = (0.1, 0.3, 0.4, 0.6)


class Shown(NamedTuple):
    """One picture, and the words below it."""

    image: Image.Image
    text: str


def pairs(models: Mapping[str, Model]) -> list[Shown]:
    """Return pictures from prompts, and then their edits."""
    first, second = [], []
    for seed, (prompt, edit) in enumerate(PAIRS, start=1):
        drawn = evaluate.draw(models["image"], prompt, (), seed, "lightning-8")
        edited = evaluate.draw(models["edit"], edit, (drawn,), seed, "lightning-8")
        first.append(Shown(drawn, prompt))
        second.append(Shown(edited, edit))
    return [*first, *second]


def begin(models: Mapping[str, Model], source: Image.Image) -> list[Shown]:
    """Return pictures that begin from others: varied, repainted, and with margins."""
    scene = world.Scene("yellow", "star", "blue", "large", "left")
    prompt = phrases.describe(scene, phrases.PROMPTS[0]).prompt
    cases = [
        begun.Begun("img2img", "image", prompt, source, scene, 1, strength)
        for strength in STRENGTHS
    ]
    cases += [*begun.repaint(2, 1), *begun.widen(2, 1)]
    shown = []
    for case in cases:
        image = begun.make(models, case, evaluate.WAYS["lightning-8"]).show().copy()
        text = f"{case.strength}: {case.prompt}" if case.mask is None else case.prompt
        if case.mask is not None:
            edge = case.mask if case.kind == "inpaint" else ImageChops.invert(case.mask)
            ImageDraw.Draw(image).rectangle(edge.getbbox() or (0, 0, 0, 0), outline="gray")
        shown.append(Shown(image, text))
    return shown


def write(shown: Sequence[Shown], target: Path) -> None:
    """Write pictures with their captions, four to a row."""
    rows = -(-len(shown) // COLUMNS)
    page = Image.new("RGB", (COLUMNS * SHOWN, rows * (SHOWN + CAPTION)), "white")
    pen = ImageDraw.Draw(page)
    for place, (drawn, text) in enumerate(shown):
        row, column = divmod(place, COLUMNS)
        corner = (column * SHOWN, row * (SHOWN + CAPTION))
        scaled = drawn.resize((SHOWN - 4, SHOWN - 4), Image.Resampling.NEAREST)
        page.paste(scaled, (corner[0] + 2, corner[1] + 2))
        pen.text((corner[0] + 4, corner[1] + SHOWN), text, "black", font_size=9)
    page.save(target, optimize=True)


def ways(models: Mapping[str, Model]) -> None:
    """Draw and write lightning.png."""
    cases = list(prompts(evaluate.SHOWN, PROMPT_SEED))
    drawn = {way: [evaluate.make(models["image"], c, way) for c in cases] for way in evaluate.WAYS}
    for way in evaluate.STYLE_WAYS:
        drawn[way] = evaluate.draw_styled(models["image"], cases, TINY, way)
    evaluate.sheet(cases, drawn, DOCS / "lightning.png")


def main() -> None:
    """Draw both."""
    with tempfile.TemporaryDirectory() as home:
        models = evaluate.opened(TINY, "bf16", Path(home))
        drawn = pairs(models)
        write([*drawn, *begin(models, drawn[3].image)], DOCS / "contact-sheet.png")
        ways(models)


if __name__ == "__main__":
    main()
