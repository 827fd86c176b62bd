"""Which published model to use instead of a repository that cannot be served as it is."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from worker.weights.spec import ModelSpec

DATE: Final = re.compile(r"(?<!\d)2[0-9](?:0[1-9]|1[0-2])(?!\d)")


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
    that is known (not ""); else the newest row of the class. A date in the repository's name
    decides first.
    """
    rows = [row for row in rows if row.embedded is None and pipeline in ("", row.pipeline)]
    name = _fold(repository)
    rows = [row for row in rows if _find_dates(row.name) & _find_dates(repository)] or rows
    named = [row for row in rows if _fold(row.name) in name]
    newest = rows[-1] if pipeline and rows else None
    return max(named, key=lambda row: len(row.name), default=newest)


def _fold(name: str) -> str:
    """Return a name's letters and digits: publishers write it with any dash, or with none."""
    return re.sub(r"[^a-z0-9]+", "", name.lower())


def _find_dates(name: str) -> set[str]:
    """Return the years and months that distinguish the versions of a model: 2509."""
    return set(DATE.findall(name))
