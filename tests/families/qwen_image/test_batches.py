"""Pictures that share forwards: each is, to the last bit, the picture that it is alone."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image

from worker import boot, settings
from worker.errors import BadPicture, CudaOutOfMemory, Internal
from worker.families.clock import Clock
from worker.families.qwen_image.model import QwenImage
from worker.families.references import ReferencePictures
from worker.families.sharing import Sharing
from worker.media.picture import Picture
from worker.seam import Control, Outcome, Phase, Unheard, take_made
from worker.tasks.picture import PictureWish
from worlds.making import drawn

PROMPTS = ("a red circle", "a blue square", "a green circle", "a red square")


@pytest.fixture(scope="module", params=["bf16", "8bit", "4bit"])
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The embedded pair at one precision."""
    home = tmp_path_factory.mktemp("home")
    given = {"MODEL": "tiny", "MODEL_DIR": str(home), "PRECISION_MODE": request.param}
    return boot.boot(settings.read(given))


@pytest.fixture(scope="module")
def bf16(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The embedded pair in bf16."""
    home = tmp_path_factory.mktemp("home")
    return boot.boot(settings.read({"MODEL": "tiny", "MODEL_DIR": str(home)}))


def picture(seed: int, side: int = 64) -> Image.Image:
    """Return a reference that no other seed has."""
    slope = Image.linear_gradient("L").resize((side, side))
    return Image.merge("RGB", (slope, slope.rotate(90), slope.rotate(180))).rotate(90 * seed)


def wish(prompt: str = PROMPTS[0], seed: int = 0, **more: Any) -> PictureWish:
    plain = PictureWish(
        prompt=prompt,
        negative_prompt=None,
        task="edit" if more.get("references") else "text-to-image",
        seed=seed,
        steps=4,
        true_cfg_scale=1.0,
        lightning=True,
        references=(),
        width=64,
        height=64,
    )
    return replace(plain, **more)


def guided(one: PictureWish, negative: str = "dark") -> PictureWish:
    return replace(one, lightning=False, true_cfg_scale=3.0, negative_prompt=negative, steps=3)


def texts() -> list[PictureWish]:
    return [wish(prompt, seed) for seed, prompt in enumerate(PROMPTS)]


def edits() -> list[PictureWish]:
    return [wish(one.prompt, one.seed, references=(picture(one.seed),)) for one in texts()]


def image_of(outcome: Outcome) -> Image.Image:
    piece = take_made(outcome).piece
    assert isinstance(piece, Picture)
    return piece.image


@pytest.mark.parametrize("kind", ["text", "edit", "text with CFG", "edit with CFG"])
def test_every_row_of_a_batch_is_the_picture_alone(models: Any, kind: str) -> None:
    model: QwenImage = models.take("tiny-edit" if "edit" in kind else "tiny-image")
    wishes = edits() if "edit" in kind else texts()
    if "CFG" in kind:
        # negative prompts of their own, of one length
        words = ("red", "blue", "red", "green")
        wishes = [guided(one, word) for one, word in zip(wishes, words, strict=True)]
    assert len({model.make_key(one) for one in wishes}) == 1
    alone = [drawn(model, one).tobytes() for one in wishes]
    for rows in ((0, 1), (3, 1, 0, 2)):
        made = model.make([wishes[row] for row in rows], [Unheard()] * len(rows))
        assert [image_of(one).tobytes() for one in made] == [alone[row] for row in rows]


class Ending(Control):
    """A control that ends its picture at a step of a phase."""

    def __init__(self, phase: Phase, step: int) -> None:
        self._end = (phase, step)

    def report(self, phase: Phase, step: int, steps: int) -> None:
        """End there."""
        del steps
        if (phase, step) == self._end:
            raise InterruptedError


@pytest.mark.parametrize("end", [("text", 1), ("denoise", 1), ("denoise", 2), ("denoise", 3)])
def test_a_row_that_ends_changes_no_bit_of_the_others(bf16: Any, end: tuple[Phase, int]) -> None:
    model: QwenImage = bf16.take("tiny-edit")
    wishes = [guided(one) for one in edits()]
    alone = [drawn(model, one).tobytes() for one in wishes]
    controls = [Unheard(), Ending(*end), Unheard(), Ending("denoise", 2)]
    with counted_rows(model) as rows:
        outcomes = list(model.make(wishes, controls))
    assert isinstance(outcomes[1], InterruptedError)
    assert isinstance(outcomes[3], InterruptedError)
    assert [image_of(outcomes[row]).tobytes() for row in (0, 2)] == [alone[0], alone[2]]
    # each step has the forward of the prompt and that of the negative one
    left = {("text", 1): [4, 3, 2], ("denoise", 1): [4, 3, 2], ("denoise", 2): [4, 4, 2]}
    assert rows == [n for n in left.get(end, [4, 4, 3]) for _ in range(2)]


@contextlib.contextmanager
def counted_rows(model: QwenImage) -> Iterator[list[int]]:
    """Yield a list that gets the rows of each forward."""
    rows: list[int] = []
    layer = model._parts.transformer.img_in
    handle = layer.register_forward_hook(lambda _, given, __: rows.append(len(given[0])))
    yield rows
    handle.remove()


def test_a_batch_without_any_row_stops_within_a_step(bf16: Any) -> None:
    model: QwenImage = bf16.take("tiny-image")
    with counted_rows(model) as rows, pytest.raises(InterruptedError):
        list(model.make(texts()[:2], [Ending("denoise", 1), Ending("denoise", 2)]))
    assert rows == [2, 1]


def test_on_a_gpu_the_batch_keeps_its_shape_and_a_row_that_ended_is_not_given(
    bf16: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: QwenImage = bf16.take("tiny-image")
    wishes = texts()
    alone = [drawn(model, one).tobytes() for one in wishes]
    monkeypatch.setattr(
        "worker.families.drawing.Sharing",
        lambda controls, drops: Sharing(controls, drops=not drops),
    )
    with counted_rows(model) as rows:
        controls = [Ending("denoise", 2), Unheard(), Ending("text", 1), Unheard()]
        outcomes = list(model.make(wishes, controls))
    assert [type(one) is InterruptedError for one in outcomes] == [True, False, True, False]
    assert [image_of(outcomes[row]).tobytes() for row in (1, 3)] == [alone[1], alone[3]]
    assert rows == [4] * 4


def test_pictures_of_different_keys_are_never_made_together(bf16: Any) -> None:
    model: QwenImage = bf16.take("tiny-image")
    with counted_rows(model) as rows, pytest.raises(Internal):
        list(model.make([wish(), wish("a red circle and a square")], [Unheard()] * 2))
    assert rows == []


class Scarce:
    """A forward that has memory for so many rows."""

    def __init__(self, real: Any, rows: int) -> None:
        self.calls: list[int] = []
        self._real, self._rows = real, rows

    def __call__(self, latents: torch.Tensor, *given: Any) -> Any:
        """Run out of memory, or run."""
        self.calls.append(len(latents))
        if len(latents) > self._rows:
            raise torch.OutOfMemoryError("full")
        return self._real(latents, *given)


def test_several_that_do_not_fit_are_given_up_at_once_and_one_is_tried_again(
    bf16: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: QwenImage = bf16.take("tiny-image")
    scarce = Scarce(model._parts.forward, 1)
    monkeypatch.setattr(model._parts, "forward", scarce)
    with pytest.raises(CudaOutOfMemory):
        list(model.make(texts()[:2], [Unheard()] * 2))
    assert scarce.calls == [2]
    assert drawn(model, texts()[0])
    scarce = Scarce(scarce._real, 0)
    monkeypatch.setattr(model._parts, "forward", scarce)
    with pytest.raises(CudaOutOfMemory):
        list(model.make(texts()[:1], [Unheard()]))
    assert scarce.calls == [1, 1]


def test_a_bad_picture_is_the_outcome_of_its_own_row(
    bf16: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: QwenImage = bf16.take("tiny-image")
    decode, calls = model._vae.decode, list[int]()

    def second_black(*given: Any, **more: Any) -> Any:
        calls.append(1)
        pixels = decode(*given, **more)
        return pixels * 0 if len(calls) == 2 else pixels

    monkeypatch.setattr(model._vae, "decode", second_black)
    outcomes = list(model.make(texts()[:3], [Unheard()] * 3))
    assert isinstance(outcomes[1], BadPicture)
    assert [image_of(one).size for one in (outcomes[0], outcomes[2])] == [(64, 64)] * 2


def test_each_picture_is_given_before_the_next_is_decoded(
    bf16: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: QwenImage = bf16.take("tiny-image")
    decode, calls = model._vae.decode, list[int]()

    def counted(*given: Any, **more: Any) -> Any:
        calls.append(len(given[0]))
        return decode(*given, **more)

    monkeypatch.setattr(model._vae, "decode", counted)
    spent = []
    for number, outcome in enumerate(model.make(texts()[:3], [Unheard()] * 3), 1):
        assert calls == [1] * number
        spent.append(take_made(outcome).timings_ms)
    # what all of them took by then: the steps once, one decoding after another
    assert len({one["denoise"] for one in spent}) == 1
    assert spent[0]["decode"] < spent[1]["decode"] < spent[2]["decode"]


# The key.


def keys(model: QwenImage, wishes: Sequence[PictureWish]) -> list[Any]:
    return [model.make_key(one) for one in wishes]


def test_what_a_row_of_its_own_has_is_not_in_the_key(bf16: Any) -> None:
    model: QwenImage = bf16.take("tiny-edit")
    same = [
        wish(references=(picture(0),)),
        wish(PROMPTS[1], 7, references=(picture(1),)),
        wish(references=(picture(2),), final=(70, 70)),
    ]
    assert len(set(keys(model, same))) == 1
    assert keys(model, same)[0].pixels == 64 * 64


@pytest.mark.parametrize(
    "more",
    [
        {"task": "other"},
        {"width": 80},
        {"height": 80},
        {"steps": 8},
        {"lightning": False},
        {"true_cfg_scale": 2.0},
        {"true_cfg_scale": 3.0, "negative_prompt": "dark"},
        {"true_cfg_scale": 3.0, "negative_prompt": "dark and gloomy"},
        {"prompt": "a red circle and more"},
        {"references": (picture(0), picture(1))},
        {"references": (picture(0).resize((64, 96)),)},
        {"references": ()},
    ],
    ids=", ".join,
)
def test_whatever_changes_a_forward_is_in_the_key(bf16: Any, more: dict[str, Any]) -> None:
    model: QwenImage = bf16.take("tiny-edit")
    plain = wish(references=(picture(0),))
    other = replace(plain, **more)
    assert model.make_key(other) != model.make_key(plain)
    if "negative_prompt" in more:
        longer = replace(other, negative_prompt=more["negative_prompt"] + " very much so")
        assert model.make_key(longer) != model.make_key(other)


def test_references_share_where_they_are_seen_and_encoded_at_one_size(bf16: Any) -> None:
    model: QwenImage = bf16.take("tiny-edit")
    small, large = (wish(references=(picture(0).resize((n, n)),)) for n in (48, 200))
    assert model.make_key(small) == model.make_key(large)


@pytest.mark.parametrize("name", ["tiny-image", "tiny-edit"])
def test_the_tokens_of_the_key_are_those_of_the_embeddings(bf16: Any, name: str) -> None:
    """But for those of the references, which their sizes give."""
    model: QwenImage = bf16.take(name)
    references = (picture(0),) if name == "tiny-edit" else ()
    lengths = []
    for prompt in ("a", "a red circle", "a red circle " * 600, "\n\nx"):
        one = wish(prompt, references=references)
        embeds = model._embed(one, prompt, ReferencePictures(), Clock(model._parts.device)).embeds
        lengths.append((embeds.shape[1], model.make_key(one).tokens[0]))
    assert len({tokens - counted for tokens, counted in lengths}) == 1
    assert len({counted for _, counted in lengths}) > 2
