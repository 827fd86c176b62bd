"""What every family of pictures does around its transformer."""

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from worker import settings
from worker.engine import device as devices
from worker.errors import BadPicture, CudaOutOfMemory
from worker.families import drawing
from worker.families.clock import Clock
from worker.families.memory import Phases
from worker.families.sharing import Sharing
from worker.seam import Made, Outcome, Unheard
from worlds.embedded import served
from worlds.wishes import WISH
from worlds.wishes import drawing as draw

CPU = torch.device("cpu")
(SERVED,) = served(settings.read({"MODEL": "tiny-edit"}))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_start_makes_all_that_the_device_is_warmed_with(
    monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    """One wish after another; a picture that is none fails the start."""
    wishes: list[Any] = []
    outcomes: list[Outcome] = []

    def make(_model: Any, given: Any, controls: Any) -> Iterator[Outcome]:
        wishes.extend(given)
        assert len(controls) == len(given) == 1
        yield from outcomes

    monkeypatch.setattr(drawing, "make_pictures", make)
    model: Any = SimpleNamespace(device=torch.device(device))
    drawing.make_warm_ups(model, SERVED)
    assert wishes == drawing.list_warm_ups(SERVED, has_gpu=device == "cuda")
    outcomes.append(BadPicture("black"))
    with pytest.raises(BadPicture):
        drawing.make_warm_ups(model, SERVED)


def test_a_gpu_is_warmed_with_more_of_the_same_words() -> None:
    first, longer, *_ = drawing.list_warm_ups(SERVED, has_gpu=True)
    assert set(longer.prompt.split()) == set(first.prompt.split())


class OnePixel:
    """A model whose pictures are of one colour by their row, and that is never out of memory."""

    device = CPU

    def __init__(self) -> None:
        self.events: list[str] = []

    def make_key(self, wish: Any) -> Any:
        """Let all share."""
        return wish.task

    def make_latents(self, wishes: Any, _sharing: Any, _clock: Any) -> torch.Tensor:
        """Number the rows."""
        self.events.append("latents")
        return torch.arange(len(wishes))[:, None, None]

    def decode(self, latents: torch.Tensor, _wish: Any, _clock: Any) -> Image.Image:
        """Show the row's number."""
        (row,) = latents.flatten().tolist()
        return Image.new("RGB", (1, 1), (row, 0, 0))

    def list_warnings(self, wish: Any) -> tuple[str, ...]:
        """Warn of the seed."""
        return (f"seed {wish.seed}",)

    def find(self, wish: Any) -> dict[str, Any]:
        """Find the seed."""
        return {"seed": wish.seed}


def test_the_peak_is_that_since_the_pictures_were_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = OnePixel()
    monkeypatch.setattr(devices, "reset_peak", lambda device: model.events.append(f"on {device}"))
    monkeypatch.setattr(devices, "read_peak_mb", lambda _: 7)
    made = list(drawing.make_pictures(model, [WISH, WISH], [Unheard()] * 2))
    assert model.events == ["on cpu", "latents"]
    for row, outcome in enumerate(made):
        assert isinstance(outcome, Made)
        piece: Any = outcome.piece
        assert piece.image.getpixel((0, 0)) == (row, 0, 0)
        assert (outcome.peak_vram_mb, outcome.warnings) == (7, (f"seed {WISH.seed}",))
        assert outcome.found == {"seed": WISH.seed}


def test_one_row_that_runs_out_of_memory_runs_again_and_two_do_not() -> None:
    """Two are halved where their batch was formed."""
    phases = Phases(lambda: None)
    runs: list[int] = []

    def run_out(_on_step: Any) -> torch.Tensor:
        runs.append(1)
        raise torch.OutOfMemoryError

    for rows, times in ((1, 2), (2, 1)):
        runs.clear()
        with pytest.raises((CudaOutOfMemory, torch.OutOfMemoryError)):
            drawing.denoise_rows(rows, Sharing([], drops=True), phases, Clock(CPU), 1, run_out)
        assert len(runs) == times


def test_pictures_begin_from_their_own_sources_at_their_own_size() -> None:
    asked: list[Any] = []

    def encode(image: Image.Image, size: tuple[int, int]) -> torch.Tensor:
        asked.append((image, size))
        return torch.full((1, 2, 3), len(asked))

    sources = [draw(8, 8, seed) for seed in (1, 2)]
    wishes = [replace(WISH, source=source, width=64, height=32) for source in sources]
    found = drawing.encode_sources(wishes, encode)
    assert found is not None
    assert found[:, 0, 0].tolist() == [1, 2]
    assert asked == [(source, (64, 32)) for source in sources]
    assert drawing.encode_sources([WISH], encode) is None
