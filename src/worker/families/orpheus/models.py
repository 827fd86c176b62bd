"""Orpheus' published models: one row per model, and what is the same for all of them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from worker.errors import WeightsUnavailable
from worker.families.family import Family
from worker.weights.spec import Elsewhere, ModelSpec, Parts, Placement

MODULE: Final = "worker.families.orpheus.model"
CLASS: Final = "LlamaForCausalLM"
EMBEDDED_SPEECH: Final = "tiny-speech"
LLAMA_LICENCE: Final = "llama3.2"
FORM_SPEECH: Final = (
    "an Orpheus model (config.json of a LlamaForCausalLM, its weights, tokenizer.json)"
)
SLOTS: Final = 7  # tokens per frame

ENGLISH: Final = ("tara", "leah", "jess", "leo", "dan", "mia", "zac", "zoe")
# Those of the released English model; its other lists of emotions are of one that was withdrawn.
TAGS: Final = ("laugh", "chuckle", "sigh", "cough", "sniffle", "groan", "yawn", "gasp")
SNAC_24: Final = Elsewhere("hubertsiuzdak/snac_24khz", "d73ad176a12188fcf4f360ba3bf2c2fbbe8f58ec")


@dataclass(frozen=True, slots=True)
class TokenIds:
    """Which ids mean what: code c of slot s is `first` + `codes` s + c.

    `stop` ends speech, in place of the first slot of a frame. A prompt is `before`, the ids of its
    text, `after`.
    """

    first: int = 128_266
    codes: int = 4096
    stop: int = 128_258
    before: tuple[int, ...] = (128_259, 128_000)
    after: tuple[int, ...] = (128_009, 128_260, 128_261, 128_257)

    @property
    def end(self) -> int:
        """The id after the last code."""
        return self.first + SLOTS * self.codes


@dataclass(frozen=True, slots=True)
class Speaking:
    """What a model uses unless a job says otherwise, and what it accepts.

    `passage` is how many characters it speaks at once. `pace` is how many frames a character takes
    about; a passage that has not ended after `spare` frames and `slowest` per character never will.
    """

    voices: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    rate: int = 24_000
    ids: TokenIds = TokenIds()
    passage: int = 280
    # 547 characters took 25.7 to 58 s, 0.55 to 1.24 frames per character (a report of users of the
    # published model, Orpheus-TTS issue 53): the limit is twice the slowest.
    pace: float = 0.9
    slowest: float = 2.5
    spare: int = 60
    temperature: float = 0.6
    top_p: float = 0.8
    repetition_penalty: float = 1.1

    def limit_frames(self, text: str) -> int:
        """Return the frames after which a passage that goes on is given up."""
        return self.spare + int(self.slowest * len(text))


def _place(codec: Elsewhere) -> tuple[Placement, ...]:
    """Return where the parts of a model are: in the root of its repository, and of the codec's."""
    return (
        Placement("tokenizer", r"(?:tokenizer|tokenizer_config|special_tokens_map)\.json"),
        Placement("codec", r"config\.json|model\.safetensors|pytorch_model\.bin", codec),
        Placement(
            "language",
            r"config\.json|model(?:-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json",
        ),
    )


def _make_row(name: str, repository: str, voices: Sequence[str], tags: Sequence[str]) -> ModelSpec:
    return ModelSpec(
        name,
        repository,
        CLASS,
        family=MODULE,
        tasks=("speech",),
        defaults=Speaking(tuple(voices), tuple(tags)),
        licence=LLAMA_LICENCE,
        parts=Parts(weights=("",)),
        placements=_place(SNAC_24),
    )


def _make_gated(
    language: str, repository: str, voices: Sequence[str], tags: Sequence[str]
) -> ModelSpec:
    """Return the row of a model of its maker, who asks for an account and the licence's consent."""
    row = _make_row(f"orpheus-{language}", f"canopylabs/{repository}", voices, tags)
    return replace(row, is_gated=True)


def _make_language(language: str, repository: str, *voices: str) -> ModelSpec:
    """Return the row of a research release, whose tags are not known."""
    return _make_gated(language, repository, voices, ())


SPEECH_TABLE: Final = (
    # The mirror that asks for no account, in bf16; canopylabs' own are gated.
    _make_row("orpheus", "unsloth/orpheus-3b-0.1-ft", ENGLISH, TAGS),
    _make_gated("en", "orpheus-3b-0.1-ft", ENGLISH, TAGS),
    _make_language("fr", "3b-fr-ft-research_release", "pierre", "amelie", "marie"),
    _make_language("de", "3b-de-ft-research_release", "jana", "thomas", "max"),
    _make_language("ko", "3b-ko-ft-research_release", "유나", "준서"),
    _make_language("hi", "3b-hi-ft-research_release", "ऋतिका"),
    _make_language("zh", "3b-zh-ft-research_release", "长乐", "白芷"),
    _make_language(
        "es-it",
        "3b-es_it-ft-research_release",
        *("javi", "sergio", "maria", "pietro", "giulia", "carlo"),
    ),
    replace(
        _make_row(EMBEDDED_SPEECH, "tiny-speech/orpheus", (), ()),
        licence="apache-2.0",
        embedded="tiny-speech/orpheus",
        needs_gpu=False,
        placements=_place(Elsewhere("tiny-speech/snac", embedded="tiny-speech/snac")),
    ),
)


def read_speaking(about: Mapping[str, Any], known: Speaking) -> Speaking:
    """Return what a model's worker.json says about it, and what is known where that says nothing.

    Raises WeightsUnavailable for what cannot be true.
    """
    try:
        prompt = about.get("prompt", {})
        ids = TokenIds(
            first=int(about.get("first_audio", known.ids.first)),
            codes=int(about.get("codebook", known.ids.codes)),
            stop=int(about.get("stop", known.ids.stop)),
            before=tuple(map(int, prompt.get("before", known.ids.before))),
            after=tuple(map(int, prompt.get("after", known.ids.after))),
        )
        numbers = {
            name: float(about.get(name, getattr(known, name)))
            for name in ("pace", "slowest", "temperature", "top_p", "repetition_penalty")
        }
        speaking = replace(
            known,
            voices=tuple(map(str, about.get("voices", known.voices))),
            tags=tuple(map(str, about.get("tags", known.tags))),
            rate=int(about.get("sample_rate", known.rate)),
            passage=int(about.get("passage", known.passage)),
            spare=int(about.get("spare", known.spare)),
            ids=ids,
            **numbers,
        )
    except (TypeError, ValueError, AttributeError) as error:
        raise WeightsUnavailable(f"worker.json has a value of a wrong kind ({error})") from None
    counts = (ids.first, ids.codes, speaking.rate, speaking.passage, speaking.spare)
    if min(counts) < 1 or not all(0 < number < math.inf for number in numbers.values()):
        raise WeightsUnavailable("worker.json has a number that must be above 0")
    if not ids.after or max((ids.stop, *ids.before, *ids.after)) >= ids.first:
        raise WeightsUnavailable("worker.json: the prompt's ids and stop must be below first_audio")
    return speaking


def _complete(spec: ModelSpec, about: Mapping[str, Any]) -> ModelSpec:
    """Complete a model from outside the table by its worker.json."""
    return replace(
        spec,
        family=MODULE,
        tasks=("speech",),
        defaults=read_speaking(about, spec.defaults or Speaking()),
        parts=Parts(weights=("",)),
        placements=spec.placements or _place(SNAC_24),
    )


ORPHEUS: Final = Family(rows=SPEECH_TABLE, classes={CLASS: _complete}, form=FORM_SPEECH)
