"""What every test starts from: the log as structlog and logging have it by default."""

import logging
from collections.abc import Iterator

import pytest
import structlog


@pytest.fixture(autouse=True)
def default_log() -> Iterator[None]:
    """Undo what `log.configure` did in a test: its stream may be the test's own."""
    # the hostile site of tests/worlds writes to clients that have left, and asyncio tells each time
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    yield
    structlog.reset_defaults()
    logging.captureWarnings(capture=False)
    root = logging.getLogger()
    for handler in [h for h in root.handlers if type(h) is logging.StreamHandler]:
        root.removeHandler(handler)
