"""Keypad tones are read back beyond doubt, and what is no keypad tone is refused."""

import numpy as np
import pytest
from numpy.typing import NDArray

from worlds import goertzel

RATE = 24_000
FREQUENCIES = {
    "1": (697, 1209), "2": (697, 1336), "3": (697, 1477),
    "4": (770, 1209), "5": (770, 1336), "6": (770, 1477),
    "7": (852, 1209), "8": (852, 1336), "9": (852, 1477),
    "*": (941, 1209), "0": (941, 1336), "#": (941, 1477),
}  # fmt: skip


def tone(*frequencies: float, seconds: float, level: float = 0.3) -> NDArray[np.float64]:
    time = np.arange(round(seconds * RATE)) * (2 * np.pi / RATE)
    waves: NDArray[np.float64] = level * sum(np.sin(f * time + f) for f in frequencies)
    return waves


def spaced(*parts: NDArray[np.float64]) -> NDArray[np.float64]:
    gap = np.zeros(RATE // 20)
    return np.concatenate([gap, *(piece for part in parts for piece in (part, gap))])


@pytest.mark.parametrize("shift", [0.991, 1.0, 1.009])
@pytest.mark.parametrize("seconds", [0.05, 0.0853, 0.1707])
def test_every_key_is_read_at_any_length_and_a_little_off(shift: float, seconds: float) -> None:
    keys = [tone(low * shift, high * shift, seconds=seconds) for low, high in FREQUENCIES.values()]
    bursts = goertzel.listen(spaced(*keys), RATE)
    assert "".join(burst.key for burst in bursts) == "".join(FREQUENCIES)
    assert all(abs(burst.length - seconds) <= 0.011 for burst in bursts)
    starts = [0.05 + number * (seconds + 0.05) for number in range(12)]
    assert np.allclose([burst.start for burst in bursts], starts, atol=0.011)


def test_the_voice_is_read_from_how_long_the_keys_are() -> None:
    short, long = (tone(770, 1336, seconds=frames * 2048 / RATE) for frames in (1, 2))
    assert goertzel.read_voice(goertzel.listen(spaced(short, short), RATE)) == "quick"
    assert goertzel.read_voice(goertzel.listen(spaced(long), RATE)) == "steady"
    with pytest.raises(goertzel.Unreadable, match="2 voices"):
        goertzel.read_voice(goertzel.listen(spaced(short, long), RATE))


@pytest.mark.parametrize(
    ("sound", "reason"),
    [
        (tone(697, seconds=0.1), "not clear"),
        (tone(697, 770, 1336, seconds=0.1), "not clear"),
        (tone(697, 1336, 2000, seconds=0.1), "power is in two"),
        (tone(1000, seconds=0.1), "not clear|power is in two"),
        (np.random.default_rng(1).normal(0, 0.2, 2400), "not clear|power is in two"),
        (tone(697, 1336, seconds=0.02), "a sound of 20 ms"),
        (
            np.concatenate((tone(697, 1336, seconds=0.08), tone(941, 1477, seconds=0.08))),
            "several keys",
        ),
    ],
    ids=["one", "three", "overtone", "between", "noise", "click", "merged"],
)
def test_what_is_no_single_key_is_refused(sound: NDArray[np.float64], reason: str) -> None:
    with pytest.raises(goertzel.Unreadable, match=reason):
        goertzel.read_keys(spaced(sound), RATE)


def test_silence_has_no_key_and_faint_noise_is_silence() -> None:
    assert not goertzel.listen(np.zeros(RATE), RATE)
    assert not goertzel.listen(np.random.default_rng(2).normal(0, 0.005, RATE), RATE)
