"""COMPILE=auto on the device: every graph is there after the warm-up, and agrees."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from gpu.figures import Figures
from gpu.studio import (
    PROMPTS,
    Studio,
    guide,
    make_image,
    make_images,
    make_reference,
    make_wish,
    make_wishes,
    measure_decibels,
    summarise,
)
from structlog.testing import capture_logs

from worker.engine.compiled import AGREEMENT, Compiled
from worker.families.qwen_image.model import QwenImage
from worker.tasks.picture import PictureWish

pytestmark = pytest.mark.cuda
NEAR_DB = 25.0


class Warmed:
    """A compiled model after its warm-up, what the log said, and the seconds that it took."""

    def __init__(self, model: QwenImage, seconds: float, lines: list[Any]) -> None:
        self.model = model
        self.seconds = seconds
        self.lines = lines
        self.graphs = self.run.graphs

    @property
    def run(self) -> Compiled:
        """The compiled blocks."""
        run = self.model._parts.forward._run_block
        assert isinstance(run, Compiled)
        return run


@pytest.fixture(scope="module")
def warmed(studio: Studio) -> Iterator[Warmed]:
    """An edit model with both adapters, compiled for batches of two."""
    model = studio.open_again("tiny-edit", COMPILE="auto", BATCH_SIZE="2")
    start = time.monotonic()
    with capture_logs() as lines:
        model.warm()
    yield Warmed(model, time.monotonic() - start, list(lines))
    torch._dynamo.reset()


def list_various(base: PictureWish) -> list[PictureWish]:
    """Return wishes of sizes, lengths, references and adapters that the warm-up did not have."""
    shown = base.references
    long = " and ".join(PROMPTS * 8)
    return [
        make_wish(width=96, height=64, references=shown),
        make_wish(width=64, height=112, references=shown * 2),
        make_wish(long, 1, references=shown),
        make_wish(long, 2, width=128, height=128, references=shown, steps=8),
        guide(make_wish(width=80, height=80, references=(make_reference(3, 96),))),
        guide(make_wish(long, 3, width=64, height=64, references=shown)),
    ]


def test_the_blocks_are_compiled_before_the_first_job(warmed: Warmed, figures: Figures) -> None:
    said = [line for line in warmed.lines if line["event"] in ("compiled", "not compiled")]
    differences = [line["difference"] for line in warmed.lines if line["event"] == "compiled"]
    reasons = [line.get("reason") for line in warmed.lines if "not compiled" in line["event"]]
    figures.put(
        active=warmed.run.is_active,
        graphs=warmed.graphs,
        warm_s=round(warmed.seconds, 1),
        compiled=[(line.get("graphs"), line.get("seconds")) for line in said],
        differences=differences,
        reasons=reasons,
    )
    assert warmed.run.is_active, reasons
    assert warmed.graphs > 0
    assert differences
    assert max(differences) <= AGREEMENT


def test_no_job_compiles_anything(warmed: Warmed, figures: Figures) -> None:
    """Neither another size or prompt, nor another adapter, nor several pictures together."""
    base, *_ = wishes = make_wishes("tiny-edit")
    slowest = 0.0
    seen: dict[str, int] = {}
    for wish in list_various(base):
        start = time.monotonic()
        make_image(warmed.model, wish)
        slowest = max(slowest, time.monotonic() - start)
        seen[f"{wish.width}x{wish.height} {wish.steps} {len(wish.prompt)}"] = warmed.run.graphs
    for name in ("lightning", "guided"):
        pair = wishes[:2] if name == "lightning" else [guide(wish) for wish in wishes[:2]]
        make_images(warmed.model, pair)
        seen[f"two, {name}"] = warmed.run.graphs
    figures.put(graphs=warmed.graphs, slowest_s=round(slowest, 2), after=seen)
    assert warmed.run.is_active
    assert set(seen.values()) == {warmed.graphs}


def test_compiled_pictures_are_near_plain_ones(
    studio: Studio, warmed: Warmed, figures: Figures
) -> None:
    plain = studio.open("tiny-edit")
    wishes = [*make_wishes("tiny-edit"), *list_various(make_wishes("tiny-edit")[0])]
    decibels = [
        measure_decibels(make_image(warmed.model, wish), make_image(plain, wish)) for wish in wishes
    ]
    figures.put(**summarise(decibels))
    assert sum(decibels) / len(decibels) > NEAR_DB


def test_compiled_pictures_repeat(warmed: Warmed) -> None:
    """The same bytes for a seed, after others came between."""
    base, other, *_ = make_wishes("tiny-edit")
    expected = make_image(warmed.model, base).tobytes()
    make_image(warmed.model, guide(other))
    make_images(warmed.model, [base, other])
    assert make_image(warmed.model, base).tobytes() == expected
