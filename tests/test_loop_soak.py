"""A short soak: all kinds of jobs, mixed, through the real loop; the long one is make soak."""

from bench import soak


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
