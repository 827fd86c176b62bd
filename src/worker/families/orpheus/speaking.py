"""One passage spoken: attempts until one ends by itself, and its sound as it comes."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch

from worker.errors import BadAudio
from worker.families.orpheus.frames import Written
from worker.families.orpheus.windows import Decoding
from worker.media.sound import Samples, round_samples

MOST_ATTEMPTS: Final = 3
# Of 32767: about what the noise of a codec sounds like where nothing is said.
QUIETEST: Final = 16

MakeDecoding = Callable[[int], Decoding]


@dataclass(frozen=True, slots=True)
class Limits:
    """How many frames a passage may have: by its text, and what is left of the job's tokens."""

    by_text: int
    left: int | None = None

    @property
    def most(self) -> int:
        """The frames after which it is stopped."""
        return self.by_text if self.left is None else min(self.by_text, self.left)

    @property
    def is_cut(self) -> bool:
        """Whether reaching the most is what the job asked for, not a fault of the model."""
        return self.left is not None and self.left < self.by_text


@dataclass(slots=True)
class Passage:
    """What has become of a passage: how often it began, its frames and its sound so far.

    `first_frames` is how many frames there were when there was the first sound.
    """

    attempts: int = 0
    frames: int = 0
    first_frames: int | None = None
    is_cut: bool = False
    is_complete: bool = False
    sound: list[Samples] = field(default_factory=list)

    def add(self, sound: Sequence[Samples]) -> None:
        """Add what was decoded."""
        if sound and not self.sound:
            self.first_frames = self.frames
        self.sound += sound

    def join(self) -> Samples:
        """Return all of its samples."""
        return np.concatenate(self.sound)


def speak(
    begin: Callable[[int], None],
    make_decoding: MakeDecoding,
    seeds: Sequence[int],
    stop: int,
    limits: Limits,
    *,
    streams: bool,
) -> Generator[Passage, Sequence[int], None]:
    """Yield the passage whenever it needs its next frame, which is sent in; then it is complete.

    Each attempt has its own of the `seeds`, for its tokens and its noise, and `begin` is called
    with it. One that loops or does not end by its text is begun anew; where it `streams`, only as
    long as none of its sound is there. Otherwise its sound is decoded at its end. Raises BadAudio
    when no attempt ends, or one is silent or no sound.
    """
    passage = Passage()
    for seed in seeds:
        passage.attempts += 1
        passage.sound, passage.frames = [], 0
        begin(seed)
        decoding, frames = make_decoding(seed), Written()
        while not frames.is_over(limits.most):
            frames.add((yield passage), stop)
            passage.frames = len(frames.codes)
            if streams:
                passage.add(_convert(decoding, frames, is_end=False))
        passage.is_cut = limits.is_cut and not frames.is_ended and not frames.is_loop
        if (frames.is_ended or passage.is_cut) and frames.codes:
            passage.add(_convert(decoding, frames, is_end=True))
            _check_audible(passage.sound)
            passage.is_complete = True
            return
        if passage.sound:
            break  # what was handed over cannot be taken back
    raise BadAudio(f"no speech that ends came of {passage.attempts} attempts; try another seed")


def _convert(decoding: Decoding, frames: Written, *, is_end: bool) -> list[Samples]:
    found = []
    for window in decoding.decode_ready(frames.codes, is_end=is_end):
        if not bool(torch.isfinite(window).all()):
            raise BadAudio("the model's sound has values that are not numbers")
        found.append(round_samples(window.cpu().numpy()))
    return found


def _check_audible(sound: Sequence[Samples]) -> None:
    if max((int(np.abs(part).max()) for part in sound), default=0) < QUIETEST:
        raise BadAudio("the model's sound is silent throughout; try another seed")
