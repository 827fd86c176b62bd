"""A complete family that makes tones: its row, its model, and what that makes."""

import io
import math
import wave
from array import array
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

from worker.driver import Gpu
from worker.families.family import Family
from worker.media.piece import Encoded
from worker.seam import Control, Made, Openable, Served
from worker.settings import Settings
from worker.weights.spec import ModelSpec
from worlds.speech import SpeechWish

RATE = 24_000  # samples per second


class Offer:
    """What a tone offers for speech."""

    def describe(self, _settings: Settings) -> Mapping[str, int]:
        """Return the rate of its samples."""
        return {"sample_rate": RATE}


@dataclass(frozen=True)
class Tone:
    """A tone of 0.1 s per character, at a pitch given by the seed."""

    wish: SpeechWish

    def encode(self, _form: str, _quality: int, _text: Mapping[str, str]) -> Encoded:
        """Return a WAV file."""
        turn = 2 * math.pi * (200 + self.wish.seed % 200) / RATE
        count, file = len(self.wish.prompt) * RATE // 10, io.BytesIO()
        with wave.open(file, "wb") as track:
            track.setparams((1, 2, RATE, 0, "NONE", ""))
            track.writeframes(array("h", (int(9999 * math.sin(turn * n)) for n in range(count))))
        return Encoded(file.getvalue(), "audio/wav", {"seconds": count / RATE, "sample_rate": RATE})


@dataclass(frozen=True)
class Hum:
    """What hums must agree in to share a forward: nothing."""

    pixels: int = 0


class Fork:
    """A model that hums; all of its wishes share a forward."""

    served = Served("tone", "a/tone", "1", "none", "", {"speech": Offer()})

    def make_key(self, _wish: SpeechWish) -> Hum:
        """Return the same for all: they share a forward."""
        return Hum()

    def read_ahead(self, wish: SpeechWish) -> SpeechWish:
        """Return it as it is."""
        return wish

    def make(self, wishes: Sequence[SpeechWish], controls: Sequence[Control]) -> list[Made]:
        """Hum."""
        for control in controls:
            control.report("hum", 1, 1)
        return [Made(Tone(wish), {"hum": 5.0}) for wish in wishes]

    def warm(self) -> None:
        """Load nothing."""

    release = warm


def make_ready(_: ModelSpec, __: Settings, ___: Gpu | None, *, taken: Container[str]) -> Openable:
    """Return how to open it; nothing has to come from anywhere."""
    assert "tone" not in taken
    return Openable(Fork.served, {}, Fork)


ROW = ModelSpec("tone", "a/tone", "Tone", __name__, ("speech",), needs_gpu=False)
FAMILY = Family(rows=(ROW,), classes={}, form="a tone")
