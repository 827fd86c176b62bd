"""COMPILE=auto on the device: every graph is there after the warm-up, and agrees."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from gpu.figures import Figures
from gpu.studio import (
    FLUX,
    PROMPTS,
    Drawing,
    Studio,
    change,
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
from worker.tasks.picture import PictureWish

pytestmark = pytest.mark.cuda
NEAR_DB = 25.0
# by name, the most pictures that are made together: of all kinds of blocks each has its graphs
ROWS = {"tiny-edit": 2, FLUX: 1}


class Warmed:
    """A compiled model after its warm-up, what the log said, and the seconds that it took."""

    def __init__(self, name: str, model: Drawing, seconds: float, lines: list[Any]) -> None:
        self.name = name
        self.model = model
        self.seconds = seconds
        self.lines = lines
        self.graphs = self.count_graphs()

    @property
    def is_active(self) -> bool:
        """Whether compiled blocks are in use, and compiled norms where there are any."""
        norms = getattr(self.model._parts, "normalise", None)
        return self.model._parts.forward.is_compiled and (norms is None or norms.is_active)

    def count_graphs(self) -> int:
        """Return how many graphs the blocks of all kinds have, and the norms of the VAE."""
        parts = self.model._parts
        kinds = [*vars(parts.forward).values(), getattr(parts, "normalise", None)]
        return sum(kind.graphs for kind in kinds if isinstance(kind, Compiled))


@pytest.fixture(scope="module", params=ROWS)
def warmed(studio: Studio, request: pytest.FixtureRequest) -> Iterator[Warmed]:
    """An edit model with all of its adapters, compiled for the most rows."""
    name: str = request.param
    model = studio.open_again(name, COMPILE="auto", BATCH_SIZE=str(ROWS[name]))
    start = time.monotonic()
    with capture_logs() as lines:
        model.warm()
    yield Warmed(name, model, time.monotonic() - start, list(lines))
    torch._dynamo.reset()


def list_various(name: str) -> list[PictureWish]:
    """Return wishes of sizes, lengths, references and adapters that the warm-up did not have."""
    shown = make_wishes(name)[0].references
    long = " and ".join(PROMPTS * 8)
    return [
        make_wish(width=96, height=64, references=shown),
        make_wish(width=64, height=112, references=shown * 2),
        make_wish(long, 1, references=shown),
        make_wish(long, 2, width=128, height=128, references=shown, steps=8),
        change(name, make_wish(width=80, height=80, references=(make_reference(3, 96),))),
        change(name, make_wish(long, 3, width=64, height=64, references=shown)),
    ]


def test_the_blocks_are_compiled_before_the_first_job(warmed: Warmed, figures: Figures) -> None:
    said = [line for line in warmed.lines if line["event"] in ("compiled", "not compiled")]
    differences = [line["difference"] for line in warmed.lines if line["event"] == "compiled"]
    reasons = [line.get("reason") for line in warmed.lines if "not compiled" in line["event"]]
    figures.put(
        active=warmed.is_active,
        graphs=warmed.graphs,
        warm_s=round(warmed.seconds, 1),
        compiled=[(line.get("graphs"), line.get("seconds")) for line in said],
        differences=differences,
        reasons=reasons,
    )
    assert warmed.is_active, reasons
    assert warmed.graphs > 0
    assert differences
    assert max(differences) <= AGREEMENT


def test_no_job_compiles_anything(warmed: Warmed, figures: Figures) -> None:
    """Neither another size or prompt, nor another adapter, nor several pictures together."""
    wishes = make_wishes(warmed.name)
    slowest = 0.0
    seen: dict[str, int] = {}
    for wish in list_various(warmed.name):
        start = time.monotonic()
        make_image(warmed.model, wish)
        slowest = max(slowest, time.monotonic() - start)
        shape = (wish.width, wish.height, wish.steps, len(wish.prompt), len(wish.reference_weights))
        seen[repr(shape)] = warmed.count_graphs()
    rows = ROWS[warmed.name]
    make_images(warmed.model, wishes[:rows])
    seen[f"{rows}, one way"] = warmed.count_graphs()
    make_images(warmed.model, [change(warmed.name, wish) for wish in wishes[:rows]])
    seen[f"{rows}, the other way"] = warmed.count_graphs()
    figures.put(graphs=warmed.graphs, slowest_s=round(slowest, 2), after=seen)
    assert warmed.is_active
    assert set(seen.values()) == {warmed.graphs}


def test_compiled_pictures_are_near_plain_ones(
    studio: Studio, warmed: Warmed, figures: Figures
) -> None:
    plain = studio.open(warmed.name)
    wishes = [*make_wishes(warmed.name), *list_various(warmed.name)]
    decibels = [
        measure_decibels(make_image(warmed.model, wish), make_image(plain, wish)) for wish in wishes
    ]
    figures.put(**summarise(decibels))
    assert sum(decibels) / len(decibels) > NEAR_DB


def test_compiled_pictures_repeat(warmed: Warmed) -> None:
    """The same bytes for a seed, after others came between."""
    base, other, *_ = wishes = make_wishes(warmed.name)
    expected = make_image(warmed.model, base).tobytes()
    make_image(warmed.model, change(warmed.name, other))
    make_images(warmed.model, wishes[: ROWS[warmed.name]])
    assert make_image(warmed.model, base).tobytes() == expected
