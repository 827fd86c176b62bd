"""The task `speech`, as a family that speaks needs it."""

from dataclasses import dataclass

from worker.edge import echo, fields
from worker.tasks.task import Asked, Span, Task


class SpeechInput(fields.CommonInput):
    """What a job's `input` may have for speech."""

    prompt: str | None = fields.declare("a text", "required", "text", place=fields.WHAT)


@dataclass(frozen=True, slots=True)
class SpeechWish:
    """A text to say."""

    prompt: str = echo.declare_public()
    task: str = echo.declare_public(text="")
    seed: int = echo.declare_public()


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
