"""What every test starts from: the same log, the same random numbers, the same examples."""

import gc
import logging
import os
import random
import sys
from collections.abc import Iterator

import hypothesis
import pytest
import structlog

from worker import log

# A property that tries other examples each time fails in some runs only, and one with a deadline
# fails beside a busy neighbour; `make fuzz` (FUZZ_EXAMPLES) is where new examples are tried.
EXAMPLES = os.environ.get("FUZZ_EXAMPLES")
hypothesis.settings.register_profile(
    "suite",
    max_examples=int(EXAMPLES or 100),
    deadline=None,
    derandomize=EXAMPLES is None,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("suite")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Keep what is imported meanwhile, and stays, from being looked through for garbage.

    Of 1139 s that all tests computed in their own process, 143 went into that.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_runtest_setup() -> None:
    """Seed torch as pytest-randomly has seeded `random` and numpy: by the test's own name."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(random.getrandbits(63))


@pytest.fixture(autouse=True)
def default_log() -> Iterator[None]:
    """Undo `log.configure`, whose stream may be the test's own, and `log.hide`."""
    # the hostile site of worlds writes to clients that have left, and asyncio tells each time
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    root, hidden = logging.getLogger(), set(log._secrets)
    level = root.level
    yield
    structlog.reset_defaults()
    logging.captureWarnings(capture=False)
    for handler in [h for h in root.handlers if type(h) is logging.StreamHandler]:
        root.removeHandler(handler)
    root.setLevel(level)
    log._secrets.clear()
    log._secrets.update(hidden)
