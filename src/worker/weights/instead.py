"""Which published model to use instead of a repository that cannot be served as it is."""

import re
from collections.abc import Sequence

from worker.weights.spec import ModelSpec


def find_instead(
    rows: Sequence[ModelSpec], repository: str, pipeline: str = ""
) -> ModelSpec | None:
    """Return the row that a repository is a copy of; None when that cannot be determined.

    The row with the longest name that occurs in the repository's name, of its pipeline class where
    that is known; else the newest row of the class.
    """
    rows = [row for row in rows if row.embedded is None and pipeline in ("", row.pipeline)]
    name = re.sub(r"[^a-z0-9]+", "-", repository.lower())
    named = [row for row in rows if row.name in name]
    newest = rows[-1] if pipeline and rows else None
    return max(named, key=lambda row: len(row.name), default=newest)
