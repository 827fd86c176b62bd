"""bench/cpu.py: both sides do the same jobs, and what a job took is in its phases."""

import pytest

from bench import cpu


def test_a_kind_of_job_is_measured_on_both_sides() -> None:
    found = cpu.measure(1, "bf16/image/4/1", 0)
    assert list(found["cases"]) == ["bf16/image/4/1"]
    sides = found["cases"]["bf16/image/4/1"]
    assert list(sides) == ["stock", "worker"]
    for side in sides.values():
        assert list(side["phases_ms"]) == ["text", "denoise", "decode", "rest"]
        assert side["phases_ms"]["denoise"] > 0
        assert sum(side["phases_ms"].values()) == pytest.approx(side["median_ms"], abs=0.5)
        assert side["stock_by_it"] == pytest.approx(
            sides["stock"]["median_ms"] / side["median_ms"], abs=0.01
        )
    assert "cold" not in found


def test_no_job_has_what_another_had() -> None:
    kind = cpu.Kind("edit", 4, 1)
    jobs = [cpu.make_input(kind, number) for number in range(10_000, 10_004)]
    for field in ("prompt", "image", "seed"):
        assert len({job[field] for job in jobs}) == len(jobs)
    assert cpu.make_input(kind, 10_001) == jobs[1]
    assert "image" not in cpu.make_input(cpu.Kind("image", 4, 1), 1)
