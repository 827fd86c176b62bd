"""Draw the pictures of docs/ with the embedded models: `python -m training.contact_sheet`.

contact-sheet.png: pictures from prompts in the upper row, each edited in the lower row.
lightning.png: the first prompts of `make eval-tiny`, one column for each of its ways, and one for
each of its ways with the style LoRA.
Nothing is picked by eye: the seeds are 1, 2, 3 ..., or the evaluation's.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from PIL import Image, ImageDraw

from training.tiny import evaluate
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


def pairs(models: Mapping[str, Model]) -> None:
    """Draw and write contact-sheet.png."""
    page = Image.new("RGB", (len(PAIRS) * SHOWN, 2 * (SHOWN + CAPTION)), "white")
    pen = ImageDraw.Draw(page)
    for column, (prompt, edit) in enumerate(PAIRS):
        first = evaluate.draw(models["image"], prompt, (), column + 1, "lightning-8")
        second = evaluate.draw(models["edit"], edit, (first,), column + 1, "lightning-8")
        for row, (drawn, text) in enumerate(((first, prompt), (second, edit))):
            corner = (column * SHOWN, row * (SHOWN + CAPTION))
            shown = drawn.resize((SHOWN - 4, SHOWN - 4), Image.Resampling.NEAREST)
            page.paste(shown, (corner[0] + 2, corner[1] + 2))
            pen.text((corner[0] + 4, corner[1] + SHOWN), text, "black", font_size=9)
    page.save(DOCS / "contact-sheet.png", optimize=True)


def ways(models: Mapping[str, Model]) -> None:
    """Draw and write lightning.png."""
    cases = list(evaluate.prompts(evaluate.SHOWN, evaluate.PROMPT_SEED))
    drawn = {way: [evaluate.make(models["image"], c, way) for c in cases] for way in evaluate.WAYS}
    for way in evaluate.STYLE_WAYS:
        drawn[way] = evaluate.draw_styled(models["image"], cases, TINY, way)
    evaluate.sheet(cases, drawn, DOCS / "lightning.png")


def main() -> None:
    """Draw both."""
    with tempfile.TemporaryDirectory() as home:
        models = evaluate.opened(TINY, "bf16", Path(home))
        pairs(models)
        ways(models)


if __name__ == "__main__":
    main()
