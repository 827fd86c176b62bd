"""A speech in parts, for one that breaks: only after some of them were sent."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from worker.media.piece import Encoded
from worker.media.sound import Sound
from worker.seam import Control


@dataclass(frozen=True, eq=False)
class LastPart(Sound):
    """A part that says when its turn has come: those before it were sent."""

    turn: threading.Event = field(default_factory=threading.Event)

    def encode(self, form: str, quality: int, text: Mapping[str, str]) -> Encoded:
        """Return it as any sound."""
        self.turn.set()
        return Sound.encode(self, form, quality, text)


def hand_over_parts(sound: Sound, control: Control) -> threading.Event:
    """Hand over a speech in three parts; return what is set once two of them were sent."""
    first, second, third = np.array_split(sound.samples, 3)
    last = LastPart(third, sound.rate)
    for part in (Sound(first, sound.rate), Sound(second, sound.rate), last):
        control.hand_over(part)
    return last.turn
