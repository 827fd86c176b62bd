"""Which changes are tried: picked by a seed from the files of a room."""

import ast
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tools.mutation.mutate import KINDS, Mutation, find_mutations, is_valid
from tools.mutation.unseen import find_errors

TOP: Final = "top"


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change of one file; `file` is relative to the source folder."""

    file: str
    source: str
    mutation: Mutation

    @property
    def key(self) -> tuple[str, str, str, str]:
        """Return what identifies it wherever its lines move: file, function, line, changed line."""
        before, after = self.mutation.shown(self.source)
        return self.file, self.mutation.within, before, after


def find_rooms(folder: Path) -> dict[str, list[Path]]:
    """Return the files of each room: one per folder, and "top" for the files in none."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).parts
        found.setdefault(parts[0] if len(parts) > 1 else TOP, []).append(path)
    return found


def pick_mutants(
    folder: Path,
    room: str,
    seed: int,
    count: int,
    is_listed: Callable[[Mutant], bool] = lambda _: False,
) -> list[Mutant]:
    """Pick `count` mutants of a room to try, or all if there are fewer.

    Those that are listed as equivalent are not counted; the ones that are met are among the picked.
    Each kind of change is as likely as the others, and within a kind each place. The same seed on
    the same source gives the same mutants, and a larger count begins with the same ones.
    """
    trees = [ast.parse(path.read_text()) for path in sorted(folder.rglob("*.py"))]
    errors = find_errors(trees)
    pools: dict[str, list[Mutant]] = {kind: [] for kind in KINDS}
    for path in find_rooms(folder)[room]:
        source = path.read_text()
        for mutation in find_mutations(source, errors):
            file = path.relative_to(folder).as_posix()
            pools[mutation.kind].append(Mutant(file, source, mutation))
    return _pick(pools, random.Random(f"{seed}:{room}"), count, is_listed)


def _pick(
    pools: Mapping[str, list[Mutant]],
    rng: random.Random,
    count: int,
    is_listed: Callable[[Mutant], bool],
) -> list[Mutant]:
    for pool in pools.values():
        rng.shuffle(pool)
    found: list[Mutant] = []
    left = count
    while left > 0 and any(pools.values()):
        pool = pools[rng.choice([kind for kind, pool in pools.items() if pool])]
        mutant = pool.pop()
        if is_valid(mutant.source, mutant.mutation):
            found.append(mutant)
            left -= not is_listed(mutant)
    return found
