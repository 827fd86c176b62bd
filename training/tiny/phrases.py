"""The words of the little world: prompts and edit instructions, in several phrasings."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from training.tiny.world import COLOURS, POSITIONS, SHAPES, SIZES, Scene

PLACES = {"left": "on the left", "center": "in the center", "right": "on the right"}
PARTS = ("colour", "shape", "background", "size", "position")

PROMPTS = (
    "a {size} {colour} {shape} on a {background} background, {place}",
    "a {size} {colour} {shape}, {place}, {background} background",
    "{place} a {size} {colour} {shape} on {background}",
    "draw a {size} {colour} {shape} {place} of a {background} picture",
    "{size} {colour} {shape} {place}, the background is {background}",
    "a picture of a {size} {colour} {shape} {place} in front of a {background} background",
    "{background} background with a {size} {colour} {shape} {place}",
    # parts that are left out are free
    "a {colour} {shape} on a {background} background",
    "a {size} {colour} {shape} on {background}",
    "a {colour} {shape} {place}",
    "a {size} {shape} {place} on a {background} background",
    "a {colour} {shape}",
    "a {shape} on a {background} background",
)

EDITS = {
    "colour": (
        "make it {colour}",
        "make the {shape} {colour}",
        "change the color of the {shape} to {colour}",
        "paint it {colour}",
        "turn the {shape} {colour}",
    ),
    "background": (
        "change the background to {background}",
        "make the background {background}",
        "put it on a {background} background",
        "paint the background {background}",
        "a {background} background, please",
    ),
    "shape": (
        "replace the {old_shape} with a {shape}",
        "turn the {old_shape} into a {shape}",
        "change the {old_shape} to a {shape}",
        "make it a {shape}",
        "replace it with a {shape}",
    ),
    "position": (
        "move it to the {position}",
        "move the {shape} to the {position}",
        "put it {place}",
        "shift the {shape} to the {position}",
        "place it {place}",
    ),
    "size": (
        "make it {size}",
        "make the {shape} {size}",
        "change it to a {size} {shape}",
        "it should be {size}",
        "a {size} {shape}, please",
    ),
}
EXCHANGES = (
    "put the shape of image 1 on the background of image 2",
    "put the object of image 1 on the background of image 2",
    "place the shape from image 1 on the background from image 2",
    "show the object of image 1 in front of the background of image 2",
    "use the shape of image 1 and the background of image 2",
)


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt, the scene that fulfils it, and the parts of the scene that it fixes."""

    prompt: str
    scene: Scene
    fixed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Edit:
    """An instruction, its references' scenes, the resulting scene, and the part that it changes."""

    prompt: str
    references: tuple[Scene, ...]
    scene: Scene
    part: str


def _words(scene: Scene) -> dict[str, str]:
    return {
        "colour": scene.colour,
        "shape": scene.shape,
        "background": scene.background,
        "size": scene.size,
        "position": scene.position,
        "place": PLACES[scene.position],
    }


def describe_parts(phrase: str) -> tuple[str, ...]:
    """Return which parts of a scene a phrase of PROMPTS fixes."""
    phrase = phrase.replace("{place}", "{position}")
    return tuple(part for part in PARTS if "{" + part + "}" in phrase)


WHOLE = tuple(phrase for phrase in PROMPTS if describe_parts(phrase) == PARTS)  # nothing is free


def describe(scene: Scene, phrase: str) -> Asked:
    """Return the prompt for a scene in one of PROMPTS."""
    return Asked(phrase.format(**_words(scene)), scene, describe_parts(phrase))


def changes(scene: Scene, part: str) -> Iterator[Scene]:
    """Yield every scene with that part changed; colour and background stay different."""
    choices: dict[str, tuple[str, ...]] = {
        "colour": tuple(c for c in COLOURS if c not in {scene.colour, scene.background}),
        "background": tuple(c for c in COLOURS if c not in {scene.colour, scene.background}),
        "shape": tuple(s for s in SHAPES if s != scene.shape),
        "size": tuple(s for s in SIZES if s != scene.size),
        "position": tuple(p for p in POSITIONS if p != scene.position),
    }
    yield from (replace(scene, **{part: choice}) for choice in choices[part])


def change(scene: Scene, part: str, rng: random.Random) -> Scene:
    """Return one of the scenes with that part changed."""
    return rng.choice(tuple(changes(scene, part)))


def instruct(before: Scene, after: Scene, part: str, phrase: str) -> Edit:
    """Return the edit from one scene to another, in one of EDITS[part]."""
    words = _words(after) | {"old_shape": before.shape}
    return Edit(phrase.format(**words), (before,), after, part)


def exchange(first: Scene, second: Scene, phrase: str) -> Edit:
    """Return the edit with two references: image 1's object on image 2's background."""
    after = replace(first, background=second.background)
    return Edit(phrase, (first, second), after, "exchange")


def vocabulary() -> Iterator[str]:
    """Yield every word of the world, with a blank before it and without."""
    words = {*COLOURS, *SHAPES, *SIZES, *POSITIONS}
    phrases = [*PROMPTS, *EXCHANGES, *(p for group in EDITS.values() for p in group)]
    for phrase in phrases:
        bare = phrase
        for name in ("colour", "shape", "old_shape", "background", "size", "position", "place"):
            bare = bare.replace("{" + name + "}", " ")
        words.update(bare.replace(",", " ").split())
    words.add("Picture")
    for word in sorted(words):
        yield word
        yield " " + word
        yield word.capitalize()
