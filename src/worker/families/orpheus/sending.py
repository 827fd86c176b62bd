"""The sound of passages, handed over in their order as far as it is there."""

from collections.abc import Sequence

from worker.families.orpheus.speaking import Passage
from worker.media.sound import Samples, Sound
from worker.seam import Control


class Sent:
    """How much of a speech is handed over: a `pause` comes between two passages."""

    def __init__(self, pause: Samples, rate: int, control: Control) -> None:
        self._pause, self._rate, self._control = pause, rate, control
        self._passage = 0
        self._pieces = 0

    def send_ready(self, spoken: Sequence[Passage]) -> None:
        """Hand over what is new, of the first passage that is not complete and those before."""
        while self._passage < len(spoken):
            passage = spoken[self._passage]
            parts = list(passage.sound[self._pieces :])
            if parts and not self._pieces and self._passage:
                parts.insert(0, self._pause)
            for part in parts:
                self._control.hand_over(Sound(part, self._rate))
            self._pieces = len(passage.sound)
            if not passage.is_complete:
                return
            self._passage += 1
            self._pieces = 0
