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
from worker.engine.cache import TensorCache
from worker.errors import BadPicture, CudaOutOfMemory
from worker.families import drawing
from worker.families.clock import Clock
from worker.families.masking import find_original
from worker.families.memory import Phases
from worker.families.references import ReferencePictures
from worker.families.sharing import Sharing
from worker.media.picture import Original
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


@pytest.mark.parametrize(
    ("given", "is_kept"),
    [
        (("source", "mask"), True),
        (("source", "mask", "changes"), False),
        (("source",), False),
        (("mask",), False),
        ((), False),
    ],
    ids=str,
)
def test_a_picture_shows_where_a_mask_leaves_it_unless_all_of_it_may_change(
    *, given: tuple[str, ...], is_kept: bool
) -> None:
    source, mask = draw(8, 8, 1), Image.new("L", (8, 8))
    wish = replace(
        WISH,
        source=source if "source" in given else None,
        mask=mask if "mask" in given else None,
        preserves="changes" not in given,
    )
    assert find_original(wish) == (Original(source, mask) if is_kept else None)


class Roomy:
    """A VAE that has room for so many pixels in one piece, and runs out of memory at one size."""

    def __init__(self, room: int = 1 << 30, *, full_at: tuple[int, int] | None = None) -> None:
        self.asked: list[tuple[int, int, bool]] = []
        self._room, self._full_at = room, full_at

    def has_room(self, pixels: int) -> bool:
        """Return whether a picture fits."""
        return pixels <= self._room

    def encode(self, _image: Image.Image, width: int, height: int, *, tiled: bool) -> torch.Tensor:
        """Return as many latents as there are pixels."""
        self._note(width, height, tiled)
        return torch.zeros(1, width * height, 1)

    def decode(self, _latents: Any, width: int, height: int, *, tiled: bool) -> torch.Tensor:
        """Return noise."""
        self._note(width, height, tiled)
        return torch.rand(1, 3, height, width) * 2 - 1

    def _note(self, width: int, height: int, tiled: bool) -> None:
        self.asked.append((width, height, tiled))
        if not tiled and (width, height) == self._full_at:
            raise torch.OutOfMemoryError


def encode_or_decode(vae: Any, sizes: list[tuple[int, int]], *, encodes: bool) -> Clock:
    """Encode, or decode, a picture at each of these sizes."""
    clock, phases = Clock(CPU), Phases(lambda: None)
    latents, source = torch.zeros(1, 1, 1), draw(8, 8, 1)
    encode = drawing.make_encode(vae, TensorCache(1 << 20), ReferencePictures(), phases, clock)
    for width, height in sizes:
        if encodes:
            encode(source, (width, height))
        else:
            wish = replace(WISH, width=width, height=height)
            made = drawing.decode_picture(vae, latents, wish, phases, clock)
            assert isinstance(made, Image.Image)
    return clock


@pytest.mark.parametrize("encodes", [True, False])
@pytest.mark.parametrize("size", [(16, 8), (8, 16)])
def test_a_picture_of_more_pixels_than_there_is_room_for_is_made_in_tiles(
    *, size: tuple[int, int], encodes: bool
) -> None:
    for room, tiled in ((128, False), (127, True)):
        vae = Roomy(room)
        clock = encode_or_decode(vae, [size], encodes=encodes)
        assert vae.asked == [(*size, tiled)]
        assert list(clock.spent) == ["reference" if encodes else "decode"]


@pytest.mark.parametrize("encodes", [True, False])
def test_after_running_out_of_memory_pictures_of_as_many_pixels_are_made_in_tiles(
    *, encodes: bool
) -> None:
    """Of whatever shape; those of another area, with a side in common or not, are not."""
    vae = Roomy(full_at=(16, 8))
    encode_or_decode(vae, [(16, 8), (8, 16), (32, 16), (16, 4), (8, 8)], encodes=encodes)
    assert vae.asked == [
        (16, 8, False),
        (16, 8, True),
        (8, 16, True),
        (32, 16, False),
        (16, 4, False),
        (8, 8, False),
    ]


@pytest.mark.parametrize(
    ("height", "is_same"), [(1023, True), (1024, True), (1040, True), (1056, False), (992, False)]
)
def test_a_reference_shares_the_output_s_size_where_their_aspects_are_within_three_percent(
    *, height: int, is_same: bool
) -> None:
    image = Image.new("L", (512, 512))
    wish = replace(WISH, width=1024, height=height)
    assert drawing.has_same_aspect(image, wish) is is_same
    upright = replace(WISH, width=height, height=1024)
    assert drawing.has_same_aspect(image, upright) is is_same


@pytest.mark.parametrize(
    ("negative", "scale", "names"),
    [
        ("dull", 1.5, ["prompt", "negative prompt"]),
        ("", 1.5, ["prompt", "negative prompt"]),
        ("dull", 1.0, ["prompt"]),
        ("dull", 0.5, ["prompt"]),
        (None, 4.0, ["prompt"]),
    ],
)
def test_a_negative_prompt_counts_where_guidance_is_above_one(
    negative: str | None, scale: float, names: list[str]
) -> None:
    wish = replace(WISH, negative_prompt=negative, true_cfg_scale=scale)
    texts = drawing.list_texts(wish)
    assert list(texts) == names
    assert texts["prompt"] == wish.prompt
    assert texts.get("negative prompt") in (negative, None)
