"""Which published model to use instead of a repository that cannot be served as it is."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from worker.weights.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Relative:
    """Models that are taken for those of a family and that this worker does not serve.

    `repositories` and `classes` are patterns of what their publishers call them, in any case;
    `instead` is the row to take.
    """

    name: str
    repositories: str
    classes: str
    instead: str


def find_relative(relatives: Sequence[Relative], repository: str, pipeline: str) -> Relative | None:
    """Return what a repository is by its class or, where that is "" (unknown), its name."""
    for relative in relatives:
        named = not pipeline and re.match(relative.repositories, repository, re.IGNORECASE)
        if named or re.fullmatch(relative.classes, pipeline):
            return relative
    return None


def find_instead(rows: Sequence[ModelSpec], repository: str, pipeline: str) -> ModelSpec | None:
    """Return the row that a repository is a copy of; None when that cannot be determined.

    The row with the longest name that occurs in the repository's name, of its pipeline class where
    that is known (not ""); else the newest row of the class.
    """
    rows = [row for row in rows if row.embedded is None and pipeline in ("", row.pipeline)]
    name = re.sub(r"[^a-z0-9]+", "-", repository.lower())
    named = [row for row in rows if row.name in name]
    newest = rows[-1] if pipeline and rows else None
    return max(named, key=lambda row: len(row.name), default=newest)
