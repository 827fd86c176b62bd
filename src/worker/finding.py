"""One thing that the doctor checked, and what to change about it."""

from dataclasses import asdict, dataclass
from typing import Literal

Level = Literal["ok", "advice", "fatal"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was checked: what was found and, unless it is ok, what to change.

    `of_host` is whether it may differ on another machine of the same endpoint.
    """

    check: str
    level: Level
    found: str
    change: str = ""
    of_host: bool = False

    def as_json(self) -> dict[str, str]:
        """Return the finding as a plain dictionary, as the operator reads it."""
        return {name: value for name, value in asdict(self).items() if name != "of_host"}
