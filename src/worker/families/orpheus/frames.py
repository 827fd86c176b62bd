"""Frames as they are written: seven tokens each, only codes of their own slot, in several rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor

from worker.engine.token_choice import Choosing, choose_token
from worker.families.orpheus.graphs import Graphs
from worker.families.orpheus.language import Language, embed_text
from worker.families.orpheus.models import SLOTS

# Frames in a row with the same first code: the training data had no two of them, and a second of
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

    def is_over(self, most: int) -> bool:
        """Return whether no frame follows: it has ended, loops, or has `most`."""
        return self.is_ended or self.is_loop or len(self.codes) >= most


class Stage:
    """Where `rows` passages are written at once, one frame of each per step.

    Each row has a generator of its own, of the CPU: seven numbers per frame, whatever the others
    do. All that a step reads and writes stays where it is, so that a graph of it can be replayed.
    `text` is the embedding's table of the text ids, on the host.
    """

    def __init__(self, language: Language, text: Tensor, *, rows: int, room: int) -> None:
        self._language, self._text = language, text
        self._device = device = language.codes.device
        self._room = room
        self._cache = language.make_cache(rows, room)
        codes, width = language.ids.codes, language.codes.shape[1]
        self._state = torch.zeros(rows, width, dtype=language.codes.dtype, device=device)
        self._positions = torch.zeros(rows, dtype=torch.long, device=device)
        self._uniforms = torch.zeros(SLOTS, rows, device=device)
        self._chosen = torch.zeros(SLOTS, rows, dtype=torch.long, device=device)
        self._seen = [
            torch.zeros(rows, codes + (slot == 0), dtype=torch.bool, device=device)
            for slot in range(SLOTS)
        ]
        self._numbers = torch.ones(3, device=device)
        self._ends: dict[int, int] = {}
        self._generators: dict[int, torch.Generator] = {}
        self._graphs = Graphs(device)
        # a graph has the addresses of these numbers in it, and must never have other numbers
        self.choose_by(Choosing(1.0))

    @property
    def rows(self) -> int:
        """How many passages are written at once."""
        return len(self._positions)

    @property
    def stop(self) -> int:
        """What a frame begins with that is none: the end."""
        return self._language.ids.codes

    def choose_by(self, how: Choosing) -> None:
        """Set how tokens are chosen from now on."""
        numbers = [float(how.temperature), float(how.top_p), float(how.penalty)]
        self._numbers.copy_(torch.tensor(numbers))
        temperature, top_p, penalty = self._numbers.unbind()
        self._how = Choosing(temperature if numbers[0] else 0.0, top_p, penalty)

    @torch.inference_mode()
    def capture(self) -> None:
        """Capture a frame of every length, while no row has begun; only CUDA has graphs."""
        self._positions.zero_()
        self._graphs.capture(self._cache.list_lengths(), self._write)

    @torch.inference_mode()
    def begin(self, row: int, prompt: Sequence[int], seed: int) -> None:
        """Read a prompt into a row, in place of what was there."""
        for seen in self._seen:
            seen[row].zero_()
        embedded = embed_text(self._text, prompt, self._device)
        self._state[row].copy_(self._language.read(embedded, self._cache, row).flatten())
        self._positions[row].fill_(len(prompt))
        self._ends[row] = len(prompt)
        self._generators[row] = torch.Generator().manual_seed(seed)

    def end(self, row: int) -> None:
        """Write no more into a row: its steps do nothing that is read."""
        self._ends.pop(row, None)

    @torch.inference_mode()
    def step(self) -> Mapping[int, list[int]]:
        """Write one frame of every row that has begun; return its codes [7] by row.

        After a stop, the code of the first slot, the others mean nothing.
        """
        for row in range(len(self._positions)):
            if row not in self._ends:
                self._positions[row].zero_()  # nobody reads what is written there
        numbers = torch.zeros(SLOTS, len(self._positions))
        for row in self._ends:
            numbers[:, row] = torch.rand(SLOTS, generator=self._generators[row])
        self._uniforms.copy_(numbers, non_blocking=True)
        most = max(self._ends.values(), default=0) + SLOTS
        self._graphs.run(self._cache.round_length(most), self._write)
        for row in self._ends:
            self._ends[row] += SLOTS
        chosen = self._chosen.T.cpu().tolist()
        return {row: chosen[row] for row in self._ends}

    def has_room(self, tokens: int) -> bool:
        """Return whether a row can have so many tokens."""
        return tokens <= self._room

    def _write(self, most: int) -> None:
        """Write a frame of every row, of at most so many tokens."""
        language, codes = self._language, self._language.ids.codes
        for slot in range(SLOTS):
            scores = language.score(self._state, slot)
            code = choose_token(scores, self._seen[slot], self._uniforms[slot], self._how)
            self._seen[slot].scatter_(1, code[:, None], value=True)
            self._chosen[slot].copy_(code)
            # a stop has no row: what is fed in its place, a code of the next slot, is not used
            place = language.embed_codes(slot * codes + code)
            self._state.copy_(language.go_on(place, self._positions + slot, self._cache, most))
        self._positions.add_(SLOTS)
