"""The tensor cache keeps what was used last, within its bytes."""

from functools import partial

import torch

from worker.engine.cache import TensorCache


def test_the_least_recently_used_gives_way() -> None:
    """Of three tensors in room for two, the one not touched since is computed again."""
    cache = TensorCache(budget=2 * 16)
    for key in ("a", "b", "a", "c", "a", "b"):
        cache.get(key, lambda: torch.zeros(4))
    assert (cache.hits, cache.misses) == (2, 4)


def test_a_tensor_over_the_budget_is_given_but_not_kept() -> None:
    """It does not push out all others for nothing."""
    cache = TensorCache(budget=16)
    cache.get("small", lambda: torch.zeros(4))
    assert cache.get("large", lambda: torch.zeros(5)).numel() == 5
    cache.get("small", lambda: torch.zeros(4))
    assert cache.hits == 1


def test_cleared_means_empty() -> None:
    """After clear, everything is computed again."""
    cache = TensorCache(budget=64)
    cache.get("a", lambda: torch.zeros(4))
    cache.clear()
    cache.get("a", lambda: torch.zeros(4))
    assert cache.misses == 2


def test_what_was_cleared_takes_no_room() -> None:
    """The whole budget is there again."""
    cache = TensorCache(budget=2 * 16)
    for _ in range(2):
        for key in ("a", "b"):
            cache.get(key, lambda: torch.zeros(4))
        cache.clear()
    for key in ("a", "b", "a", "b"):
        cache.get(key, lambda: torch.zeros(4))
    assert (cache.hits, cache.misses) == (2, 6)


def test_a_large_tensor_pushes_out_as_many_as_it_needs() -> None:
    """Bytes count, not tensors: one of bf16 takes half of what one of float32 does."""
    cache = TensorCache(budget=48)
    for key in ("a", "b", "c"):
        cache.get(key, lambda: torch.zeros(4))
    cache.get("large", lambda: torch.zeros(16, dtype=torch.bfloat16))
    cache.get("c", lambda: torch.ones(4))
    assert cache.get("c", lambda: torch.ones(4)).sum() == 0
    assert cache.get("a", lambda: torch.ones(4)).sum() == 4


def test_the_budget_holds_to_the_byte_before_and_after_clearing() -> None:
    cache = TensorCache(budget=4)
    for _ in range(2):
        hits = cache.hits
        for key, size in (("a", 2), ("b", 2), ("a", 2), ("b", 2)):
            cache.get(key, partial(torch.zeros, size, dtype=torch.uint8))
        assert cache.hits == hits + 2
        for key, size in (("c", 3), ("b", 2), ("c", 3)):
            cache.get(key, partial(torch.zeros, size, dtype=torch.uint8))
        assert cache.hits == hits + 2
        cache.clear()
