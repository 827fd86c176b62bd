"""The next token: the penalty, the temperature, the likeliest part, and one number that decides."""

import pytest
import torch
from torch import Tensor
from transformers import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from worker.engine.token_choice import Choosing, choose_token

NONE = torch.zeros(1, 4, dtype=torch.bool)


def choose(logits: list[float], uniform: float, how: Choosing, *seen: int) -> int:
    marked = torch.zeros(1, len(logits), dtype=torch.bool)
    marked[0, list(seen)] = True
    chosen = choose_token(torch.tensor([logits]), marked, torch.tensor([uniform]), how)
    return int(chosen)


def test_without_a_temperature_it_is_the_likeliest() -> None:
    assert choose([1, 3, 2], 0.99, Choosing(0)) == 1


@pytest.mark.parametrize(
    ("logits", "seen", "expected"),
    [
        *(([2, 1.9], 0, 1), ([0.2, 0.19], 0, 1), ([-0.2, -0.21], 0, 1), ([-1, -1.05], 0, 1)),
        *(([2, 1.5], 0, 0), ([-1, -1.2], 0, 0)),
    ],
)
def test_the_penalty_lowers_what_was_seen(logits: list[float], seen: int, expected: int) -> None:
    assert choose(logits, 0, Choosing(0, penalty=1.1), seen) == expected


@pytest.mark.parametrize(
    ("uniform", "expected"), [(0, 2), (0.49, 2), (0.51, 0), (0.79, 0), (0.81, 1), (0.9999999, 1)]
)
def test_the_number_is_a_part_of_the_sum_in_falling_order(uniform: float, expected: int) -> None:
    logits = torch.tensor([0.3, 0.2, 0.5]).log().tolist()
    assert choose(logits, uniform, Choosing(1)) == expected


def test_a_sum_that_only_reaches_the_number_is_passed_over() -> None:
    """Of two equal tokens each has half of the numbers, the half itself is the second's."""
    assert [choose([0.0, 0.0], n / 4, Choosing(1)) for n in range(4)] == [0, 0, 1, 1]


def test_only_the_likeliest_part_can_be_chosen() -> None:
    logits = torch.tensor([0.3, 0.2, 0.5]).log().tolist()
    for top_p, kept in ((0.4, [2]), (0.5, [2]), (0.6, [2, 0]), (0.81, [2, 0, 1])):
        found = {choose(logits, n / 100, Choosing(1, top_p)) for n in range(100)}
        assert found == set(kept), top_p


def test_a_higher_temperature_makes_the_unlikely_likelier() -> None:
    logits = torch.tensor([0.9, 0.1]).log().tolist()
    assert choose(logits, 0.8, Choosing(1)) == 0
    assert choose(logits, 0.8, Choosing(3)) == 1


def test_the_shares_are_those_of_transformers() -> None:
    torch.manual_seed(0)
    logits, seen = torch.randn(1, 50) * 3, torch.tensor([[3, 4, 30]])
    scores: Tensor = logits.clone()
    for step in (
        RepetitionPenaltyLogitsProcessor(1.3),
        TemperatureLogitsWarper(0.7),
        TopPLogitsWarper(0.8),
    ):
        scores = step(seen, scores)
    expected = scores.softmax(-1)[0]
    marked = torch.zeros(1, 50, dtype=torch.bool).scatter(1, seen, value=True)
    uniforms = (torch.arange(20_000) + 0.5) / 20_000
    count = len(uniforms)
    chosen = choose_token(
        logits.expand(count, -1), marked.expand(count, -1), uniforms, Choosing(0.7, 0.8, 1.3)
    )
    found = torch.bincount(chosen, minlength=50) / count
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-4)


def test_rows_are_chosen_each_by_its_own_number() -> None:
    logits = torch.tensor([[0.5, 0.5], [0.5, 0.5]]).log()
    chosen = choose_token(logits, NONE[:, :2].expand(2, 2), torch.tensor([0.2, 0.7]), Choosing(1))
    assert chosen.tolist() == [0, 1]


def test_without_a_temperature_each_row_has_its_own_likeliest() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0], [1.0, 2.0, 3.0], [3.0, 2.0, 1.0]])
    none = torch.zeros(3, 3, dtype=torch.bool)
    assert choose_token(logits, none, torch.zeros(3), Choosing(0)).tolist() == [1, 2, 0]


def test_what_was_seen_is_as_likely_as_before_where_there_is_no_penalty() -> None:
    assert choose([2, 1.9], 0, Choosing(0), 0) == 0
    assert choose([-1.9, -2], 0, Choosing(0), 0) == 0


def test_rows_of_other_logits_are_chosen_each_by_its_own() -> None:
    """With the likeliest part of each, which has another length."""
    logits = torch.tensor([[0.9, 0.06, 0.04], [0.2, 0.3, 0.5], [0.1, 0.8, 0.1]]).log()
    none = torch.zeros(3, 3, dtype=torch.bool)
    chosen = [
        choose_token(logits, none, torch.full((3,), uniform), Choosing(1, 0.75)).tolist()
        for uniform in (0.0, 0.7, 0.99)
    ]
    assert chosen == [[0, 2, 1], [0, 1, 1], [0, 1, 1]]
