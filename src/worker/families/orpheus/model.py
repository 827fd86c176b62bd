"""Orpheus: text to speech, in the order it runs."""

import weakref
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch

from worker import log
from worker.bundle.kept_graphs import KeptGraphs
from worker.bundle.layout import Bundle
from worker.engine import device as devices
from worker.engine.token_choice import Choosing
from worker.errors import BadAudio, CudaOutOfMemory
from worker.families.clock import Clock
from worker.families.memory import Phases, check_freed
from worker.families.opener import Opener
from worker.families.orpheus.frames import Stage
from worker.families.orpheus.models import SLOTS, Speaking, read_speaking
from worker.families.orpheus.offer import describe_speech
from worker.families.orpheus.opening import VoiceParts, open_bundle
from worker.families.orpheus.prompt import make_prompt
from worker.families.orpheus.recipe import MOST_ROWS, SPEECH_RECIPE, count_room
from worker.families.orpheus.sending import Sent
from worker.families.orpheus.speaking import (
    MOST_ATTEMPTS,
    Limits,
    Passage,
    speak,
)
from worker.families.orpheus.windows import Decoding, derive_seed
from worker.media.sound import Samples, Sound
from worker.seam import Control, Made, Outcome, Served, Unheard, take_made
from worker.tasks.speech import SpeechWish, Spoken, warm_up

# Between two passages: what a reader pauses after a sentence.
PAUSE_S: Final = 0.12
TRUNCATED: Final = "the speech was cut at max_tokens"


def choose_rows(device: torch.device, wish: SpeechWish) -> int:
    """Return how many passages of a wish are written at once: several on a GPU.

    It depends on the wish alone, since a batch of another size rounds differently. Tokens that may
    run out are spent on one passage after another.
    """
    is_alone = wish.max_tokens is not None or len(wish.passages) == 1
    return 1 if is_alone else list_rows(device)[-1]


def list_rows(device: torch.device) -> tuple[int, ...]:
    """Return how many passages may be written at once on a device, from the fewest."""
    return (1, MOST_ROWS) if device.type == "cuda" else (1,)


class Orpheus:
    """One warm model that speaks."""

    def __init__(self, parts: VoiceParts, served: Served, speaking: Speaking) -> None:
        self.served = served
        self._parts = parts
        self._speaking = speaking
        self._stages: dict[int, Stage] = {}
        stages = self._stages  # not of this model: a cycle would keep its modules

        def forget() -> None:
            stages.clear()

        self._phases = Phases(forget)

    def make_key(self, wish: SpeechWish) -> None:
        """Return None: a wish is spoken alone, all of its passages one after another."""
        del wish

    def read_ahead(self, wish: SpeechWish) -> SpeechWish:
        """Return it as it is: nothing of a text takes the host long."""
        return wish

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
        """Say a few words, and capture every graph that jobs use; without room, they do that.

        Raises as `make`, but for what was said: a warm-up may not end.
        """
        for outcome in self.make([warm_up(self.served)], [Unheard()]):
            if not isinstance(outcome, BadAudio):
                take_made(outcome)
        is_short = False
        try:
            with devices.translate_errors():
                for rows in list_rows(self._parts.device):
                    self._find_stage(rows, 0).capture()
        except CudaOutOfMemory:
            is_short = True  # its tensors live in the exception: leave it before freeing
        if is_short:
            self._stages.clear()
            devices.free_memory()
            log.get().warning("steps are captured when first used", reason="out of memory")

    def release(self) -> None:
        """Drop the modules and free their memory; the model cannot be used afterwards.

        Raises DeviceLost when something still refers to the language model.
        """
        language = weakref.ref(self._parts.language)
        self._stages.clear()
        del self._parts, self._phases
        check_freed(language)

    def _make_one(self, wish: SpeechWish, control: Control) -> Made:
        device, clock = self._parts.device, Clock(self._parts.device)
        with devices.translate_errors():
            devices.reset_peak(device)
            if wish.streams:  # what was handed over cannot be taken back
                passages = self._speak_all(wish, control, clock)
            else:
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
            Sound(np.concatenate(joined), rate),
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
        ids, parts = self._speaking.ids, self._parts
        with clock.measure_phase("text"):
            prompts = [
                make_prompt(parts.tokenizer, ids, wish.voice, text) for text in wish.passages
            ]
        control.report("text", 1, 1)
        stage = self._choose_stage(wish, prompts)
        stage.choose_by(Choosing(wish.temperature, wish.top_p, wish.repetition_penalty))
        spoken, sent = list[Passage](), Sent(self._make_pause(), self._speaking.rate, control)
        waiting = deque(enumerate(zip(wish.passages, prompts, strict=True)))
        rows: dict[int, Generator[Passage, Sequence[int], None]] = {}
        while waiting or rows:
            for row in range(stage.rows):
                if row in rows or not waiting:
                    continue
                number, (text, prompt) = waiting.popleft()
                limits = self._make_limits(wish, text, spoken)
                if limits.most < 1:
                    break
                rows[row] = self._speak_one(wish, number, stage, row, prompt, limits, clock)
                spoken.append(next(rows[row]))
            if not rows:
                break
            with clock.measure_phase("generate"):
                frames = stage.step()
            for row, frame in frames.items():
                try:
                    rows[row].send(frame)
                except StopIteration:
                    stage.end(row)
                    del rows[row]
            done = sum(passage.frames for passage in spoken)
            control.report("generate", done, max(wish.frames, done))
            if wish.streams:
                sent.send_ready(spoken)
        control.report("decode", 1, 1)
        return spoken

    def _make_limits(self, wish: SpeechWish, text: str, spoken: Sequence[Passage]) -> Limits:
        """Return what a passage may have after those before it."""
        by_text = self._speaking.limit_frames(text)
        if wish.max_tokens is None:
            return Limits(by_text)
        used = sum(passage.frames for passage in spoken)
        return Limits(by_text, wish.max_tokens // SLOTS - used)

    def _choose_stage(self, wish: SpeechWish, prompts: Sequence[Sequence[int]]) -> Stage:
        """Return where a wish's passages are written, with room for the longest."""
        needed = SLOTS + max(
            len(prompt) + SLOTS * self._speaking.limit_frames(text)
            for text, prompt in zip(wish.passages, prompts, strict=True)
        )
        stage = self._find_stage(choose_rows(self._parts.device, wish), needed)
        for row in range(stage.rows):
            stage.end(row)  # of a wish that was stopped
        return stage

    def _find_stage(self, rows: int, needed: int) -> Stage:
        """Return where so many passages are written, of up to `needed` tokens or the usual."""
        stage = self._stages.get(rows)
        if stage is None or not stage.has_room(needed):
            room = max(needed, count_room(self._speaking))
            del stage  # before the new one is made: the two are never in memory together
            self._stages.pop(rows, None)
            stage = Stage(self._parts.language, self._parts.text, rows=rows, room=room)
            self._stages[rows] = stage
        return stage

    def _speak_one(
        self,
        wish: SpeechWish,
        number: int,
        stage: Stage,
        row: int,
        prompt: Sequence[int],
        limits: Limits,
        clock: Clock,
    ) -> Generator[Passage, Sequence[int], None]:
        parts = self._parts

        def begin(seed: int) -> None:
            with clock.measure_phase("generate"):
                stage.begin(row, prompt, seed)

        return speak(
            begin,
            lambda seed: Decoding(parts.codec, seed, parts.codec_device, clock),
            [derive_seed(wish.seed, number, attempt) for attempt in range(MOST_ATTEMPTS)],
            stage.stop,
            limits,
            streams=wish.streams,
        )

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
