"""One job as it came, and what its phases took."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from worker.errors import Detail, InvalidInput
from worker.tasks import registry


@dataclass(slots=True)
class Job:
    """One job as it came, the milliseconds of its phases, and what its caller is warned of."""

    id: str
    input: Any
    s3_config: Any
    start: float = field(default_factory=time.monotonic)
    timings: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def bucket(self) -> Mapping[str, Any] | None:
        """The caller's own bucket; raises InvalidInput when it is no object."""
        if self.s3_config is None or isinstance(self.s3_config, dict):
            return self.s3_config
        message = "must be an object"
        raise InvalidInput(f"s3Config: {message}", details=[Detail("s3Config", message)])

    def is_given(self, name: str) -> bool:
        """Tell whether the caller set a field of the input, by any of its names."""
        names = registry.names()
        return isinstance(self.input, dict) and any(
            value is not None and names.get(word) == name for word, value in self.input.items()
        )

    def elapsed_ms(self) -> float:
        """Return the milliseconds since the job came."""
        return (time.monotonic() - self.start) * 1000

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure one phase."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.timings[name] = (time.monotonic() - start) * 1000
