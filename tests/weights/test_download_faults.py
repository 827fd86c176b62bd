"""No fault of a hub, a network, a disk or a neighbour puts wrong bytes under a final name.

The campaign (`make faults`) runs every fault with five seeds; this is the part that takes no time.
"""

from pathlib import Path

import pytest
from faults.campaign import CASES, trial
from faults.machine import NotPermitted
from faults.network import Case

FAST = [case for case in CASES if case.fast]


@pytest.mark.parametrize(
    ("case", "seed"),
    [pytest.param(case, n % 2, id=case.name) for n, case in enumerate(FAST)],
)
def test_a_fault_ends_as_it_should(case: Case, seed: int, tmp_path: Path) -> None:
    try:
        outcome = trial(case, seed, tmp_path / "home")
    except NotPermitted as reason:
        pytest.skip(str(reason))
    assert outcome.fault is None, outcome


def test_the_campaign_has_every_fault_once() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names) >= 45
