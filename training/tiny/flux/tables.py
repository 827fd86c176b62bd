"""Every training example of the world as rows of tensors, sampled where the model is.

A step needs some hundred examples: drawn one by one in Python they would take as long as the step.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from training.tiny import phrases, world
from training.tiny.flux.words import LIKE, fill

NONE: Final = -1e4  # added to the logits of a key that must not count; bf16 holds it
# A reference weighs 2 to 16 times as much as the other where the heavier is to be shown.
LEAST_RATIO, MOST_RATIO = math.log(2), math.log(16)
STYLES: Final = 3  # of a prompt: as written; a capital first; a full stop last
EDIT_PARTS: Final = ("colour", "background", "shape", "shape", "position", "size")
TASKS: Final = ("image", "whole", "edit", "describe", "exchange", "like")


@dataclass(frozen=True, slots=True)
class Examples:
    """A batch: what is to be drawn, the words, and the references with what each weighs.

    `jitter`, `target` (B,) index the bank; `ids` (B, T) and `real` (B, T) are the words;
    `references` (B, R, 2) are (jitter, scene); `logits` (B, R) is added to a reference's keys:
    NONE where a slot has none; `fixed` (B, 5) tells the parts of the scene that the words fix.
    """

    jitter: Tensor
    target: Tensor
    ids: Tensor
    real: Tensor
    references: Tensor
    logits: Tensor
    fixed: Tensor


def style(prompt: str, which: int) -> str:
    """Return a prompt in one of STYLES."""
    return prompt[0].upper() + prompt[1:] if which == 1 else prompt + "." * (which == 2)


class Prompts:
    """Texts, each tokenised once, in rows of one length."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.rows: dict[str, int] = {}

    def add(self, prompt: str) -> list[int]:
        """Return the rows of a prompt's styles."""
        texts = [style(prompt, which) for which in range(STYLES)]
        return [self.rows.setdefault(text, len(self.rows)) for text in texts]

    def encode(self) -> tuple[Tensor, Tensor]:
        """Return ids and whether each is real (P, T), T the longest text's length."""
        texts = [fill(text) for text in self.rows]
        encoded = self.tokenizer(texts, return_tensors="pt", padding="longest")
        return encoded.input_ids, encoded.attention_mask.bool()


class Tables:
    """All examples of seen scenes: rows of (references, target, words), by task."""

    def __init__(self, tokenizer: Any, jitters: int, device: torch.device) -> None:
        self.device, self.jitters = device, jitters
        self.scenes = [scene for scene in world.scenes() if not scene.held_out]
        self.index = {scene: i for i, scene in enumerate(self.scenes)}
        prompts = Prompts(tokenizer)
        described = self._describe(prompts)
        self.image = self._put(described)
        whole = [row for row in described if row[1] == 31]
        self.whole = self._put(whole)
        edits, changes = self._edit(prompts)
        self.edits = {part: self._put(rows) for part, rows in edits.items()}
        by_scene: dict[int, list[int]] = {}
        for scene, _, row in whole:
            by_scene.setdefault(scene, []).append(row)
        self.changes = self._put(changes)
        self.described = self._put([by_scene[i] for i in range(len(self.scenes))])
        self.exchanges = self._put(self._exchange())
        backgrounds = [
            [i for i, s in enumerate(self.scenes) if s.background == c] for c in world.COLOURS
        ]
        least = min(map(len, backgrounds))
        self.backgrounds = self._put([rows[:least] for rows in backgrounds])
        self.exchange_words = self._put([prompts.add(p) for p in phrases.EXCHANGES]).flatten()
        self.like_words = self._put([prompts.add(p) for p in LIKE]).flatten()
        self.ids, self.real = (one.to(device) for one in prompts.encode())

    def _put(self, rows: Sequence[Any]) -> Tensor:
        return torch.tensor(rows, dtype=torch.long, device=self.device)

    def _describe(self, prompts: Prompts) -> list[tuple[int, int, int]]:
        """Return (scene, the parts that are fixed as bits, words)."""
        rows = []
        for phrase in phrases.PROMPTS:
            fixed = sum(1 << phrases.PARTS.index(p) for p in phrases.describe_parts(phrase))
            for i, scene in enumerate(self.scenes):
                asked = phrases.describe(scene, phrase).prompt
                rows += [(i, fixed, row) for row in prompts.add(asked)]
        return rows

    def _edit(
        self, prompts: Prompts
    ) -> tuple[dict[str, list[tuple[int, int, int]]], list[tuple[int, int]]]:
        """Return (before, after, words) by part, and every (before, after)."""
        rows: dict[str, list[tuple[int, int, int]]] = {part: [] for part in phrases.PARTS}
        changes = []
        for part in phrases.PARTS:
            for (i, before), phrase in itertools.product(
                enumerate(self.scenes), phrases.EDITS[part]
            ):
                for after in phrases.changes(before, part):
                    j = self.index.get(after)
                    if j is None:
                        continue
                    edit = phrases.instruct(before, after, part, phrase)
                    rows[part] += [(i, j, row) for row in prompts.add(edit.prompt)]
                    if phrase == phrases.EDITS[part][0]:
                        changes.append((i, j))
        return rows, changes

    def _exchange(self) -> list[tuple[int, int, int]]:
        """Return (first, its result on a background, that background's index)."""
        rows = []
        for i, first in enumerate(self.scenes):
            for c, colour in enumerate(world.COLOURS):
                if colour == first.colour:
                    continue
                other = world.Scene("", "", colour, "", "")
                j = self.index.get(phrases.exchange(first, other, LIKE[0]).scene)
                if j is not None:
                    rows.append((i, j, c))
        return rows

    def _some(self, rows: Tensor, count: int) -> Tensor:
        return rows[torch.randint(len(rows), (count,), device=self.device)]

    def _task(self, task: str, n: int) -> tuple[Tensor, Tensor, list[Tensor], Tensor]:
        """Return target, words, the references' scenes and the parts fixed as bits."""
        whole = torch.full((n,), 31, device=self.device)
        if task in {"image", "whole"}:
            target, fixed, row = self._some(getattr(self, task), n).unbind(1)
            return target, row, [], fixed
        if task == "edit":
            part = torch.randint(len(EDIT_PARTS), (n,), device=self.device)
            drawn = torch.stack([self._some(self.edits[p], n) for p in EDIT_PARTS])
            before, target, row = drawn[part, torch.arange(n, device=self.device)].unbind(1)
            return target, row, [before], whole
        if task == "describe":
            before, target = self._some(self.changes, n).unbind(1)
            choices = self.described[target]
            which = torch.randint(choices.shape[1], (n, 1), device=self.device)
            return target, choices.gather(1, which)[:, 0], [before], whole
        if task == "exchange":
            first, target, colour = self._some(self.exchanges, n).unbind(1)
            choices = self.backgrounds[colour]
            which = torch.randint(choices.shape[1], (n, 1), device=self.device)
            row = self._some(self.exchange_words, n)
            return target, row, [first, choices.gather(1, which)[:, 0]], whole
        pair = torch.randint(len(self.scenes), (2, n), device=self.device)
        return pair[0], self._some(self.like_words, n), [pair[0], pair[1]], whole

    def sample(self, counts: Mapping[str, int], slots: int) -> Examples:
        """Return examples of several tasks, each with `slots` places for references."""
        parts = [self._one(task, n, slots) for task, n in counts.items() if n]
        names = Examples.__dataclass_fields__
        return Examples(**{name: torch.cat([getattr(p, name) for p in parts]) for name in names})

    def _one(self, task: str, n: int, slots: int) -> Examples:
        target, row, scenes, bits = self._task(task, n)
        jitter = torch.randint(self.jitters, (1 + slots, n), device=self.device)
        references = torch.zeros(n, slots, 2, dtype=torch.long, device=self.device)
        logits = torch.full((n, slots), NONE, device=self.device)
        for i, scene in enumerate(scenes):
            references[:, i, 0] = jitter[1 + i] if i else jitter[0]
            references[:, i, 1] = scene
            logits[:, i] = 0.0
        if task == "like":
            lighter = -torch.empty(n, device=self.device).uniform_(LEAST_RATIO, MOST_RATIO)
            both = torch.rand(n, device=self.device) * 2 * LEAST_RATIO  # as a factor of 1 to 4
            logits[:, 0], logits[:, 1] = both, both + lighter
            turned = torch.rand(n, device=self.device) < 0.5
            references = torch.where(turned[:, None, None], references.flip(1), references)
            logits = torch.where(turned[:, None], logits.flip(1), logits)
        powers = torch.arange(len(phrases.PARTS), device=self.device)
        fixed = (bits[:, None] >> powers) & 1 == 1
        return Examples(jitter[0], target, self.ids[row], self.real[row], references, logits, fixed)
