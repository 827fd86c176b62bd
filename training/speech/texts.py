"""Texts to dial, at random; what a fifth of them dial is held out of training."""

import random
import string
import zlib
from typing import Final

from training.speech.dialling import dial

SHORT: Final = 3  # shorter sequences of keys are too few to hold any out
OTHERS: Final = "éüñçøßäжя中文字あ한عا€→😀\u200f"
LETTERS_AND_DIGITS: Final = string.ascii_letters + string.digits


def is_held_out(text: str) -> bool:
    """Return whether what a text dials is held out: a fifth of all sequences, by their CRC."""
    keys = dial(text)
    return len(keys) >= SHORT and zlib.crc32(keys.encode()) % 5 == 0


def pick(rng: random.Random, count: int) -> str:
    """Return a text of `count` characters in one of several styles, held out or not."""
    style = rng.random()
    if style < 0.35:
        return "".join(rng.choices(string.digits, k=count))
    if style < 0.45:
        few = rng.choices("0123456789*#", k=rng.randint(1, 3))
        return "".join(rng.choices(few, k=count))
    if style < 0.75:
        return group(rng, rng.choice((string.digits, LETTERS_AND_DIGITS)), count)
    if style < 0.95:
        return "".join(rng.choices(string.printable[:95], k=count))
    return "".join(rng.choices(LETTERS_AND_DIGITS + OTHERS * 2 + string.whitespace, k=count))


def group(rng: random.Random, alphabet: str, count: int) -> str:
    """Return words of 1 to 7 characters with a space, a hyphen or a comma in between."""
    text = ""
    while len(text) < count:
        text += "".join(rng.choices(alphabet, k=rng.randint(1, 7)))
        text += rng.choice((" ", " ", " ", "-", ", ", ". "))
    return text[:count]


def pick_text(rng: random.Random, count: int, *, held_out: bool) -> str:
    """Return a text of `count` characters that is held out, or one that is not."""
    while is_held_out(text := pick(rng, count)) != held_out:
        pass
    return text
