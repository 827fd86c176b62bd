"""The results of the trials, room by room: as text and as JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.mutation.equivalents import Equivalent
from tools.mutation.trial import Outcome


@dataclass(frozen=True, slots=True)
class Room:
    """The outcomes of one room; `equivalent` counts mutants that were picked and not tried."""

    name: str
    outcomes: Sequence[Outcome]
    equivalent: int = 0

    @property
    def noticed(self) -> int:
        """Return how many mutants the tests noticed."""
        return sum(outcome.noticed for outcome in self.outcomes)

    @property
    def score(self) -> float:
        """Return the share of mutants noticed, 1 where none was tried."""
        return self.noticed / len(self.outcomes) if self.outcomes else 1.0


def format_line(room: Room) -> str:
    """Return a room's score as a line."""
    hangs = sum(outcome.result == "hangs" for outcome in room.outcomes)
    return (
        f"{room.name:<10} {room.score:7.1%}  {room.noticed} of {len(room.outcomes)} noticed"
        f" ({hangs} by time), {room.equivalent} equivalent"
    )


def format_survivor(outcome: Outcome, folder: str) -> str:
    """Return where a change is that no test noticed, and the lines before and after it."""
    mutant = outcome.mutant
    file, within, before, after = mutant.key
    why = "no test reaches it" if outcome.result == "unreached" else f"{outcome.tried} tests pass"
    place = f"{folder}/{file}:{mutant.mutation.line(mutant.source)}"
    inside = f" in {within}" if within else ""
    return f"{place}{inside} ({mutant.mutation.kind}; {why})\n  - {before}\n  + {after}"


def format_report(rooms: Sequence[Room], folder: str, stale: Sequence[Equivalent]) -> str:
    """Return the survivors, the scores, and the entries of the list that no longer match."""
    parts = [
        format_survivor(outcome, folder)
        for room in rooms
        for outcome in room.outcomes
        if not outcome.noticed
    ]
    parts.extend(f"no longer matches anything: {e.file}: {e.line} -> {e.change}" for e in stale)
    scores = [format_line(room) for room in rooms]
    if len(rooms) > 1:
        every = [outcome for room in rooms for outcome in room.outcomes]
        scores.append(format_line(Room("all", every, sum(room.equivalent for room in rooms))))
    return "\n".join([*parts, *scores])


def write(rooms: Sequence[Room], path: Path, facts: Mapping[str, object]) -> None:
    """Write the same as JSON, with every mutant."""
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {
        **facts,
        "rooms": {
            room.name: {
                "score": room.score,
                "noticed": room.noticed,
                "tried": len(room.outcomes),
                "equivalent": room.equivalent,
                "mutants": [_describe(outcome) for outcome in room.outcomes],
            }
            for room in rooms
        },
    }
    path.write_text(json.dumps(document, indent=1) + "\n")


def _describe(outcome: Outcome) -> dict[str, object]:
    file, within, before, after = outcome.mutant.key
    return {
        "file": file,
        "within": within,
        "line": before,
        "change": after,
        "kind": outcome.mutant.mutation.kind,
        "result": outcome.result,
        "test": outcome.test,
        "tried": outcome.tried,
        "seconds": round(outcome.seconds, 2),
    }
