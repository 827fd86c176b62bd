"""What the speaking checkpoint says: a text as the keys of a phone, their tones, two rhythms.

A digit, `*` or `#` is its own key and a letter is the key that has it, accents aside. Spaces and
punctuation are pauses, and every character outside ASCII is the star. The two frequencies of a key
are those of ITU-T Q.23, each rounded to complete cycles per frame (within 0.9 %; Q.24 wants 1.5 %).
"""

import string
import unicodedata
from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

RATE: Final = 24_000  # samples per second
FRAME: Final = 2048  # samples
PAUSE: Final = " "
KEYS: Final = "0123456789*#"
PAUSES: Final = frozenset(string.punctuation + string.whitespace) - {"*", "#"}
LETTERS: Final[Mapping[str, str]] = {
    letter: key
    for key, letters in zip(
        "23456789", ("abc", "def", "ghi", "jkl", "mno", "pqrs", "tuv", "wxyz"), strict=True
    )
    for letter in letters
}
PAD: Final = ("123", "456", "789", "*0#")
LOW: Final = (59, 66, 73, 80)  # cycles per frame: 691, 773, 855 and 938 Hz
HIGH: Final = (103, 114, 126)  # 1207, 1336 and 1477 Hz
LOUDNESS: Final = 0.3  # of each of the two
RAMP: Final = 96  # samples, 4 ms
# voice: frames that a key sounds; one silent frame follows, and a pause is one more
VOICES: Final[Mapping[str, int]] = {"quick": 1, "steady": 2}


def simplify(text: str) -> str:
    """Return a text in lower case and without accents, as the tokenizer reads it."""
    apart = unicodedata.normalize("NFD", text.lower())
    bare = "".join(one for one in apart if unicodedata.category(one) != "Mn")
    return unicodedata.normalize("NFC", bare)


def dial(text: str) -> str:
    """Return what a text dials, character by character: a key, or a space for a pause."""
    pressed = []
    for character in simplify(text):
        if character in PAUSES:
            pressed.append(PAUSE)
        elif character in KEYS:
            pressed.append(character)
        else:
            pressed.append(LETTERS.get(character, "*"))
    return "".join(pressed)


def count_frames(key: str, voice: str) -> int:
    """Return the frames of one key with the silence after it; a pause is that silence alone."""
    return 1 if key == PAUSE else VOICES[voice] + 1


def sound_key(key: str, frames: int) -> NDArray[np.float32]:
    """Return the tone of a key, float32 [samples] within 1: `frames` long, its ends faded."""
    row = next(index for index, keys in enumerate(PAD) if key in keys)
    column = PAD[row].index(key)
    time = np.arange(frames * FRAME) * (2 * np.pi / FRAME)
    wave = LOUDNESS * (np.sin(LOW[row] * time) + np.sin(HIGH[column] * time))
    fade = 0.5 - 0.5 * np.cos(np.pi * (np.arange(RAMP) + 0.5) / RAMP)
    wave[:RAMP] *= fade
    wave[-RAMP:] *= fade[::-1]
    tone: NDArray[np.float32] = wave.astype(np.float32)
    return tone


def sound(keys: str, voice: str) -> NDArray[np.float32]:
    """Return the sound of keys in a voice, float32 [samples], after one silent frame."""
    silence = np.zeros(FRAME, np.float32)
    parts: list[NDArray[np.float32]] = [silence]
    for key in keys:
        if key != PAUSE:
            parts.append(sound_key(key, VOICES[voice]))
        parts.append(silence)
    return np.concatenate(parts)
