"""Pictures on the way: they lead to the picture, and change nothing of it."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from worker import boot, settings
from worker.engine import device as devices
from worker.engine.decoded import make_picture
from worker.families import previews
from worker.families.previews import Previews, choose_steps
from worker.families.sharing import Sharing
from worker.media.picture import Picture, Preview
from worker.media.piece import Piece
from worker.seam import Control, Made, Phase, take_made
from worlds.wishes import WISH, drawing

CIRCLE = replace(WISH, prompt="a large red circle on a blue background", steps=6)


@pytest.fixture(scope="module", params=["tiny-image", "tiny-flux"])
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """An embedded model of each family, opened as a worker opens it."""
    home = str(tmp_path_factory.mktemp("home"))
    opened: Any = boot.boot(settings.read({"MODEL": request.param, "MODEL_DIR": home}))
    yield opened.take(request.param)
    opened.take(request.param).release()


class Seeing(Control):
    """Keeps what is handed over, and after which step; ends its wish at a step."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.step = 0
        self.seen: list[tuple[int, Preview]] = []
        self._stop_at = stop_at

    def report(self, phase: Phase, step: int, steps: int) -> None:
        """Note the step that is done; raises InterruptedError at the one to stop at."""
        del steps
        if phase == "denoise":
            self.step = step
            if step == self._stop_at:
                raise InterruptedError

    def hand_over(self, part: Piece) -> None:
        """Keep it, with the step that it comes after."""
        assert isinstance(part, Preview)
        self.seen.append((self.step + 1, part))


def make(model: Any, *wishes: Any, controls: Any = None) -> tuple[list[Any], list[Seeing]]:
    seeing = controls or [Seeing() for _ in wishes]
    return list(model.make(wishes, seeing)), seeing


def pixels(outcome: Any) -> Any:
    piece = take_made(outcome).piece
    assert isinstance(piece, Picture)
    return np.asarray(piece.image, dtype=np.float32)


def test_steps_are_spread_and_none_is_the_last() -> None:
    assert choose_steps(0, 8) == frozenset()
    assert choose_steps(1, 8) == {4}
    assert choose_steps(2, 8) == {2, 5}
    assert choose_steps(3, 8) == {2, 4, 6}
    assert choose_steps(3, 4) == {1, 2, 3}
    assert choose_steps(3, 2) == {1}
    assert choose_steps(3, 1) == frozenset()


def test_previews_come_nearer_to_a_picture_that_is_the_same_without(model: Any) -> None:
    (plain,), _ = make(model, CIRCLE)
    (outcome,), (seeing,) = make(model, replace(CIRCLE, previews=3))
    final = pixels(outcome)
    assert np.array_equal(final, pixels(plain))
    assert [step for step, _ in seeing.seen] == [1, 3, 4]
    assert {one.seed for _, one in seeing.seen} == {CIRCLE.seed}
    apart = [
        float(np.abs(np.asarray(one.picture.image, dtype=np.float32) - final).mean())
        for _, one in seeing.seen
    ]
    assert apart[0] > apart[1] > apart[2] > 0
    assert apart[2] < 20


def test_wishes_that_share_steps_have_each_its_own(model: Any) -> None:
    """Of three, the second ends at a step: the third's are its own all the same."""
    wishes = [
        replace(CIRCLE, seed=seed, previews=count) for seed, count in ((1, 0), (2, 2), (3, 2))
    ]
    alone = make(model, wishes[2])
    controls = [Seeing(), Seeing(stop_at=2), Seeing()]
    outcomes, _ = make(model, *wishes, controls=controls)
    assert [len(control.seen) for control in controls] == [0, 1, 2]
    assert isinstance(outcomes[1], InterruptedError)
    assert np.array_equal(pixels(outcomes[2]), pixels(alone[0][0]))
    for (step, one), (other_step, other) in zip(controls[2].seen, alone[1][0].seen, strict=True):
        assert (step, one.seed) == (other_step, 3)
        assert one.picture.image.tobytes() == other.picture.image.tobytes()


def test_a_preview_shows_what_a_mask_leaves_at_the_size_of_the_picture(model: Any) -> None:
    mask = Image.new("L", (96, 96))
    ImageDraw.Draw(mask).rectangle((0, 0, 47, 95), fill=255)
    source = drawing(96, 96, 1)
    wish = replace(
        CIRCLE, task="inpaint", source=source, mask=mask, strength=1.0, final=(48, 48), previews=1
    )
    _, (seeing,) = make(model, wish)
    ((_, one),) = seeing.seen
    shown = one.picture.show()
    assert shown.size == (48, 48)
    kept = source.resize((48, 48), Image.Resampling.LANCZOS)
    right = (40, 0, 48, 48)
    assert shown.crop(right).tobytes() == kept.crop(right).tobytes()
    encoded = one.encode("png", 100, {})
    assert (encoded.mime_type, encoded.facts["seed"]) == ("image/png", CIRCLE.seed)


def test_one_without_room_is_left_out_and_the_picture_is_as_ever(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The picture is then not made in tiles either: memory ran out for the preview alone."""
    (plain,), _ = make(model, CIRCLE)
    asked: list[int] = []

    def run_out(_pixels: Any) -> Any:
        asked.append(1)
        raise torch.OutOfMemoryError

    monkeypatch.setattr(previews, "make_picture", run_out)
    (outcome,), (seeing,) = make(model, replace(CIRCLE, previews=3))
    assert isinstance(outcome, Made)
    assert np.array_equal(pixels(outcome), pixels(plain))
    assert (seeing.seen, len(asked)) == ([], 1)


def test_one_that_is_no_picture_is_left_out(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    flat = torch.zeros(3, 8, 8)
    monkeypatch.setattr(previews, "make_picture", lambda _: make_picture(flat))
    (outcome,), (seeing,) = make(model, replace(CIRCLE, previews=2))
    assert isinstance(outcome, Made)
    assert seeing.seen == []


class Decoder:
    """A VAE that decodes each row to noise or, for row 0 where it is `flat`, to one colour."""

    def __init__(self, room: int, *, is_flat: bool = False) -> None:
        self.decoded: list[tuple[Any, ...]] = []
        self._room, self._is_flat = room, is_flat

    def has_room(self, pixels: int) -> bool:
        """Return whether a picture fits."""
        return pixels <= self._room

    def decode(self, tokens: Any, width: int, height: int, *, tiled: bool) -> torch.Tensor:
        """Note what is decoded, and return pixels."""
        self.decoded.append((tokens.flatten().tolist(), width, height, tiled))
        is_flat = self._is_flat and self.decoded[-1][0] == [0]
        return torch.zeros(1, 3, 8, 8) if is_flat else torch.rand(1, 3, 8, 8) * 2 - 1


def watched(decoder: Any, steps: tuple[int, ...]) -> list[Seeing]:
    """Let previews of two wishes of 16 x 8 pixels watch steps of four."""
    wishes = [replace(WISH, width=16, height=8, previews=count) for count in (3, 1)]
    controls = [Seeing(), Seeing()]
    shown = Previews(wishes, Sharing(controls, drops=True), decoder)
    for step in steps:
        shown.watch(step, 4, lambda: torch.arange(2)[:, None, None])
    return controls


def test_each_is_decoded_alone_from_its_own_row_and_once_for_a_step() -> None:
    """A batch that is denoised again, with less memory, shows nothing twice."""
    decoder = Decoder(16 * 8)
    controls = watched(decoder, (1, 2, 1, 2, 2, 3, 4))
    assert decoder.decoded == [([row], 16, 8, False) for row in (0, 0, 1, 0)]
    assert [len(control.seen) for control in controls] == [3, 1]


def test_where_a_picture_has_no_room_in_one_piece_its_preview_has_none_either() -> None:
    decoder = Decoder(16 * 8 - 1)
    watched(decoder, (1,))
    assert decoder.decoded == [([0], 16, 8, True)]


def test_one_that_is_no_picture_does_not_hide_another_wish_s() -> None:
    assert [len(one.seen) for one in watched(Decoder(128, is_flat=True), (2,))] == [0, 1]


def test_memory_is_freed_after_a_preview_that_had_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once: there are no more."""
    freed: list[str] = []
    monkeypatch.setattr(devices, "free_memory", lambda: freed.append("freed"))

    class Scarce(Decoder):
        """One that has no memory at all."""

        def decode(self, *_: Any, **__: Any) -> torch.Tensor:
            """Run out of it."""
            freed.append("tried")
            raise torch.OutOfMemoryError

    watched(Scarce(128), (1, 2, 3))
    assert freed == ["tried", "freed"]


def test_what_a_step_leads_to_is_computed_only_where_it_is_shown() -> None:
    """Not after the others: it takes time on the device."""
    computed: list[int] = []
    decoder: Any = Decoder(128)
    wish = replace(WISH, width=16, height=8, previews=1)
    shown = Previews([wish], Sharing([Seeing()], drops=True), decoder)

    def watch(step: int) -> None:
        def estimate() -> torch.Tensor:
            computed.append(step)
            return torch.zeros(1, 1, 1)

        shown.watch(step, 4, estimate)

    for step in (1, 2, 3, 4):
        watch(step)
    assert computed == [2]
