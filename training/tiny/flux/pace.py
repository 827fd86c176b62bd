"""How long a stage may take, and how far it is: rates follow the time, not a number of steps."""

import time
from dataclasses import dataclass, field


@dataclass(slots=True)
class Pace:
    """A stage's seconds, of which some were spent before a stop."""

    seconds: float
    spent: float = 0.0
    began: float = field(default_factory=time.monotonic)

    @property
    def now(self) -> float:
        """Return the seconds spent in all."""
        return self.spent + time.monotonic() - self.began

    @property
    def share(self) -> float:
        """Return the share of the seconds that is spent, 1 at most."""
        return min(1.0, self.now / max(self.seconds, 1e-9))

    def rate(self, falling: float, rising: float = 0.03) -> float:
        """Return a learning rate's factor: up in a share `rising`, down in the last `falling`."""
        share = self.share
        return max(0.01, min(1.0, (share + 1e-3) / rising, (1.0 - share) / falling))
