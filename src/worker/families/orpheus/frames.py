"""The loop over frames: seven tokens each, only codes of their own slot, until a stop or a loop."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor

from worker.engine.token_choice import Choosing, choose_token
from worker.families.orpheus.language import Language, embed_text
from worker.families.orpheus.models import SLOTS

# Written in a row with the same first code: the training data had no two of them, and a second of
# one sound is no speech.
MOST_EQUAL: Final = 12


@dataclass(slots=True)
class Written:
    """The frames of one passage so far; `is_ended` when a stop came, `is_loop` when none can."""

    codes: list[list[int]] = field(default_factory=list)
    is_ended: bool = False
    is_loop: bool = False

    def add(self, frame: Sequence[int], stop: int) -> None:
        """Add a frame, or what its first token says."""
        if frame[0] == stop:
            self.is_ended = True
            return
        self.codes.append(list(frame))
        last = self.codes[-MOST_EQUAL:]
        self.is_loop = len(last) == MOST_EQUAL and len({one[0] for one in last}) == 1


class Writer:
    """One passage as it is written, frame by frame, from the ids of its prompt.

    `text` is the embedding's table of the text ids, on the host.
    """

    def __init__(self, language: Language, text: Tensor, *, room: int) -> None:
        self._language, self._text = language, text
        self._device = language.codes.device
        self._cache = language.make_cache(1, room)
        self._room = room

    @torch.inference_mode()
    def write(
        self, prompt: Sequence[int], seed: int, how: Choosing, most: int
    ) -> Iterator[Written]:
        """Yield the frames after each one, the last when it has ended, loops, or has `most`.

        The random numbers are seven per frame of a CPU generator of that seed.
        """
        language, ids = self._language, self._language.ids
        generator = torch.Generator().manual_seed(seed)
        seen = [
            torch.zeros(1, ids.codes + (slot == 0), dtype=torch.bool, device=self._device)
            for slot in range(SLOTS)
        ]
        state = language.read(embed_text(self._text, prompt, self._device), self._cache, 0)
        frames = Written()
        position = len(prompt)
        while not (frames.is_ended or frames.is_loop) and len(frames.codes) < most:
            uniforms = torch.rand(SLOTS, 1, generator=generator).to(self._device)
            state, chosen = self._write_frame(state, position, seen, uniforms, how)
            frames.add(chosen.tolist(), ids.codes)
            position += SLOTS
            yield frames

    def _write_frame(
        self,
        state: Tensor,
        position: int,
        seen: Sequence[Tensor],
        uniforms: Tensor,
        how: Choosing,
    ) -> tuple[Tensor, Tensor]:
        """Return the state after a frame and its codes [7]; after a stop they mean nothing."""
        language, codes = self._language, self._language.ids.codes
        chosen = []
        for slot in range(SLOTS):
            code = choose_token(language.score(state, slot), seen[slot], uniforms[slot], how)
            seen[slot].scatter_(1, code[:, None], value=True)
            chosen.append(code)
            # a stop has no row: what is fed in its place is not used
            place = slot * codes + code.clamp(max=codes - 1)
            state = language.go_on(
                language.embed_codes(place),
                torch.full((1,), position + slot, device=self._device),
                self._cache,
                position + SLOTS,
            )
        return state, torch.cat(chosen)


Write = Callable[[Sequence[int], int, Choosing, int], Iterator[Written]]
