"""What callers may request of a model that speaks, from its row and its worker.json."""

from collections.abc import Callable
from dataclasses import replace

from worker.families.orpheus.recipe import count_kept
from worker.families.served import describe_served
from worker.seam import Served
from worker.settings import Settings
from worker.tasks.speech import SpeechOffer
from worker.weights.spec import ModelSpec


def describe_speech(
    spec: ModelSpec,
    settings: Settings,
    *,
    revision: str,
    precision: str,
    lightning: tuple[int, ...],
    working: Callable[[int], int],
    left: int | None,
) -> Served:
    """Describe what callers may request; nothing of it depends on the memory that is left."""
    del settings, lightning, left
    speaking = spec.defaults
    offer = SpeechOffer(
        voices=speaking.voices,
        rate=speaking.rate,
        tags=speaking.tags,
        temperature=speaking.temperature,
        top_p=speaking.top_p,
        repetition_penalty=speaking.repetition_penalty,
        pace=speaking.pace,
        passage=speaking.passage,
    )
    served = describe_served(spec, revision, precision, {"speech": offer}, working(0))
    return replace(served, kept=count_kept(speaking))
