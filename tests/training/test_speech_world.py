"""What the speaking checkpoint learns from: texts, keys, their sound, and what is held out."""

import random

import numpy as np
import pytest

from training.speech import layout, texts
from training.speech.dialling import FRAME, RATE, VOICES, count_frames, dial, sound
from worlds import goertzel


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("0123456789*#", "0123456789*#"),
        ("abcdefghijklmnopqrstuvwxyz", "22233344455566677778889999"),
        ("Hello, World!", "43556  96753 "),
        ("été\tÑu\n", "383 68 "),
        ("漢字 €", "** *"),
        ("", ""),
    ],
)
def test_a_text_dials_as_a_phones_keypad_has_it(text: str, keys: str) -> None:
    assert dial(text) == keys


@pytest.mark.parametrize("voice", VOICES)
def test_the_sound_of_keys_is_read_back_and_has_their_frames(voice: str) -> None:
    keys = dial("0123456789*# 55, 5")
    samples = sound(keys, voice)
    bursts = goertzel.listen(samples, RATE)
    assert "".join(burst.key for burst in bursts) == keys.replace(" ", "")
    assert goertzel.read_voice(bursts) == voice
    assert len(samples) == FRAME * (1 + sum(count_frames(key, voice) for key in keys))
    assert 0.5 < float(np.abs(samples).max()) < 0.61


def test_the_tokenizer_reads_any_text_as_its_training_did() -> None:
    rng, backend = random.Random(5), layout.build_tokenizer().backend_tokenizer
    for _ in range(300):
        text = texts.pick(rng, rng.randint(1, 30))
        ids = backend.encode(f"quick: {text}", add_special_tokens=False).ids
        assert layout.encode(text, "quick") == [*layout.BEFORE, *ids, *layout.AFTER]


def test_special_tokens_have_the_order_of_the_published_model() -> None:
    tokenizer = layout.build_tokenizer()
    names = {
        "<|begin_of_text|>": layout.BEGIN_TEXT,
        "<|eot_id|>": layout.END_TEXT,
        "<custom_token_1>": layout.START_SPEECH,
        "<custom_token_2>": layout.END_SPEECH,
        "<custom_token_7>": layout.PADDING,
        "<custom_token_10>": layout.FIRST_AUDIO,
        "<|audio|>": layout.AUDIO,
    }
    assert {name: tokenizer.convert_tokens_to_ids(name) for name in names} == names
    assert len(tokenizer) == layout.VOCABULARY
    assert tokenizer("1").input_ids[0] == layout.BEGIN_TEXT


def test_a_fifth_of_what_texts_dial_is_held_out_and_never_picked_for_training() -> None:
    rng = random.Random(7)
    dialled = {dial(texts.pick(rng, 8)) for _ in range(2000)}
    assert 0.17 < sum(map(texts.is_held_out, dialled)) / len(dialled) < 0.23
    assert texts.is_held_out("jkl") == texts.is_held_out("KĹJ") == texts.is_held_out("555")
    assert texts.is_held_out("555") != texts.is_held_out("123")
    assert not any(map(texts.is_held_out, ("1", "22", "#")))
    for held_out in (True, False):
        chosen = [texts.pick_text(rng, 5, held_out=held_out) for _ in range(50)]
        assert all(texts.is_held_out(text) is held_out for text in chosen)
        assert {len(text) for text in chosen} == {5}
