"""Changes that no test can notice, each listed with its reason in equivalents.toml."""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tools.mutation.choose import Mutant
from tools.mutation.mutate import find_mutations

LISTED: Final = Path(__file__).parent.parent / "equivalents.toml"
ANY: Final = "*"


@dataclass(frozen=True, slots=True)
class Equivalent:
    """One entry: a line of a function of a file, and what it may become (`ANY`: anything).

    `line` and `change` are as a survivor is printed, so that an entry applies wherever its line
    moves; `within` is the dotted name of the function, "" outside of one. The line `ANY` is every
    line of the function, for example of one that needs a device which the test machine lacks.
    """

    file: str
    line: str
    reason: str
    within: str = ""
    change: str = ANY

    def covers(self, mutant: Mutant) -> bool:
        """Return whether a mutant is this one."""
        file, within, before, after = mutant.key
        return (
            (file, within) == (self.file, self.within)
            and self.line in (ANY, before)
            and self.change in (ANY, after)
        )


def read_list(path: Path = LISTED) -> list[Equivalent]:
    """Read the list; raises TypeError for an entry without a file, a line or a reason."""
    if not path.exists():
        return []
    entries = tomllib.loads(path.read_text()).get("equivalent", [])
    return [Equivalent(**entry) for entry in entries]


def find_stale(entries: Sequence[Equivalent], folder: Path) -> list[Equivalent]:
    """Return the entries that no longer match any change of the source."""
    unmatched = []
    for entry in entries:
        path = folder / entry.file
        source = path.read_text() if path.is_file() else ""
        mutants = (Mutant(entry.file, source, mutation) for mutation in find_mutations(source))
        if not any(entry.covers(mutant) for mutant in mutants):
            unmatched.append(entry)
    return unmatched
