"""Text to speech: fields, offer, checks, the wish, a warm-up."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, cast

from pydantic import AfterValidator, BeforeValidator, Field

from worker.edge import fields
from worker.edge.blank import is_blank
from worker.edge.echo import declare_private, declare_public, show_given
from worker.edge.fields import CommonInput, Number, Plain, Visible, Whole
from worker.edge.verdict import Verdict
from worker.media.sound import SOUND_TYPES
from worker.seam import Served
from worker.settings import Settings
from worker.tasks import passages
from worker.tasks.task import Asked, Span, Task

TAG: Final = re.compile(r"<\s*/?\s*([A-Za-z][\w-]{0,30})\s*/?\s*>")
# Controls that are no space: a text that has them was damaged on its way here.
CONTROL: Final = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]")
MOST_WARNED: Final = 5

WARM_UP: Final = "One, two, three."


def _check_controls(text: str) -> str:
    if (found := CONTROL.search(text)) is not None:
        raise ValueError(f"must not contain control characters (U+{ord(found[0]):04X})")
    return text


def _check_sayable(text: str) -> str:
    if not any(character.isalnum() for character in TAG.sub("", text)):
        raise ValueError("must have a letter or a digit besides tags and punctuation")
    return text


def _read_carrier(value: Any) -> Any:
    word = value.lower() if isinstance(value, str) else value
    return "base64" if word == "b64_json" else word


class SpeechInput(CommonInput):
    """What a job's `input` may have for speech; None is what was left out or sent as null."""

    prompt: (
        Annotated[
            str,
            Field(min_length=1, max_length=5000),
            Plain,
            Visible,
            AfterValidator(_check_controls),
            AfterValidator(_check_sayable),
        ]
        | None
    ) = fields.declare(
        "what to say: string, 1-5000 characters with a letter or a digit; tags of the model such as"
        " `<laugh>`",
        "required",
        "text",
        "input",
        place=fields.WHAT,
    )
    voice: Annotated[str, Field(min_length=1, max_length=100), Plain, Visible] | None = (
        fields.declare(
            "one of the model's voices, in any case",
            "the model's first",
            "voice_id",
            "speaker",
            place=fields.WHAT,
        )
    )
    temperature: Annotated[float, Number, Field(ge=0.1, le=1.5)] | None = fields.declare(
        "0.1-1.5", "the model's, mostly 0.6"
    )
    top_p: Annotated[float, Number, Field(ge=0.1, le=1)] | None = fields.declare(
        "0.1-1", "the model's, mostly 0.8"
    )
    repetition_penalty: Annotated[float, Number, Field(ge=1, le=2)] | None = fields.declare(
        "1-2", "the model's, mostly 1.1"
    )
    max_tokens: Annotated[int, Whole, Field(ge=28, le=8192)] | None = fields.declare(
        "28-8192 tokens for all of the text; speech that is longer is cut, as `truncated` says",
        "as many as the text can need",
        "max_new_tokens",
    )
    speed: Annotated[float, Number, Field(ge=0.25, le=4)] | None = fields.declare(
        "1: no model here has another", "1"
    )
    stream: bool | None = fields.declare(
        "boolean; true: pcm comes piece by piece while it is made"
        " (see [Streaming](#streaming)); only with `output_format` pcm or none",
        "false",
        place=fields.ALWAYS,
    )
    num_images: Annotated[int, Whole, Field(ge=1, le=1)] | None = fields.declare(
        "1: one job is one speech", "1", "n", "num_outputs", place=fields.ALWAYS
    )
    output_format: (
        Annotated[str, fields.make_choice("formats"), fields.show_choice("formats")] | None
    ) = fields.declare(
        "{formats}; pcm is 16 bit, little-endian, without a header",
        "{format}",
        "format",
        "audio_format",
        place=fields.ALWAYS,
    )
    response_format: (
        Annotated[
            Literal["base64", "data_url", "url", "wav", "flac", "mp3", "opus", "pcm"],
            BeforeValidator(_read_carrier),
        ]
        | None
    ) = fields.declare(  # type: ignore[assignment] # more words than other tasks have
        "`base64` (or `b64_json`), `data_url`, `url` (needs a bucket or `upload_url`); also an"
        " `output_format`, as OpenAI means it",
        "`url` with a bucket or `upload_url`, else `base64`",
        place=fields.ALWAYS,
    )


@dataclass(frozen=True, slots=True)
class SpeechOffer:
    """What one model offers for speech.

    `voices` may be empty: it then takes any name, or none. `tags` are those that it acts instead of
    reading them aloud. `rate` is samples per second. `pace` is how many frames of speech a
    character takes about, for the progress of a job; `passage` is how many characters are spoken
    at once.
    """

    voices: tuple[str, ...]
    rate: int
    tags: tuple[str, ...] = ()
    temperature: float = 0.6
    top_p: float = 0.8
    repetition_penalty: float = 1.1
    pace: float = 0.9
    passage: int = passages.MOST

    def describe(self, settings: Settings) -> Mapping[str, Any]:
        """Return what op=capabilities reports about it."""
        del settings
        return {
            "voices": list(self.voices),
            "tags": [f"<{tag}>" for tag in self.tags],
            "sample_rate": self.rate,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "repetition_penalty": self.repetition_penalty,
        }


@dataclass(frozen=True, slots=True)
class Spoken:
    """One passage that was spoken: its characters, its samples' seconds, and how often it began."""

    characters: int
    seconds: float
    attempts: int


def show_spoken(spoken: Sequence[Spoken]) -> list[dict[str, Any]]:
    """Show what became of the passages."""
    return [
        {
            "characters": one.characters,
            "duration_s": round(one.seconds, 3),
            "attempts": one.attempts,
        }
        for one in spoken
    ]


@dataclass(frozen=True, slots=True)
class SpeechWish:
    """One text to say: everything resolved, nothing left to choose.

    `passages` are the text in parts, each to be spoken for itself. `max_tokens` is for all of them,
    None where the text alone limits them. `frames` is how many frames it takes about. With
    `streams`, sound is handed over while it is made. `spoken`, `truncated` and `first_frames`, how
    many frames there were when the first sound was handed over, are found while it is made.
    """

    prompt: str = declare_public()
    task: str = declare_public(text="")
    voice: str | None = declare_public(show=show_given)
    seed: int = declare_public()
    temperature: float = declare_public()
    top_p: float = declare_public()
    repetition_penalty: float = declare_public()
    max_tokens: int | None = declare_public(show=show_given)
    passages: tuple[str, ...] = declare_private()
    frames: int = declare_private(default=1)
    streams: bool = declare_private(default=False)
    spoken: tuple[Spoken, ...] = declare_public("passages", text="", show=show_spoken, default=())
    truncated: bool = declare_public(text="", default=False)
    first_frames: int | None = declare_public(
        "first_sound_frames", text="", show=show_given, default=None
    )


def read_again(values: SpeechInput, verdict: Verdict) -> SpeechInput:
    """Take a format that stands under OpenAI's name for it as `output_format`."""
    form = values.response_format
    if form not in SOUND_TYPES:
        return values
    if values.output_format not in (None, form):
        other = verdict.find_word("output_format")
        message = f"asks for {form}, and {other} for {values.output_format}"
        verdict.add_fault("response_format", message)
    return values.model_copy(update={"output_format": form, "response_format": None})


def compare(values: SpeechInput, verdict: Verdict) -> None:
    """Check the fields against each other."""
    if values.speed not in (None, 1):
        verdict.add_fault("speed", f"must be 1: no model here has another (got {values.speed:g})")
    if values.stream and values.output_format not in (None, "pcm"):
        verdict.add_fault("stream", f"needs output_format pcm, not {values.output_format}")


def judge(values: SpeechInput, model: Served, verdict: Verdict, settings: Settings) -> Asked:
    """Check the fields against what a model offers."""
    del settings
    offer = cast("SpeechOffer", model.offers[SPEECH.name])
    text = passages.clean(values.prompt or "")
    voice = _choose_voice(values.voice, model, offer, verdict)
    _warn_of_text(text, offer, verdict)
    penalty = values.repetition_penalty
    if penalty is not None and penalty < offer.repetition_penalty:
        message = f"below {offer.repetition_penalty:g} speech may repeat itself or not end"
        verdict.warn("repetition_penalty", message)
    draft = SpeechWish(
        prompt=values.prompt or "",
        task=SPEECH.name,
        voice=voice,
        seed=0,
        temperature=_choose(values.temperature, offer.temperature),
        top_p=_choose(values.top_p, offer.top_p),
        repetition_penalty=_choose(penalty, offer.repetition_penalty),
        max_tokens=values.max_tokens,
        passages=tuple(passage.strip() for passage in passages.split(text, offer.passage)),
        frames=max(1, round(offer.pace * len(text))),
        streams=bool(values.stream),
    )
    return Asked(draft, draft.prompt, streams=draft.streams)


def _choose(value: float | None, default: float) -> float:
    return default if value is None else value


def _choose_voice(
    name: str | None, model: Served, offer: SpeechOffer, verdict: Verdict
) -> str | None:
    """Choose a voice of the model's; one that it does not have is a fault."""
    if not offer.voices:
        return name
    if name is None:
        return offer.voices[0]
    known = {voice.casefold(): voice for voice in offer.voices}
    if (voice := known.get(name.casefold())) is None:
        names = fields.join_words(offer.voices)
        verdict.add_fault("voice", f"{model.id} has {names}, not {fields.show(name)}")
    return voice


def _warn_of_text(text: str, offer: SpeechOffer, verdict: Verdict) -> None:
    """Warn of what would be read aloud and was hardly meant to be."""
    others = dict.fromkeys(tag for tag in TAG.findall(text) if tag.lower() not in offer.tags)
    for tag in list(others)[:MOST_WARNED]:
        tags = " ".join(f"<{known}>" for known in offer.tags) or "none"
        verdict.warn("prompt", f"<{tag}> is read aloud: the tags of this model are {tags}")
    start = text.partition(":")[0].strip().casefold()
    if start in {voice.casefold() for voice in offer.voices} and not is_blank(start):
        verdict.warn("prompt", "the name of the voice before it is read aloud; give it as voice")


def warm_up(model: Served) -> SpeechWish:
    """Return a wish of the kind that jobs will have, with the model's first voice."""
    offer = cast("SpeechOffer", model.offers[SPEECH.name])
    return SpeechWish(
        prompt=WARM_UP,
        task=SPEECH.name,
        voice=next(iter(offer.voices), None),
        seed=0,
        temperature=offer.temperature,
        top_p=offer.top_p,
        repetition_penalty=offer.repetition_penalty,
        max_tokens=None,
        passages=(WARM_UP,),
    )


SPEECH: Final = Task(
    name="speech",
    input=SpeechInput,
    wish=SpeechWish,
    key="audio",
    noun="speech",
    formats={form: form for form in SOUND_TYPES},
    smaller=("flac", "mp3"),
    lossless=tuple(SOUND_TYPES),  # none has a quality to choose
    advice="output_format flac, mp3 or opus, or a shorter text",
    # The tokens are nearly all of it.
    spans=(
        Span("text", 2, "text"),
        Span("generate", 90, "generate", steps="frames"),
        Span("decode", 8, "decode"),
    ),
    reread=read_again,
    compare=compare,
    judge=judge,
    sign="voice",
    is_single=True,
)
