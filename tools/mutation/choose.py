"""Which changes are tried: drawn by a seed from the files of a room."""

import ast
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tools.mutation.mutate import KINDS, Mutation, is_valid, mutations
from tools.mutation.unseen import errors_of

TOP: Final = "top"


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change of one file; `file` is relative to the source folder."""

    file: str
    source: str
    mutation: Mutation

    @property
    def key(self) -> tuple[str, str, str, str]:
        """Return what names it wherever its lines move: file, function, line, changed line."""
        before, after = self.mutation.shown(self.source)
        return self.file, self.mutation.within, before, after


def rooms(folder: Path) -> dict[str, list[Path]]:
    """Return the files of each room: a folder's, and "top" for those that lie in none."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).parts
        found.setdefault(parts[0] if len(parts) > 1 else TOP, []).append(path)
    return found


def chosen(folder: Path, room: str, seed: int, count: int) -> list[Mutant]:
    """Draw `count` mutants of a room, or all if there are fewer.

    Each kind of change is as likely as the others, and within a kind each place. The same seed on
    the same source gives the same mutants, and a larger count the same ones first.
    """
    trees = [ast.parse(path.read_text()) for path in sorted(folder.rglob("*.py"))]
    errors = errors_of(trees)
    pools: dict[str, list[Mutant]] = {kind: [] for kind in KINDS}
    for path in rooms(folder)[room]:
        source = path.read_text()
        for mutation in mutations(source, errors):
            file = path.relative_to(folder).as_posix()
            pools[mutation.kind].append(Mutant(file, source, mutation))
    return _drawn(pools, random.Random(f"{seed}:{room}"), count)


def _drawn(pools: Mapping[str, list[Mutant]], rng: random.Random, count: int) -> list[Mutant]:
    for pool in pools.values():
        rng.shuffle(pool)
    found: list[Mutant] = []
    while len(found) < count and any(pools.values()):
        pool = pools[rng.choice([kind for kind, pool in pools.items() if pool])]
        mutant = pool.pop()
        if is_valid(mutant.source, mutant.mutation):
            found.append(mutant)
    return found
