"""Read keypad tones back from samples: which keys, and how long, by the power at 7 frequencies.

It shares no code and no constant with what makes the tones: the frequencies are ITU-T Q.23's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

ROWS: Final = (697.0, 770.0, 852.0, 941.0)  # Hz
COLUMNS: Final = (1209.0, 1336.0, 1477.0)
KEYS: Final = ("123", "456", "789", "*0#")
WINDOW_S: Final = 0.04  # a receiver must accept bursts of 40 ms (Q.24)
HOP_S: Final = 0.005
LOUD: Final = 0.03  # of full scale, RMS in 5 ms: a tone; below it, silence
CLEAR: Final = 4.0  # how many times the power of the next frequency of its group
PURE: Final = 0.7  # of a window's power is in its two frequencies
LONG_S: Final = 0.125  # between the one frame (85 ms) of the quick voice and the two of the steady


class Unreadable(ValueError):
    """A burst is no key beyond doubt."""


@dataclass(frozen=True, slots=True)
class Burst:
    """One key as it was heard, in seconds from the start."""

    key: str
    start: float
    length: float


def power(samples: NDArray[np.float64], rate: int, frequency: float) -> float:
    """Return the mean power of one frequency in samples by Goertzel's recurrence, in closed form.

    The recurrence s[n] = x[n] + 2 cos(w) s[n-1] - s[n-2] ends with |sum of x[n] exp(-i w n)|^2.
    """
    phase = np.exp(-2j * np.pi * frequency / rate * np.arange(len(samples)))
    window = np.hanning(len(samples))
    return float(2 * abs(np.dot(samples * window, phase)) ** 2 / window.sum() ** 2)


def name_key(samples: NDArray[np.float64], rate: int) -> str:
    """Return the key of a stretch of samples; raises Unreadable where it is not clear."""
    parts = []
    for group in (ROWS, COLUMNS):
        powers = [power(samples, rate, frequency) for frequency in group]
        best = int(np.argmax(powers))
        second = sorted(powers)[-2]
        if powers[best] < CLEAR * second:
            raise Unreadable(f"{group[best]:.0f} Hz is not clear: {powers}")
        parts.append((best, powers[best]))
    (row, low), (column, high) = parts
    window = np.hanning(len(samples))
    entire = float(((samples * window) ** 2).sum() / (window**2).sum())
    if low + high < PURE * entire:
        raise Unreadable(f"only {(low + high) / entire:.0%} of the power is in two frequencies")
    return KEYS[row][column]


def listen(samples: Sequence[float] | NDArray[np.floating], rate: int) -> list[Burst]:
    """Return the keys of samples (within 1); raises Unreadable for a sound that is none."""
    heard = np.asarray(samples, np.float64)
    hop = round(HOP_S * rate)
    pieces = heard[: len(heard) // hop * hop].reshape(-1, hop)
    loud = np.sqrt((pieces**2).mean(axis=1)) > LOUD
    edges = np.flatnonzero(np.diff(np.concatenate(([0], loud.astype(int), [0]))))
    bursts = []
    for begin, end in zip(edges[::2], edges[1::2], strict=True):
        length = (end - begin) * HOP_S
        if length < WINDOW_S:
            raise Unreadable(f"a sound of {length * 1000:.0f} ms at {begin * HOP_S:.2f} s")
        step = round(WINDOW_S * rate)
        starts = range(begin * hop, end * hop - step + 1, step)
        keys = {name_key(heard[start : start + step], rate) for start in starts}
        if len(keys) != 1:
            raise Unreadable(f"one sound of several keys: {sorted(keys)} at {begin * HOP_S:.2f} s")
        bursts.append(Burst(keys.pop(), begin * HOP_S, float(length)))
    return bursts


def read_keys(samples: Sequence[float] | NDArray[np.floating], rate: int) -> str:
    """Return the keys of samples as one string."""
    return "".join(burst.key for burst in listen(samples, rate))


def read_voice(bursts: Sequence[Burst]) -> str:
    """Return which of the two voices bursts are of; raises Unreadable where they differ."""
    voices = {"steady" if burst.length > LONG_S else "quick" for burst in bursts}
    if len(voices) != 1:
        raise Unreadable(f"{len(voices)} voices")
    return voices.pop()
