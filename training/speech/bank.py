"""The codes of every key between any two others, by the trained encoder: what texts are made of.

The encoder sees 2.3 frames around a frame, which is the key before and the key after: so the codes
of a text are put together from those of three keys each, and no text has to be encoded.
"""

import itertools
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from training.speech import layout
from training.speech.codec import Snac
from training.speech.dialling import KEYS, PAUSE, VOICES, count_frames, sound

ALPHABET: Final = KEYS + PAUSE
EDGE: Final = len(ALPHABET)  # in the place of a key: the text begins or ends
LONGEST: Final = 1 + max(VOICES.values())  # frames of a key
STRETCH: Final = 60  # keys that are encoded as one


def encode(codec: Snac, keys: str, voice: str, device: torch.device) -> NDArray[np.int16]:
    """Return the ids of the frames of keys, int16 [frames, 7]."""
    codes = codec.encode(torch.from_numpy(sound(keys, voice))[None, None].to(device))
    books = [one.cpu().reshape(-1, wide) for one, wide in zip(codes, (1, 2, 4), strict=True)]
    slots = [
        layout.FIRST_AUDIO + slot * layout.CODES + books[book][:, nth]
        for slot, (book, nth) in enumerate(layout.PLACES)
    ]
    return torch.stack(slots, dim=1).to(torch.int16).numpy()


def every_three() -> str:
    """Return keys in which every three of the alphabet occur: a de Bruijn sequence by Lyndon words.

    Source of the algorithm: Fredricksen and Maiorana, 1978.
    """
    word, sequence = [-1], []
    while word:
        word[-1] += 1
        if 3 % len(word) == 0:
            sequence += word
        word = [word[place % len(word)] for place in range(3)]
        while word and word[-1] == len(ALPHABET) - 1:
            word.pop()
    return "".join(ALPHABET[number] for number in [*sequence, *sequence[:2]])


class Bank:
    """The ids of keys in their neighbourhood, and texts put together from them."""

    def __init__(self, blocks: NDArray[np.int16], leads: NDArray[np.int16]) -> None:
        self.blocks = blocks  # [voices, before, key, after, frames, 7]
        self.leads = leads  # [voices, first key, 7]
        self.counts = np.array([[count_frames(key, voice) for key in ALPHABET] for voice in VOICES])

    def compose(self, keys: str, voice: int) -> NDArray[np.int16]:
        """Return the ids of the frames of keys, [frames, 7], the silent first one included."""
        numbers = np.array([ALPHABET.index(key) for key in keys])
        before = np.concatenate(([EDGE], numbers[:-1]))
        after = np.concatenate((numbers[1:], [EDGE]))
        blocks = self.blocks[voice, before, numbers, after]
        used = np.arange(LONGEST)[None] < self.counts[voice, numbers][:, None]
        return np.concatenate((self.leads[voice, numbers[:1]], blocks[used]))


@torch.no_grad()
def encode_all(codec: Snac, device: torch.device) -> Bank:
    """Return the bank of a codec."""
    edges = EDGE + 1
    blocks = np.zeros((len(VOICES), edges, EDGE, edges, LONGEST, layout.SLOTS), np.int16)
    leads = np.zeros((len(VOICES), EDGE, layout.SLOTS), np.int16)
    short = ["".join(each) for n in (1, 2) for each in itertools.product(ALPHABET, repeat=n)]
    every = every_three()
    long = [every[start : start + STRETCH + 2] for start in range(0, len(every) - 2, STRETCH)]
    for voice, name in enumerate(VOICES):
        for keys in [*short, *long]:
            frames = encode(codec, keys, name, device)
            numbers = [ALPHABET.index(key) for key in keys]
            around = [EDGE, *numbers, EDGE]
            start = 1
            for before, key, after in zip(around, around[1:], around[2:], strict=False):
                end = start + count_frames(ALPHABET[key], name)
                if len(keys) < 3 or EDGE not in {before, after}:
                    blocks[voice, before, key, after, : end - start] = frames[start:end]
                start = end
            if len(keys) < 3:
                leads[voice, numbers[0]] = frames[0]
    return Bank(blocks, leads)


def load_bank(file: Path, codec: Snac, device: torch.device) -> Bank:
    """Return the bank in a file, made if there is none."""
    if not file.exists():
        bank = encode_all(codec, device)
        with file.with_suffix(".part").open("wb") as part:
            np.savez(part, blocks=bank.blocks, leads=bank.leads)
        file.with_suffix(".part").replace(file)
    with np.load(file) as arrays:
        return Bank(arrays["blocks"], arrays["leads"])


@torch.no_grad()
def compare(bank: Bank, codec: Snac, texts: list[str], device: torch.device) -> float:
    """Return the part of ids that are what the encoder makes of a text as one."""
    same = total = 0
    for number, keys in enumerate(texts):
        voice = number % len(VOICES)
        real = encode(codec, keys, list(VOICES)[voice], device)
        composed = bank.compose(keys, voice)
        same += int((real == composed).sum())
        total += real.size
    return same / total
