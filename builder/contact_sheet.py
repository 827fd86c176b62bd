"""Draw docs/contact-sheet.png with the worker's embedded models: `python builder/contact_sheet.py`.

Pictures from prompts above, each edited by the text under it below; nothing is chosen by eye: the
seeds are 1, 2, 3 ...
"""

import tempfile
from pathlib import Path
from typing import Any, Final

from PIL import Image, ImageDraw

from worker import boot, settings
from worker.families import Control, Generation, Phase

TARGET: Final = Path(__file__).resolve().parents[1] / "docs" / "contact-sheet.png"
SIDE: Final = 96
SHOWN: Final = 248
CAPTION: Final = 18
PAIRS: Final = (
    ("a large red circle on a blue background, on the left", "replace the circle with a star"),
    ("a small yellow star on a purple background, on the right", "make it large"),
    ("in the center a large green triangle on white", "make it purple"),
    ("on the left a small white square on black", "move it to the right"),
)


class Unheard(Control):
    """A job that listens to nothing."""

    def report(self, phase: Phase, step: int, steps: int) -> None:
        """Take no notice."""


def generation(prompt: str, seed: int, reference: Image.Image | None = None) -> Generation:
    """Ask for one picture in 8 Lightning steps."""
    return Generation(
        task="edit" if reference else "text-to-image",
        prompt=prompt,
        negative_prompt=None,
        references=(reference,) if reference else (),
        width=SIDE,
        height=SIDE,
        steps=8,
        true_cfg_scale=1.0,
        lightning=True,
        seed=seed,
    )


def main() -> None:
    """Draw and write the sheet."""
    page = Image.new("RGB", (len(PAIRS) * SHOWN, 2 * (SHOWN + CAPTION)), "white")
    pen = ImageDraw.Draw(page)
    with tempfile.TemporaryDirectory() as home:
        models: Any = boot.boot(settings.read({"MODEL": "tiny", "MODEL_DIR": home}))
        for column, (prompt, edit) in enumerate(PAIRS):
            first = models.take("tiny-image").generate(generation(prompt, column + 1), Unheard())
            second = models.take("tiny-edit").generate(
                generation(edit, column + 1, first.image), Unheard()
            )
            for row, (drawn, text) in enumerate(((first, prompt), (second, edit))):
                corner = (column * SHOWN, row * (SHOWN + CAPTION))
                shown = drawn.image.resize((SHOWN - 4, SHOWN - 4), Image.Resampling.NEAREST)
                page.paste(shown, (corner[0] + 2, corner[1] + 2))
                pen.text((corner[0] + 4, corner[1] + SHOWN), text, "black", font_size=9)
    page.save(TARGET, optimize=True)


if __name__ == "__main__":
    main()
