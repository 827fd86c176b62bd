"""One case through the worker's own code on the pretend device, and what was seen."""

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from unittest.mock import patch

from PIL import Image

from bench.real_shapes.shapes import Architecture
from tools.pretend import model as models
from tools.pretend.cases import Case, Opened
from tools.pretend.cuda import pretend
from tools.pretend.device import PretendDevice
from tools.pretend.ledger import Ledger
from worker.families.clock import Clock
from worker.families.qwen_image.model import QwenImage
from worker.seam import Control, Phase, take_made
from worker.tasks.picture import PictureWish
from worker.tasks.way import IMG2IMG


@dataclass(frozen=True, slots=True)
class Seen:
    """What a case did: bytes of the weights, the peak of each phase beside them, and its ledger.

    `places` are the lines of code that reached the peaks.
    """

    case: Case
    weights: int
    peaks: dict[str, int]
    places: dict[str, str]
    ledger: Ledger
    forwards: int
    seconds: float

    @property
    def working(self) -> int:
        """Return the peak beside the weights in bytes."""
        return max(self.peaks.values())


class Follow(Control):
    """The control of a case: it tells the ledger which step of the loop is done."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def report(self, phase: Phase, step: int, steps: int) -> None:
        """Record a step of the denoising loop."""
        del steps
        if phase == "denoise":
            self._ledger.step = step


def run_cases(cases: list[Case], architecture: Architecture) -> Iterator[Seen]:
    """Run cases and yield what was seen; a model is built once for those that follow each other."""
    device, model, opened = PretendDevice(), None, None
    for case in cases:
        if model is None or case.opened != opened:
            model = None
            device, opened = PretendDevice(), case.opened
            model = open_model(device, architecture, opened)
        yield run(device, model, case)


def open_model(device: PretendDevice, architecture: Architecture, opened: Opened) -> QwenImage:
    """Open a model on the device."""
    with pretend(device):
        return models.build(device, architecture, opened)


def run(device: PretendDevice, model: QwenImage, case: Case) -> Seen:
    """Make the pictures of a case with an open model."""
    start = time.monotonic()
    models.forget(model)
    weights = device.memory.live
    ledger = device.ledger = Ledger()
    device.memory.reset()
    device.memory.room = None if case.room is None else weights + case.room
    with pretend(device), follow_phases(device):
        device.enter_phase("between")
        loras = models.bring_loras(device, model, case.loras)
        wishes = [replace(make_wish(case, n), loras=loras) for n in range(case.batch)]
        make(model, wishes, Follow(ledger))
    device.memory.room = None
    peaks = {phase: peak - weights for phase, peak in device.memory.peaks.items()}
    forwards = case.steps * (2 if case.guided else 1)
    places = dict(device.memory.places)
    return Seen(case, weights, peaks, places, ledger, forwards, time.monotonic() - start)


def make(model: QwenImage, wishes: list[PictureWish], control: Control) -> None:
    """Make pictures, several of them in one batch."""
    for outcome in model.make(wishes, [control] * len(wishes)):
        take_made(outcome)


@contextmanager
def follow_phases(device: PretendDevice) -> Iterator[None]:
    """Count by the phases of the worker's own clock."""
    stock = Clock.measure_phase

    @contextmanager
    def measure_phase(self: Clock, name: Phase) -> Iterator[None]:
        before = device.enter_phase(name)
        try:
            with stock(self, name):
                yield
        finally:
            device.enter_phase(before)

    with patch.object(Clock, "measure_phase", measure_phase):
        yield


def make_wish(case: Case, number: int) -> PictureWish:
    """Return a wish that no cache has seen; the prompts of a case are equally long."""
    digest = hashlib.sha256(f"{case} {number}".encode()).digest()
    colours = [tuple(digest[at : at + 3]) for at in range(case.references)]
    references = tuple(Image.new("RGB", (case.side, case.side), colour) for colour in colours)
    wish = PictureWish(
        task=case.task,
        prompt=f"{int.from_bytes(digest[:4]):010d}" + " word" * case.words,
        negative_prompt=" " if case.guided else None,
        references=references,
        width=case.side,
        height=case.side,
        steps=case.steps,
        true_cfg_scale=4.0 if case.guided else 1.0,
        lightning=not case.guided,
        seed=number,
    )
    if not case.begins:
        return wish
    size = case.side, case.side
    source = references[0] if references else Image.new("RGB", size, tuple(digest[:3]))
    mask = None if case.begins == IMG2IMG else Image.linear_gradient("L").resize(size)
    return replace(wish, source=source, mask=mask, strength=1.0)
