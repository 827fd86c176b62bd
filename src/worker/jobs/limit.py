"""How long one job may take, by what its caller or its door says."""

from dataclasses import dataclass
from typing import Any, Final

# How long before its caller's limit a job ends, so that its answer arrives.
SPARE_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Limit:
    """How many seconds a job may take from its arrival on, and what sets that limit."""

    seconds: float
    reason: str


def read_limit(policy: Any) -> Limit | None:
    """Return how long a job may take by its `policy`: executionTimeout, in ms, less SPARE_S."""
    given = policy.get("executionTimeout") if isinstance(policy, dict) else None
    if isinstance(given, bool) or not isinstance(given, int | float) or not given > 0:
        return None
    seconds = given / 1000
    return Limit(max(seconds - SPARE_S, seconds / 2), "by its policy.executionTimeout")
