"""A short soak: all kinds of jobs, mixed, through the real loop; the long one is make soak."""

import random
from collections.abc import Callable

import pytest

from bench import soak
from bench.soak import Sample


def test_every_job_of_a_mixed_run_has_its_one_right_end() -> None:
    findings = soak.run(200, seed=1)
    assert findings.wrong == []
    assert {outcome.split(":")[0] for outcome in findings.outcomes} == {
        "bad",
        "slow URL",
        "cancelled",
        "edit",
        "text-to-image",
    }
    assert {sample.descriptors > 3 and sample.memory > 10 for sample in findings.samples} == {True}


def samples(memory: Callable[[int], float], threads: Callable[[int], int]) -> list[Sample]:
    """Make up what a run of 200 samples measured."""
    return [Sample(memory(n), 20 + n % 3, threads(n)) for n in range(200)]


def noise(seed: int, size: float) -> Callable[[], float]:
    rng = random.Random(seed)
    return lambda: rng.uniform(-size, size)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "memory",
    [
        lambda _: 100.0,
        lambda n: min(119.0, 100 + n / 4),  # grows while it warms up
        lambda n: 100 + 12 * (n % 20 < 6),  # a third of the time something large is loaded
        lambda n: 100 + 3 * (n > 120),  # once, for good
        lambda n: 120 - n / 50,
        # what was measured with a heap a thread, by tenths of the run
        lambda n: (104, 110, 115, 116, 119, 116, 119, 119, 118, 119)[n // 20],
    ],
    ids=["level", "warm-up", "on and off", "a step", "falling", "measured"],
)
def test_what_does_not_go_on_growing_is_no_leak(memory: Callable[[int], float], seed: int) -> None:
    some = noise(seed, 2.0)
    assert soak.find_leaks(samples(lambda n: memory(n) + some(), lambda n: 9 + (n > 60))) == []


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "memory",
    [
        lambda n: 100 + n * 0.07,  # 1.4 kB a job of ten thousand
        lambda n: 100 + max(0, n - 110) * 0.1,  # begins in the second half
        lambda n: 100 + n * 0.07 + 12 * (n % 20 < 6),
        lambda n: 100 + n // 40 * 4,  # by steps
    ],
    ids=["steady", "late", "on and off", "steps"],
)
def test_what_keeps_growing_is_reported(memory: Callable[[int], float], seed: int) -> None:
    some = noise(seed, 2.0)
    (finding,) = soak.find_leaks(samples(lambda n: memory(n) + some(), lambda _: 9))
    assert finding.startswith("memory grew by ")


def test_a_thread_in_twenty_samples_is_reported() -> None:
    (finding,) = soak.find_leaks(samples(lambda _: 100.0, lambda n: 9 + n // 20))
    assert finding.startswith("threads grew by ")


def test_a_run_too_short_to_be_judged_has_grown_by_nothing() -> None:
    assert soak.growth([]) == soak.growth([5.0]) == 0.0
    assert soak.growth([1.0, 2.0, 3.0, 5.0]) == 2.0
