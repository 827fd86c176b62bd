"""A complete family that makes tones: its row, its model, and what that makes."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from worker.driver import Gpu
from worker.errors import BadAudio
from worker.families.family import Family
from worker.media.sound import Sound, round_samples
from worker.seam import Control, Made, Openable, Served
from worker.settings import Settings
from worker.tasks.speech import SpeechOffer, SpeechWish
from worker.weights.spec import ModelSpec
from worlds.breaking import hand_over_parts

RATE = 24_000  # samples per second


OFFER = SpeechOffer(voices=("fork",), rate=RATE, repetition_penalty=1.0)


def make_tone(wish: SpeechWish) -> Sound:
    """Return a tone of 0.1 s per character, at a pitch given by the seed."""
    times = np.arange(len(wish.prompt) * RATE // 10) / RATE
    pitch = 200 + wish.seed % 200
    return Sound(round_samples(np.sin(2 * np.pi * pitch * times).astype(np.float32)), RATE)


@dataclass(frozen=True)
class Hum:
    """What hums must agree in to share a forward: nothing."""

    pixels: int = 0


class Fork:
    """A model that hums; all of its wishes share a forward."""

    served = Served("tone", "a/tone", "1", "none", "", {"speech": OFFER})

    def make_key(self, _wish: SpeechWish) -> Hum:
        """Return the same for all: they share a forward."""
        return Hum()

    def read_ahead(self, wish: SpeechWish) -> SpeechWish:
        """Return it as it is."""
        return wish

    def make(self, wishes: Sequence[SpeechWish], controls: Sequence[Control]) -> list[Made]:
        """Hum."""
        made = [Made(make_tone(wish), {"generate": 5.0}) for wish in wishes]
        for wish, control in zip(wishes, controls, strict=True):
            sent = hand_over_parts(make_tone(wish), control) if wish.streams else None
            control.report("generate", 1, 1)
            if wish.prompt == "breaks":
                if sent is not None:  # an error may drop what waits
                    sent.wait(60)
                raise BadAudio("it broke")
        return made

    def warm(self) -> None:
        """Load nothing."""

    release = warm


class Forks:
    """The models of a worker that serves the fork alone."""

    served = (Fork.served,)

    def take(self, model_id: str) -> Fork:
        """Return the fork."""
        assert model_id == Fork.served.id
        return Fork()

    def find_open(self, _model_id: str) -> None:
        """Return none: it reads nothing ahead."""

    def list_addable(self, _task: str) -> Sequence[str]:
        """Return no other model."""
        return ()

    def report_health(self) -> Mapping[str, object]:
        """Return that it is loaded."""
        return {"resident": [Fork.served.id]}


def make_ready(_: ModelSpec, __: Settings, ___: Gpu | None, *, taken: Container[str]) -> Openable:
    """Return how to open it; nothing has to come from anywhere."""
    assert "tone" not in taken
    return Openable(Fork.served, {}, Fork)


ROW = ModelSpec("tone", "a/tone", "Tone", __name__, ("speech",), needs_gpu=False)
FAMILY = Family(rows=(ROW,), classes={}, form="a tone")
