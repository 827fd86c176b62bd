"""A FLUX.2 begins from a picture: noise is mixed with normalised latents, as its steps have it."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from PIL import Image

from worker.engine.begin import list_sigmas
from worker.families.clock import Clock
from worker.families.sharing import Sharing
from worker.media.picture import Picture
from worker.seam import Control, Phase, Unheard, take_made
from worker.tasks.picture import PictureWish
from worlds.small_flux import Kind
from worlds.stock_flux import CPU, FluxPair
from worlds.wishes import WISH, drawing

SOURCE = drawing(96, 96, 1)
BEGUN = replace(WISH, task="img2img", source=SOURCE, strength=0.5)


@pytest.fixture(scope="module")
def pair(publish: Callable[[Kind], Path]) -> FluxPair:
    """A klein, open twice."""
    return FluxPair(publish("klein"), "klein")


def stock_begun(pair: FluxPair, wish: PictureWish, steps: int) -> Any:
    """Return what the stock pipeline makes of our beginning: normalised latents and sigmas."""
    assert wish.source is not None
    sigmas = list_sigmas(wish.steps, wish.strength or 1.0)
    first = float(pair.ours._make_steps(wish).sigmas[0])
    source = pair.ours._vae.encode(wish.source, wish.width, wish.height)
    noise = torch.randn((1, 32, 6, 6), generator=torch.Generator("cpu").manual_seed(wish.seed))
    packed = source.transpose(1, 2).reshape(1, 32, 6, 6)
    mixed = first * noise + (1.0 - first) * packed
    assert len(sigmas) == steps == wish.run_steps
    return pair.stock_latents(wish, latents=mixed, sigmas=sigmas.tolist())


def test_all_of_the_strength_is_the_picture_of_the_text(pair: FluxPair) -> None:
    whole = pair.our_latents(replace(BEGUN, strength=1.0))
    assert torch.equal(whole, pair.our_latents(WISH))


@pytest.mark.parametrize(
    ("strength", "steps", "run"), [(0.5, 4, 2), (0.25, 4, 1), (0.3, 4, 2), (0.6, 8, 5), (0.9, 4, 4)]
)
def test_latents_equal_the_stock_pipeline_s_from_the_same_beginning(
    pair: FluxPair, strength: float, steps: int, run: int
) -> None:
    wish = replace(BEGUN, strength=strength, steps=steps)
    assert torch.equal(pair.our_latents(wish), stock_begun(pair, wish, run))


def test_the_distance_to_the_source_grows_with_the_strength(pair: FluxPair) -> None:
    source = pair.ours._vae.encode(SOURCE, 96, 96)
    distances = [
        float((pair.our_latents(replace(BEGUN, strength=s)) - source).norm())
        for s in (0.01, 0.05, 0.2, 0.5, 0.8)
    ]
    assert distances == sorted(set(distances))


def test_neighbouring_strengths_are_neighbouring_pictures(pair: FluxPair) -> None:
    """Between two steps too: 0.74 and 0.75 of four steps begin in different ones."""
    near, at = (pair.our_latents(replace(BEGUN, strength=s)) for s in (0.74, 0.75))
    far = pair.our_latents(replace(BEGUN, strength=0.2))
    assert 0 < (near - at).norm() < 0.1 * (far - at).norm()


def made_picture(pair: FluxPair, wish: PictureWish) -> tuple[Image.Image, dict[str, Any]]:
    (outcome,) = pair.ours.make([wish], [Unheard()])
    made = take_made(outcome)
    assert isinstance(made.piece, Picture)
    return made.piece.image, dict(made.found)


def test_a_reply_says_how_much_noise_it_began_with(pair: FluxPair) -> None:
    """To four digits: half of the way, shifted as the publisher's schedule is."""
    _, found = made_picture(pair, BEGUN)
    shift = math.exp(compute_empirical_mu(36, 4))
    noise = shift / (shift + 1 / 0.5 - 1)
    assert found["start_noise"] == round(noise, 4)
    assert len({round(noise, digits) for digits in (3, 4, 5)}) == 3
    assert "start_noise" not in made_picture(pair, WISH)[1]


def test_a_mask_keeps_what_it_leaves_in_the_latents(pair: FluxPair) -> None:
    """Inpainting: the left half is the source's, the source is a reference next to the blend."""
    mask = Image.new("L", (96, 96), 0)
    mask.paste(255, (48, 0, 96, 96))
    wish = replace(BEGUN, task="inpaint", strength=1.0, mask=mask, references=(SOURCE,))
    found = pair.our_latents(wish).view(6, 6, 32)
    source = pair.ours._vae.encode(SOURCE, 96, 96).view(6, 6, 32)
    assert torch.equal(found[:, :3], source[:, :3])
    assert not torch.allclose(found[:, 3:], source[:, 3:], atol=0.1)
    plain = pair.our_latents(replace(wish, references=())).view(6, 6, 32)
    assert not torch.equal(found[:, 3:], plain[:, 3:])
    picture, _ = made_picture(pair, wish)
    assert picture.size == (96, 96)


class Hearing(Control):
    """Keeps what a caller hears of each phase but the steps."""

    def __init__(self) -> None:
        self.heard: list[tuple[Phase, int, int]] = []

    def report(self, phase: Phase, step: int, steps: int) -> None:
        """Keep it."""
        if phase != "denoise":
            self.heard.append((phase, step, steps))


@pytest.mark.parametrize(
    ("wish", "has_pictures"),
    [(WISH, False), (BEGUN, True), (replace(WISH, references=(SOURCE,)), True)],
    ids=["text", "begun", "edit"],
)
def test_a_caller_hears_of_pictures_where_there_are_any(
    pair: FluxPair, wish: PictureWish, has_pictures: bool
) -> None:
    hearing = Hearing()
    pair.ours.make_latents([wish], Sharing([hearing], drops=True), Clock(CPU))
    text: Phase = "text"
    reference: Phase = "reference"
    assert hearing.heard == [(text, 1, 1)] + [(reference, 1, 1)] * has_pictures


def test_a_batch_equals_single_runs(pair: FluxPair) -> None:
    """With references of weights and a beginning each; a row that ends leaves the others alone."""
    wishes = [
        replace(
            BEGUN,
            task="inpaint",
            source=drawing(96, 96, seed),
            mask=Image.new("L", (96, 96), 255),
            references=(drawing(96, 96, seed), drawing(90, 90, 9)),
            reference_weights=(2.0, 0.5),
            seed=seed,
            strength=0.8,
        )
        for seed in range(3)
    ]
    batch = pair.our_latents(*wishes)
    single = torch.cat([pair.our_latents(wish) for wish in wishes])
    assert (batch - single).abs().max() < 1e-4 * (single.max() - single.min())
    assert len({pair.ours.make_key(wish) for wish in wishes}) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"reference_weights": (1.0, 2.0)},
        {"guidance": 3.0},
        {"references": (drawing(96, 96, 1), drawing(80, 160, 2))},
        {"strength": 0.7},
        {"steps": 5},
        {"width": 112},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_differs_shares_no_forward(pair: FluxPair, changes: Any) -> None:
    wish = replace(
        BEGUN,
        task="edit",
        references=(drawing(96, 96, 1), drawing(90, 90, 2)),
        reference_weights=(2.0, 0.5),
    )
    assert pair.ours.make_key(wish) == pair.ours.make_key(replace(wish, prompt="other", seed=9))
    assert pair.ours.make_key(wish) != pair.ours.make_key(replace(wish, **changes))
