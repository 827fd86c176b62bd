"""Pictures per second made together against one by one: `python bench/batch.py --json FILE`.

For each model that MODEL names (the embedded ones by default) and each precision, 2, 4 and 8 equal
pictures are made together and one after another, in turn, and the ratio of their times is what
counts: both sides have the same machine and the same neighbours. Everything that making a picture
takes is in it: the prompt, the references, the steps, decoding. Every picture made together is
compared to the one made alone.
"""

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from PIL import Image

from bench.storm import name_cpu
from worker import boot, settings
from worker.media.picture import Picture
from worker.seam import Model, Unheard, take_made
from worker.tasks.picture import PictureWish, warm_up

SIZES: Final = (2, 4, 8)
PRECISIONS: Final = ("bf16", "8bit", "4bit")


def make_wishes(model: Model, count: int, round_: int, side: int | None) -> list[PictureWish]:
    """Return wishes of one key that were not made before: each text and reference is new."""
    first = warm_up(model.served)
    wishes = []
    for number in range(count):
        name = round_ * count + number
        wishes.append(
            replace(
                first,
                # a number has as many tokens as digits
                prompt=f"a picture with the number {name:05d}",
                seed=name,
                width=side or first.width,
                height=side or first.height,
                references=tuple(change(one, name) for one in first.references),
            )
        )
    return wishes


def change(image: Image.Image, number: int) -> Image.Image:
    """Return a reference with one pixel of its own."""
    changed = image.copy()
    changed.putpixel((0, 0), (number % 256, number // 256 % 256, 0))
    return changed


def make(model: Model, wishes: Sequence[PictureWish], together: bool) -> tuple[float, list[bytes]]:
    """Make pictures; return the seconds that it took, and their pixels."""
    groups = [wishes] if together else [[wish] for wish in wishes]
    start = time.perf_counter()
    made = [
        take_made(one) for group in groups for one in model.make(group, [Unheard()] * len(group))
    ]
    seconds = time.perf_counter() - start
    return seconds, [one.piece.image.tobytes() for one in made if isinstance(one.piece, Picture)]


def measure(model: Model, repeats: int, side: int | None) -> dict[str, Any]:
    """Return pictures per second by how many were made together, and against one by one."""
    figures: dict[str, Any] = {}
    round_ = 0
    for size in SIZES:
        alone, together, equal = [], [], True
        for repeat in range(repeats + 1):  # the first of each warms up
            # each side its own new wishes: what is cached of one side must not help the other
            sides = {}
            for side_name in ("alone", "together"):
                wishes = make_wishes(model, size, round_, side)
                sides[side_name], pixels = make(model, wishes, side_name == "together")
                round_ += 1
            equal = equal and pixels == make(model, wishes, together=False)[1]
            if repeat:
                alone.append(sides["alone"])
                together.append(sides["together"])
        ratios = [one / other for one, other in zip(alone, together, strict=True)]
        figures[str(size)] = {
            "pictures_per_s": round(size / statistics.median(together), 2),
            "one_by_one_per_s": round(size / statistics.median(alone), 2),
            "ratio": round(statistics.median(ratios), 2),
            "equal": equal,
        }
    return figures


def main() -> int:
    """Measure, print, and return 1 if a picture differed on a CPU."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--side", type=int, help="pixels; the model's own by default")
    parser.add_argument("--precision", nargs="*", default=PRECISIONS, choices=PRECISIONS)
    parser.add_argument("--json", type=Path, help="where the figures go too")
    given = parser.parse_args()
    results: dict[str, Any] = {}
    differed = False
    for precision in given.precision:
        with tempfile.TemporaryDirectory() as home:
            own = {"PRECISION_MODE": precision, "MIN_STORAGE_FREE_GB": "0"}
            usual = {} if settings.read().model else {"MODEL": "tiny", "MODEL_DIR": home}
            models = boot.boot(settings.read(instead={**own, **usual}))
            for served in models.served:
                figures = measure(models.take(served.id), given.repeats, given.side)
                results.setdefault(served.id, {})[precision] = figures
                for size, row in figures.items():
                    differed = differed or not row["equal"]
                    print(f"{served.id:12} {precision}  {size} together: {row}", flush=True)
    on_gpu = torch.cuda.is_available()
    machine = {
        "device": torch.cuda.get_device_name() if on_gpu else name_cpu(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if given.json is not None:
        text = json.dumps({"machine": machine, "repeats": given.repeats, **results}, indent=1)
        given.json.write_text(text + "\n", encoding="utf-8")
    return int(differed and not on_gpu)


if __name__ == "__main__":
    sys.exit(main())
