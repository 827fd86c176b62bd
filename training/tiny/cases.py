"""What an embedded checkpoint is asked for when it is judged, and how its pictures are judged."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from PIL import Image

from training.tiny import checker, phrases, world

PROMPT_SEED: Final = 11


@dataclass(frozen=True, slots=True)
class Case:
    """One picture to request: the words, the drawn references, and the scene it must show."""

    kind: str
    prompt: str
    references: tuple[Image.Image, ...]
    scene: world.Scene
    part: str
    seed: int

    @property
    def held_out(self) -> bool:
        """Return whether training never saw the scene."""
        return self.scene.held_out


def prompts(count: int, seed: int) -> Iterator[Case]:
    """Yield text-to-image cases, every second one held out, each fixing all five parts."""
    rng = random.Random(seed)
    for i in range(count):
        scene = world.random_scene(rng, held_out=i % 2 == 1)
        asked = phrases.describe(scene, rng.choice(phrases.WHOLE))
        yield Case("prompt", asked.prompt, (), scene, "all", 1000 + i)


def edits(count: int, seed: int) -> Iterator[Case]:
    """Yield edits of one reference, the five parts in turn, every second result held out."""
    rng = random.Random(seed)
    parts = phrases.PARTS
    while count:
        count -= 1
        part = parts[count % len(parts)]
        while True:
            before = world.random_scene(rng, held_out=rng.random() < 0.2)
            after = phrases.change(before, part, rng)
            if after.held_out == bool(count // len(parts) % 2):
                break
        edit = phrases.instruct(before, after, part, rng.choice(phrases.EDITS[part]))
        picture = world.draw(before, world.random_jitter(rng))
        yield Case("edit", edit.prompt, (picture,), after, part, 2000 + count)


def exchanges(count: int, seed: int) -> Iterator[Case]:
    """Yield edits with two references, every second result held out."""
    rng = random.Random(seed)
    while count:
        first, second = world.random_scene(rng), world.random_scene(rng)
        edit = phrases.exchange(first, second, rng.choice(phrases.EXCHANGES))
        if second.background == first.colour or edit.scene.held_out != bool(count % 2):
            continue
        drawn = [world.draw(scene, world.random_jitter(rng)) for scene in (first, second)]
        yield Case(
            "two references", edit.prompt, tuple(drawn), edit.scene, "exchange", 3000 + count
        )
        count -= 1


def rates(cases: Sequence[Case], pictures: Sequence[Image.Image]) -> dict[str, float]:
    """Return the share that is right: of each part, of all, of what was requested, of the rest."""
    return rate_seen(cases, [checker.read(picture) for picture in pictures])


def rate_seen(cases: Sequence[Case], seen: Sequence[checker.Seen]) -> dict[str, float]:
    """Return the shares of `rates` of pictures that were read already."""
    right: dict[str, list[bool]] = {}
    for case, one in zip(cases, seen, strict=True):
        same = {p: getattr(one, p) == getattr(case.scene, p) for p in phrases.PARTS}
        for part, good in same.items():
            right.setdefault(part, []).append(good)
        right.setdefault("all five", []).append(all(same.values()))
        if case.kind == "edit":
            right.setdefault("asked", []).append(same[case.part])
            right.setdefault(f"asked {case.part}", []).append(same[case.part])
            kept = [good for part, good in same.items() if part != case.part]
            right.setdefault("rest kept", []).append(all(kept))
    return {name: sum(values) / len(values) for name, values in right.items()}
