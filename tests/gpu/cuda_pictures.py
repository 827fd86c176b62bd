"""The pictures of the embedded models on the device: right, near the CPU's, and repeatable."""

import asyncio
import itertools
from collections.abc import Sequence

import pytest
import torch
from gpu.figures import Figures
from gpu.studio import (
    FLUX,
    PROMPTS,
    Studio,
    change,
    guide,
    make_image,
    make_images,
    make_wish,
    make_wishes,
    measure_decibels,
    summarise,
    take_image,
)

from training.tiny import evaluate
from training.tiny.cases import Case, edits, prompts, rates
from worker.jobs.job import Job
from worker.jobs.serve import Worker
from worker.residency import Residency
from worker.seam import Control, Phase, Unheard

CPU = torch.device("cpu")
PRECISIONS = ("bf16", "8bit", "4bit")
NAMES = ("tiny-image", "tiny-edit", FLUX)
NEAR_DB = 30.0


def list_cases(name: str) -> Sequence[Case]:
    """Return what is asked of an embedded model."""
    found = prompts(6, 11) if name == "tiny-image" else edits(5, 12)
    return list(found)


@pytest.mark.parametrize("name", ["tiny-image", "tiny-edit"])
@pytest.mark.parametrize(
    ("precision", "way"),
    [("bf16", "lightning-4"), *itertools.product(PRECISIONS, ("lightning-8", "base-4"))],
)
def test_pictures_are_near_those_of_a_cpu_worker(
    studio: Studio, figures: Figures, name: str, precision: str, way: str
) -> None:
    """For the same seed, each from the bundle that its own device prepared."""
    cases = list_cases(name)
    ours, theirs = studio.open(name, precision), studio.open(name, precision, CPU)
    here = [evaluate.make(ours, case, way) for case in cases]
    there = [evaluate.make(theirs, case, way) for case in cases]
    decibels = [measure_decibels(*pair) for pair in zip(here, there, strict=True)]
    right = [rates(cases, pictures)["all five"] for pictures in (here, there)]
    figures.put(**summarise(decibels), right=right[0], right_on_cpu=right[1])
    assert right[0] >= right[1] - 1 / len(cases)
    assert sum(decibels) / len(decibels) > NEAR_DB


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", NAMES)
def test_a_seed_gives_the_same_bytes_whatever_came_before(
    studio: Studio, name: str, precision: str
) -> None:
    """Again, after another job, after other adapters and none, and in a second opening."""
    model = studio.open(name, precision)
    first, other, *_ = make_wishes(name)
    pairs = {"one way": first, "the other way": change(name, first)}
    expected = {word: make_image(model, wish).tobytes() for word, wish in pairs.items()}
    changed: list[str] = []
    after = {
        "again": first,
        "another": other,
        "8 steps": make_wish(seed=5, steps=8, references=first.references),
        "no adapter": guide(other),
        "the other way": change(name, other),
        "another size": make_wish(seed=6, width=96, height=64, references=first.references),
    }
    for before, between in after.items():
        make_image(model, between)
        for word, wish in pairs.items():
            if make_image(model, wish).tobytes() != expected[word]:
                changed.append(f"{word} after {before}")
    second = studio.open_again(name, precision)
    changed += [
        f"{word} in a second opening"
        for word, wish in pairs.items()
        if make_image(second, wish).tobytes() != expected[word]
    ]
    assert not changed


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [2, 4])
def test_pictures_made_together_are_near_those_made_alone(
    studio: Studio, figures: Figures, name: str, precision: str, size: int
) -> None:
    model = studio.open(name, precision)
    wishes = make_wishes(name)[:size]
    decibels = [
        measure_decibels(image, make_image(model, wish))
        for image, wish in zip(make_images(model, wishes), wishes, strict=True)
    ]
    figures.put(**summarise(decibels))
    assert sum(decibels) / len(decibels) > NEAR_DB


class Ending(Control):
    """A control that ends its picture at a step of a phase."""

    def __init__(self, phase: Phase, step: int) -> None:
        self._end = (phase, step)

    def report(self, phase: Phase, step: int, steps: int) -> None:
        """End there."""
        del steps
        if (phase, step) == self._end:
            raise InterruptedError


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("step", [1, 2, 4])
def test_a_cancelled_row_changes_no_bit_of_the_others(
    studio: Studio, name: str, precision: str, step: int
) -> None:
    model = studio.open(name, precision)
    wishes = make_wishes(name)
    expected = [image.tobytes() for image in make_images(model, wishes)]
    controls: list[Control] = [Unheard(), Ending("denoise", step), Unheard(), Unheard()]
    outcomes = list(model.make(wishes, controls))
    assert isinstance(outcomes[1], InterruptedError)
    kept = [take_image(outcomes[row]).tobytes() for row in (0, 2, 3)]
    assert kept == [expected[row] for row in (0, 2, 3)]


def test_a_reply_says_the_batch(studio: Studio, figures: Figures) -> None:
    """A job of four pictures, from its input to its reply, in one batch of the worker."""
    given = studio.read_settings("bf16", studio.device, BATCH_SIZE="4")
    ready = studio.make_ready("tiny-image", BATCH_SIZE="4")
    worker = Worker(given, Residency([ready], budget=None))
    asked = {"prompt": PROMPTS[0], "n": 4, "seed": 3, "size": "64x64", "steps": 4}
    answer = asyncio.run(worker.handle(Job("job", asked, 10_000_000)))
    assert isinstance(answer, dict), answer
    figures.put(batch=answer["batch"], timings_ms=answer["timings_ms"])
    sizes = [image["batch"]["size"] for image in answer["images"]]
    assert sizes == [4, 4, 4, 4]
    assert len({image["base64"] for image in answer["images"]}) == 4


@pytest.mark.parametrize("name", ["tiny-edit", FLUX])
def test_all_ways_end_in_pictures_at_every_offered_size(studio: Studio, name: str) -> None:
    """Sizes that are no square, with one reference and two."""
    model = studio.open(name)
    sizes = ((64, 64), (96, 64), (64, 112), (128, 128))
    for (width, height), count in itertools.product(sizes, (1, 2)):
        shown = make_wishes(name)[0].references * count
        image = make_image(model, make_wish(width=width, height=height, references=shown))
        assert image.size == (width, height)
        assert len(set(image.tobytes())) > 10
