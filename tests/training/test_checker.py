"""The checker reads what the world draws, and says so where a picture shows something else."""

import random
from dataclasses import astuple

from PIL import Image

from training.tiny import checker, world


def test_every_drawn_scene_is_read_back_in_all_five_parts() -> None:
    rng = random.Random(3)
    scenes = list(world.scenes())[::3]
    wrong = [
        (scene, seen)
        for scene in scenes
        if astuple(seen := checker.read(world.draw(scene, world.random_jitter(rng))))
        != astuple(scene)
    ]
    assert not wrong


def test_a_picture_of_nothing_has_a_background_and_no_object() -> None:
    seen = checker.read(Image.new("RGB", (96, 96), (220, 40, 40)))
    assert astuple(seen) == ("?", "?", "red", "?", "?")


def test_an_unknown_shape_and_an_unknown_colour_are_not_guessed() -> None:
    picture = Image.new("RGB", (96, 96), (245, 245, 245))
    picture.paste((110, 110, 110), (40, 4, 56, 92))
    seen = checker.read(picture)
    assert (seen.colour, seen.shape, seen.background) == ("?", "?", "white")


def test_a_fixed_fifth_of_colour_shape_and_background_is_held_out() -> None:
    combinations = {(s.colour, s.shape, s.background): s.held_out for s in world.scenes()}
    assert len(combinations) == 224
    assert 0.19 <= sum(combinations.values()) / 224 <= 0.21
