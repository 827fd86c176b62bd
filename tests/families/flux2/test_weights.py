"""A reference of weight w counts as if it were given w times in the same place."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from worker.families.flux2.shares import attend, make_shares
from worker.tasks.picture import PictureWish
from worlds.small_flux import Kind
from worlds.stock_flux import FluxPair, references
from worlds.wishes import WISH

TEXT_TOKENS, OUTPUT_TOKENS = 512, 36
THREE = replace(WISH, task="edit", references=references(3))
TWO = replace(THREE, references=THREE.references[:2])


@pytest.fixture(scope="module")
def pair(publish: Callable[[Kind], Path]) -> FluxPair:
    """A klein, open twice."""
    return FluxPair(publish("klein"), "klein")


def weighed(wish: PictureWish, *weights: float) -> PictureWish:
    """Return a wish whose references count so often."""
    return replace(wish, reference_weights=weights)


def test_weights_of_one_are_none_at_all(pair: FluxPair) -> None:
    assert torch.equal(pair.our_latents(weighed(THREE, 1, 1, 1)), pair.our_latents(THREE))


def test_a_reference_of_weight_zero_is_not_there(pair: FluxPair) -> None:
    """The first alone; the text alone; and the stock pipeline's of the same."""
    first = replace(TWO, references=TWO.references[:1])
    alone = pair.our_latents(first)
    assert torch.equal(pair.our_latents(weighed(TWO, 1, 0)), alone)
    assert torch.equal(alone, pair.stock_latents(first))
    text = replace(WISH, references=())
    assert torch.equal(pair.our_latents(weighed(TWO, 0, 0)), pair.our_latents(text))


def test_the_others_stay_in_their_places(pair: FluxPair) -> None:
    """Without the first, the second is where it was: not where it would be alone."""
    second = pair.our_latents(weighed(TWO, 0, 1))
    alone = pair.our_latents(replace(TWO, references=TWO.references[1:]))
    assert not torch.allclose(second, alone, atol=1e-3)
    near = pair.our_latents(weighed(TWO, 1e-7, 1))
    assert (near - second).abs().max() < 1e-4


@pytest.fixture
def twice(pair: FluxPair, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Any]:
    """Return what repeats the first reference's tokens, in its own place, in every forward."""

    def repeat(times: int) -> None:
        run = pair.ours._parts.forward.__class__.__call__

        def repeated(
            forward: Any, latents: Any, timestep: Any, prompt: Any, places: Any, **more: Any
        ) -> Any:
            count = places[1][1] * places[1][2]
            start = OUTPUT_TOKENS
            first = latents[:, start : start + count]
            longer = torch.cat([latents, *[first] * (times - 1)], dim=1)
            extended = [*places, *[places[1]] * (times - 1)]
            return run(forward, longer, timestep, prompt, extended, **more)

        monkeypatch.setattr(pair.ours._parts.forward.__class__, "__call__", repeated)

    return repeat


@pytest.mark.parametrize("times", [2, 3])
def test_a_reference_of_weight_two_counts_twice(
    pair: FluxPair, twice: Callable[[int], Any], times: int
) -> None:
    counted = pair.our_latents(weighed(TWO, times, 1))
    twice(times)
    assert (counted - pair.our_latents(TWO)).abs().max() < 1.5e-6  # of 6.6


def test_in_bf16_it_does_but_for_a_rounding(publish: Callable[[Kind], Path], twice: Any) -> None:
    """Latents are up to 4.6, whose neighbours are 0.03 apart; equal weights are 0.07 apart."""
    other = FluxPair(publish("klein"), "klein", torch.bfloat16)
    assert torch.equal(other.our_latents(weighed(TWO, 1, 1)), other.stock_latents(TWO))
    counted = other.our_latents(weighed(TWO, 2, 1))
    plain = other.our_latents(TWO)
    twice(2)
    repeated = other.our_latents(TWO)
    assert (counted - repeated).abs().max() < 0.04 < (plain - repeated).abs().max()


def test_more_weight_leads_further_from_the_text(pair: FluxPair) -> None:
    """The distance to the picture of the text alone grows with the weight of the reference."""
    one = replace(WISH, task="edit", references=TWO.references[:1])
    text = pair.our_latents(replace(WISH, references=()))
    distances = [
        float((pair.our_latents(weighed(one, weight)) - text).norm())
        for weight in (0, 0.01, 0.1, 0.5, 1, 2, 4)
    ]
    assert distances[0] == 0
    assert distances == sorted(set(distances))


def tokens(seed: int, count: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, count, 3, 32, generator=generator).to(dtype)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 0.01)])
def test_shares_are_a_mask_without_a_mask(dtype: torch.dtype, bound: float) -> None:
    """One more product in the logits gives what an added mask gives in double precision."""
    query, key, value = (tokens(seed, 24, dtype) for seed in range(3))
    shares = make_shares((1, 2, 0.3), (10, 6, 8), 32, dtype)
    mask = torch.tensor([1.0] * 10 + [2.0] * 6 + [0.3] * 8, dtype=torch.float64).log()
    wide = [each.double().transpose(1, 2) for each in (query, key, value)]
    expected = functional.scaled_dot_product_attention(
        wide[0], wide[1], wide[2], attn_mask=mask.expand(24, 24)
    )
    found = attend(query, key, value, shares)
    assert (found - expected.transpose(1, 2).flatten(2)).abs().max() < bound


def test_the_sum_of_two_numbers_keeps_a_weight_that_one_would_round() -> None:
    """In bf16 ln 2 times the root of 128 is off by 0.02, and by 0.0001 as a sum."""
    shares = make_shares((2.0,), (1,), 128, torch.bfloat16)
    assert shares is not None
    exact = 0.6931471805599453 * 128**0.5
    one, both = float(shares[0, 0]), float(shares[0, :2].float().sum())
    assert abs(one - exact) > 1e-3
    assert abs(both - exact) < 1e-4
    assert shares.shape[1] == 8
    wide = make_shares((2.0,), (1,), 128, torch.float32)
    assert wide is not None
    assert abs(float(wide[0, :2].double().sum()) - exact) < 1e-12


def test_both_numbers_of_a_share_are_used() -> None:
    """Of a key of weight 2 and one of 1, all else equal: two thirds, as far as both can say it."""
    shares = make_shares((2.0, 1.0), (1, 1), 128, torch.bfloat16)
    assert shares is not None
    query = key = torch.zeros(1, 2, 1, 128)
    value = torch.zeros(1, 2, 1, 128)
    value[0, 0] = 1
    found = attend(query, key, value, shares.float())
    assert (found - 2 / 3).abs().max() < 1e-5


@pytest.mark.parametrize("kind", ["dev"])
def test_weights_count_in_every_kind(publish: Callable[[Kind], Path], kind: Kind) -> None:
    other = FluxPair(publish(kind), kind)
    wish = replace(TWO, guidance=4.0)
    assert not torch.equal(other.our_latents(weighed(wish, 2, 1)), other.our_latents(wish))
