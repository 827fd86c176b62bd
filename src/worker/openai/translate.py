"""A request of OpenAI's API -> a job's input, with what its caller should know."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from worker.errors import Detail, InvalidInput

GENERATIONS: Final = "/v1/images/generations"
EDITS: Final = "/v1/images/edits"
SPEECH_ROUTE: Final = "/v1/audio/speech"
LISTING: Final = "/v1/models"
# The beginning of each event's name on the routes that make pictures.
EVENTS: Final = {GENERATIONS: "image_generation", EDITS: "image_edit"}

# What OpenAI itself serves: clients send such a name where their user has chosen none.
DEFAULT_NAMES: Final = re.compile(
    r"(?:gpt-image|chatgpt-image|dall-e|tts|gpt-4o-mini-tts)(?:-[a-z0-9.-]*)?", re.IGNORECASE
)
# Accepted without effect: they describe the caller, or ask for what every picture here is.
IGNORED: Final = ("user", "safety_identifier", "moderation", "complexity")
# Accepted without effect, with a warning: OpenAI's own models read them.
UNUSED: Final = ("style", "input_fidelity")
# Where callers and other engines put the pictures to edit, in the order in which they are read.
SOURCES: Final = ("image", "image[]", "images", "url", "url[]", "image_b64")
# How many pictures on the way OpenAI's clients may ask for; a form has them as text.
PARTIAL: Final = ("0", "1", "2", "3")
LONGEST_SHOWN: Final = 60


@dataclass(frozen=True, slots=True)
class Call:
    """One request of OpenAI's API, as a job; `streams` asks for events instead of one reply.

    `previews` is how many events with a picture on the way come before that of each picture.
    """

    route: str
    input: Mapping[str, Any]
    warnings: tuple[str, ...]
    streams: bool
    previews: int


@dataclass(slots=True)
class _Draft:
    """A request under translation."""

    left: dict[str, Any]
    input: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    faults: list[Detail] = field(default_factory=list)
    previews: int = 0

    def take(self, name: str) -> Any:
        return self.left.pop(name, None)


def translate(route: str, body: Any) -> Call:
    """Return the job that a request means; what is not OpenAI's passes as it is.

    `route` is GENERATIONS, EDITS or SPEECH_ROUTE. Raises InvalidInput with every fault that only
    OpenAI's form has; the rest is checked with the job's input.
    """
    if not isinstance(body, dict):
        message = "must be a JSON object"
        raise InvalidInput(f"body: {message}", details=[Detail("body", message)])
    draft = _Draft({name: value for name, value in body.items() if value is not None})
    if draft.left.get("op", "generate") != "generate":
        draft.faults.append(Detail("op", "is not for this route"))
    streams = draft.take("stream")
    if streams not in (None, True, False):
        draft.faults.append(Detail("stream", "must be true or false"))
    _read_model(draft)
    for name in IGNORED:
        draft.take(name)
    for name in UNUSED:
        if draft.take(name) is not None:
            draft.warnings.append(f"{name}: has no effect")
    if route == SPEECH_ROUTE:
        _read_speech(draft, streams=bool(streams))
    else:
        _read_picture(draft, is_edit=route == EDITS, streams=bool(streams))
    if draft.faults:
        message = "; ".join(f"{fault.field}: {fault.message}" for fault in draft.faults)
        raise InvalidInput(message, details=draft.faults, warnings=draft.warnings)
    return Call(
        route, {**draft.left, **draft.input}, tuple(draft.warnings), bool(streams), draft.previews
    )


def _read_model(draft: _Draft) -> None:
    name = draft.left.get("model")
    if isinstance(name, str) and DEFAULT_NAMES.fullmatch(name):
        draft.take("model")
        shown = name[:LONGEST_SHOWN]
        draft.warnings.append(f"model: {shown} is OpenAI's; this worker's default is used")


def _read_picture(draft: _Draft, *, is_edit: bool, streams: bool) -> None:
    """Read what OpenAI's two routes of pictures have in common."""
    if draft.left.get("background") in ("auto", "opaque"):
        draft.take("background")
    partial = draft.take("partial_images")
    if partial is not None and str(partial) not in PARTIAL:
        draft.faults.append(Detail("partial_images", "must be 0 to 3"))
    elif partial is not None and streams:
        draft.previews = int(partial)
    draft.left.setdefault("response_format", "b64_json")
    sources: list[Any] = []
    for name in SOURCES:
        given = draft.take(name)
        if given is not None:
            sources += given if isinstance(given, list) else [given]
    if sources:
        draft.input["images"] = sources
    elif is_edit:
        draft.input["task"] = "edit"


def _read_speech(draft: _Draft, *, streams: bool) -> None:
    draft.input["task"] = "speech"
    if (text := draft.take("input")) is not None:
        draft.input["prompt"] = text
    if (form := draft.take("response_format")) is not None:
        if draft.left.get("output_format") not in (None, form):
            draft.faults.append(Detail("response_format", "asks for another than output_format"))
        draft.input["output_format"] = form
    if draft.take("stream_format") not in (None, "audio"):
        draft.faults.append(Detail("stream_format", "must be audio: events have no sound in them"))
    if streams:
        draft.input["stream"] = True
