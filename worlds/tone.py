"""A family that makes a tone, and the task `speech` that it needs."""

import io
import math
import wave
from array import array
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from worker.edge import echo, fields
from worker.media.piece import Encoded
from worker.seam import Made, Served
from worker.tasks.task import Asked, Span, Task

RATE = 24_000  # samples per second
OFFERS: dict[str, Any] = {"speech": SimpleNamespace(facts=lambda _: {"sample_rate": RATE})}


class SpeechInput(fields.CommonInput):
    """What a job's `input` may hold for speech."""

    prompt: str | None = fields.declare("a text", "required", "text", place=fields.WHAT)


@dataclass(frozen=True, slots=True)
class SpeechWish:
    """A text to say."""

    prompt: str = echo.public()
    task: str = echo.public(text="")
    seed: int = echo.public()

    def encode(self, *_: Any) -> Encoded:
        """Return a tone of 0.1 s per character, whose pitch is the seed's, as a WAV file."""
        turn = 2 * math.pi * (200 + self.seed % 200) / RATE
        count, file = len(self.prompt) * RATE // 10, io.BytesIO()
        with wave.open(file, "wb") as track:
            track.setparams((1, 2, RATE, 0, "NONE", ""))
            track.writeframes(array("h", (int(9999 * math.sin(turn * n)) for n in range(count))))
        return Encoded(file.getvalue(), "audio/wav", {"seconds": count / RATE, "sample_rate": RATE})


class Tone:
    """A model that hums; all of its wishes share a forward."""

    served = Served("tone", "a/tone", "1", "none", "", OFFERS)

    def together(self, *_: Any) -> bool:
        """Let them."""
        return True

    def make(self, wishes: Any, controls: Any) -> list[Made]:
        """Hum."""
        for control in controls:
            control.report("hum", 1, 1)
        return [Made(wish, {"hum": 5.0}) for wish in wishes]

    def warm(self) -> None:
        """Load nothing."""

    release = warm


SPEECH = Task(
    name="speech",
    input=SpeechInput,
    wish=SpeechWish,
    key="audio",
    noun="sound",
    formats={"wav": "wav"},
    spans=(Span("hum", 100, "hum"),),
    judge=lambda values, *_: Asked(SpeechWish(values.prompt or "", "speech", 0), values.prompt),
    lossless=("wav",),
)
