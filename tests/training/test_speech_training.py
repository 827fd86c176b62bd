"""The recipe of the speaking checkpoint: its codebooks, its bank of codes, its stages."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from training.speech import bank as banks
from training.speech import codebooks, layout, train_speaker
from training.speech.codec import Quantizer, Snac
from training.speech.course import Course
from training.speech.dialling import VOICES, count_frames, dial, sound
from training.speech.texts import is_held_out


@pytest.fixture(scope="module")
def codec() -> Snac:
    torch.manual_seed(0)
    return Snac().eval()


@pytest.fixture(scope="module")
def numbered() -> banks.Bank:
    """Return a bank whose ids are the number of their key."""
    blocks = np.zeros((2, 14, 13, 14, 3, 7), np.int16)
    blocks += np.arange(13, dtype=np.int16).reshape(1, 1, 13, 1, 1, 1)
    return banks.Bank(blocks, np.full((2, 13, 7), 99, np.int16))


def test_each_codebook_leaves_less_of_the_latents_and_uses_most_of_its_entries() -> None:
    torch.manual_seed(1)
    codec = Snac()
    latents = torch.randn(16, 192, 1) * 0.2 + torch.randn(16, 192, 24).cumsum(dim=2)
    left = codebooks.fit(codec, latents, seed=0)
    assert 1 > left[0] > left[1] > left[2] > 0
    for one, codes in zip(codec.quantizer.quantizers, codec.quantizer.encode(latents), strict=True):
        assert isinstance(one, Quantizer)
        assert len(codes.unique()) > min(codes.numel(), 128) / 2


def test_an_entry_is_the_mean_of_the_points_nearest_to_its_direction() -> None:
    points = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 2.0], [0.0, 4.0], [-1.0, -1.0]])
    means = codebooks.cluster(points, 3, seed=0)
    assert sorted(means.tolist()) == [[-1.0, -1.0], [0.0, 3.0], [2.0, 0.0]]


def test_every_three_keys_occur_once() -> None:
    keys = banks.every_three()
    threes = [keys[start : start + 3] for start in range(len(keys) - 2)]
    assert len(set(threes)) == len(threes) == 13**3


def test_a_text_put_together_has_the_frames_of_its_keys(numbered: banks.Bank) -> None:
    keys = dial("1 2#")
    quick, steady = (numbered.compose(keys, voice)[:, 0].tolist() for voice in (0, 1))
    assert quick == [99, 1, 1, 12, 2, 2, 11, 11]
    assert steady == [99, 1, 1, 1, 12, 2, 2, 2, 11, 11, 11]


def test_ids_of_frames_are_slots_of_seven_in_the_published_order(codec: Snac) -> None:
    with torch.no_grad():
        ids = banks.encode(codec, "5 1", "quick", torch.device("cpu"))
    assert ids.shape == (1 + sum(count_frames(key, "quick") for key in "5 1"), 7)
    codes = ids.astype(int) - layout.FIRST_AUDIO - np.arange(7) * layout.CODES
    assert codes.min() >= 0
    assert codes.max() < layout.CODES
    samples = torch.from_numpy(sound("5 1", "quick"))[None, None]
    with torch.no_grad():
        one, two, four = (each[0].tolist() for each in codec.encode(samples))
    assert codes[:, 0].tolist() == one
    assert codes[:, [1, 4]].reshape(-1).tolist() == two
    assert codes[:, [2, 3, 5, 6]].reshape(-1).tolist() == four


def test_a_batch_has_no_text_that_is_held_out_and_learns_only_what_is_said(
    numbered: banks.Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts: list[str] = []
    encode = layout.encode

    def note(text: str, voice: str) -> list[int]:
        texts.append(text)
        return encode(text, voice)

    monkeypatch.setattr(layout, "encode", note)
    examples = train_speaker.Examples(numbered, 1500, 3, 9)
    ids, targets = examples.make(random.Random(4))
    assert len(texts) == len(ids)
    assert not any(map(is_held_out, texts))
    for text, row, goal in zip(texts, ids, targets, strict=True):
        (prompt,) = [
            encode(text, voice)
            for voice in VOICES
            if row[: len(encode(text, voice))].tolist() == encode(text, voice)
        ]
        said = goal[goal >= 0].tolist()
        assert goal[: len(prompt)].tolist() == [-100] * len(prompt)
        assert row[len(prompt) : len(prompt) + len(said)].tolist() == said
        assert len(said) % 7 == 1
        assert said[-1] == layout.END_SPEECH


def test_nf4_is_what_bitsandbytes_makes_of_a_matrix() -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    matrix = torch.randn(64, 192, generator=torch.Generator().manual_seed(1))
    packed, state = functional.quantize_4bit(matrix, blocksize=64, quant_type="nf4")
    ours = train_speaker.round_to_nf4(matrix, train_speaker.make_levels())
    assert torch.allclose(ours, functional.dequantize_4bit(packed, state), atol=1e-5)


def test_a_stage_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    weight = torch.nn.Linear(2, 2)
    course = Course(tmp_path / "stage.pt", 0.001, [weight])
    progress = list(course.run())
    assert progress[0] == 0
    assert progress == sorted(progress)
    assert progress[-1] < 1
    kept = weight.weight.detach().clone()
    torch.nn.init.zeros_(weight.weight)
    again = Course(tmp_path / "stage.pt", 0.002, [weight])
    again.load()
    assert torch.equal(weight.weight, kept)
    assert again.step == course.step
    assert next(again.run()) >= 0.5
    done = Course(tmp_path / "stage.pt", 0.001, [weight])
    done.load()
    assert not list(done.run())


def test_a_text_is_exact_only_if_every_code_and_its_end_are() -> None:
    goal = torch.tensor([[-100, 2, 1], [-100, 0, 3]])
    logits: Tensor = torch.nn.functional.one_hot(torch.tensor([[3, 2, 1], [3, 0, 2]]), 4).float()
    assert train_speaker.is_exact(logits, goal).tolist() == [True, False]
