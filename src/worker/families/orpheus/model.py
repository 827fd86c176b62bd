"""Orpheus: text to speech, in the order it runs."""

import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np

from worker.bundle.kept_graphs import KeptGraphs
from worker.bundle.layout import Bundle
from worker.engine import device as devices
from worker.engine.token_choice import Choosing
from worker.errors import BadAudio
from worker.families.clock import Clock
from worker.families.memory import Phases, check_freed
from worker.families.opener import Opener
from worker.families.orpheus.frames import Writer
from worker.families.orpheus.models import SLOTS, Speaking, read_speaking
from worker.families.orpheus.offer import describe_speech
from worker.families.orpheus.opening import VoiceParts, open_bundle
from worker.families.orpheus.prompt import make_prompt
from worker.families.orpheus.recipe import SPEECH_RECIPE
from worker.families.orpheus.speaking import (
    MOST_ATTEMPTS,
    Limits,
    Passage,
    derive_seed,
    speak,
)
from worker.families.orpheus.windows import Decoding, join_samples
from worker.media.sound import Samples, Sound
from worker.seam import Control, Made, Outcome, Served, Unheard, take_made
from worker.tasks.speech import SpeechWish, Spoken, warm_up

# Between two passages: what a reader pauses after a sentence.
PAUSE_S: Final = 0.12
TRUNCATED: Final = "the speech was cut at max_tokens"


class Orpheus:
    """One warm model that speaks."""

    def __init__(self, parts: VoiceParts, served: Served, speaking: Speaking) -> None:
        self.served = served
        self._parts = parts
        self._speaking = speaking
        self._phases = Phases(devices.free_memory)

    def make_key(self, wish: SpeechWish) -> None:
        """Return None: a wish is spoken alone, all of its passages one after another."""
        del wish

    def make(self, wishes: Sequence[SpeechWish], controls: Sequence[Control]) -> Iterator[Outcome]:
        """Speak one wish after another.

        Raises CudaOutOfMemory, DeviceLost, and what a control raised; BadAudio is an outcome.
        """
        for wish, control in zip(wishes, controls, strict=True):
            outcome: Outcome
            try:
                outcome = self._make_one(wish, control)
            except BadAudio as error:
                outcome = error.with_traceback(None)
            yield outcome

    def warm(self) -> None:
        """Say a few words; raises as `make`, but for what was said: a warm-up may not end."""
        for outcome in self.make([warm_up(self.served)], [Unheard()]):
            if not isinstance(outcome, BadAudio):
                take_made(outcome)

    def release(self) -> None:
        """Drop the modules and free their memory; the model cannot be used afterwards.

        Raises DeviceLost when something still refers to the language model.
        """
        language = weakref.ref(self._parts.language)
        del self._parts, self._phases
        check_freed(language)

    def _make_one(self, wish: SpeechWish, control: Control) -> Made:
        device, clock = self._parts.device, Clock(self._parts.device)
        with devices.translate_errors():
            devices.reset_peak(device)
            passages = self._phases.run(
                "generate", len(wish.passages), lambda _: self._speak_all(wish, control, clock)
            )
        rate, pause = self._speaking.rate, self._make_pause()
        parts = [passage.join() for passage in passages]
        joined = [piece for part in parts for piece in (pause, part)][1:]
        spoken = tuple(
            Spoken(len(text), len(part) / rate, passage.attempts)
            for text, part, passage in zip(wish.passages, parts, passages, strict=False)
        )
        is_cut = passages[-1].is_cut or len(passages) < len(wish.passages)
        return Made(
            Sound(join_samples(joined), rate),
            dict(clock.spent),
            peak_vram_mb=devices.read_peak_mb(device),
            warnings=(TRUNCATED,) if is_cut else (),
            found={
                "spoken": spoken,
                "truncated": is_cut,
                "first_frames": passages[0].first_frames if wish.streams else None,
            },
        )

    def _speak_all(self, wish: SpeechWish, control: Control, clock: Clock) -> list[Passage]:
        """Return the passages of a wish that its tokens suffice for."""
        speaking, spoken = self._speaking, list[Passage]()
        left = None if wish.max_tokens is None else wish.max_tokens // SLOTS
        with clock.measure_phase("text"):
            prompts = [
                make_prompt(self._parts.tokenizer, speaking.ids, wish.voice, text)
                for text in wish.passages
            ]
        control.report("text", 1, 1)
        with clock.measure_phase("generate"):
            for number, (text, prompt) in enumerate(zip(wish.passages, prompts, strict=True)):
                before = sum(passage.frames for passage in spoken)
                limits = Limits(
                    speaking.limit_frames(text), None if left is None else left - before
                )
                if limits.most < 1:
                    break
                passage, sent = Passage(), 0
                for passage in self._speak_one(wish, number, prompt, limits):
                    done = before + passage.frames
                    control.report("generate", done, max(wish.frames, done))
                    if wish.streams:
                        sent = self._hand_over(passage, sent, control, is_first=not spoken)
                spoken.append(passage)
        control.report("decode", 1, 1)
        return spoken

    def _speak_one(
        self, wish: SpeechWish, number: int, prompt: Sequence[int], limits: Limits
    ) -> Iterator[Passage]:
        parts = self._parts
        return speak(
            Writer(parts.language, parts.text, room=len(prompt) + SLOTS * (limits.most + 1)),
            lambda seed: Decoding(parts.codec, seed, parts.codec_device),
            prompt,
            [derive_seed(wish.seed, number, attempt) for attempt in range(MOST_ATTEMPTS)],
            Choosing(wish.temperature, wish.top_p, wish.repetition_penalty),
            limits,
            streams=wish.streams,
        )

    def _hand_over(self, passage: Passage, sent: int, control: Control, *, is_first: bool) -> int:
        """Hand over the sound of a passage from its piece `sent` on; return how many are out."""
        parts = passage.sound[sent:]
        if parts and not sent and not is_first:
            parts = [self._make_pause(), *parts]
        for part in parts:
            control.hand_over(Sound(part, self._speaking.rate))
        return len(passage.sound)

    def _make_pause(self) -> Samples:
        return np.zeros(round(PAUSE_S * self._speaking.rate), np.int16)


def build(parts: VoiceParts, served: Served, bundle: Bundle, kept: KeptGraphs | None) -> Orpheus:
    """Return the model of a bundle's open parts."""
    del kept
    facts: Mapping[str, Any] = bundle.facts
    return Orpheus(parts, served, read_speaking(facts, Speaking()))


OPENER: Final = Opener(SPEECH_RECIPE, describe_speech, open_bundle, build)
make_ready = OPENER.make_ready
prepare = OPENER.prepare
