"""What came of the trials, room by room: as text and as JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.mutation.equivalents import Equivalent
from tools.mutation.trial import Outcome


@dataclass(frozen=True, slots=True)
class Room:
    """The outcomes of one room; `equivalent` mutants were drawn and not tried."""

    name: str
    outcomes: Sequence[Outcome]
    equivalent: int = 0

    @property
    def noticed(self) -> int:
        """Return how many mutants the tests noticed."""
        return sum(outcome.noticed for outcome in self.outcomes)

    @property
    def score(self) -> float:
        """Return the share of them, 1 where there was none to notice."""
        return self.noticed / len(self.outcomes) if self.outcomes else 1.0


def line(room: Room) -> str:
    """Return a room's score as a line."""
    hangs = sum(outcome.result == "hangs" for outcome in room.outcomes)
    return (
        f"{room.name:<10} {room.score:7.1%}  {room.noticed} of {len(room.outcomes)} noticed"
        f" ({hangs} by time), {room.equivalent} equivalent"
    )


def survivor(outcome: Outcome, folder: str) -> str:
    """Return where a change that no test noticed is, what stood there and what stands there."""
    mutant = outcome.mutant
    file, within, before, after = mutant.key
    why = "no test reaches it" if outcome.result == "unreached" else f"{outcome.tried} tests pass"
    place = f"{folder}/{file}:{mutant.mutation.line(mutant.source)}"
    inside = f" in {within}" if within else ""
    return f"{place}{inside} ({mutant.mutation.kind}; {why})\n  - {before}\n  + {after}"


def text(rooms: Sequence[Room], folder: str, stale: Sequence[Equivalent]) -> str:
    """Return survivors, scores, and the entries of the list that match nothing any more."""
    parts = [
        survivor(outcome, folder)
        for room in rooms
        for outcome in room.outcomes
        if not outcome.noticed
    ]
    parts.extend(f"matches nothing any more: {e.file}: {e.line} -> {e.change}" for e in stale)
    scores = [line(room) for room in rooms]
    if len(rooms) > 1:
        every = [outcome for room in rooms for outcome in room.outcomes]
        scores.append(line(Room("all", every, sum(room.equivalent for room in rooms))))
    return "\n".join([*parts, *scores])


def written(rooms: Sequence[Room], path: Path, facts: Mapping[str, object]) -> None:
    """Write the same as JSON, with every mutant."""
    path.parent.mkdir(parents=True, exist_ok=True)
    found = {
        **facts,
        "rooms": {
            room.name: {
                "score": room.score,
                "noticed": room.noticed,
                "tried": len(room.outcomes),
                "equivalent": room.equivalent,
                "mutants": [_described(outcome) for outcome in room.outcomes],
            }
            for room in rooms
        },
    }
    path.write_text(json.dumps(found, indent=1) + "\n")


def _described(outcome: Outcome) -> dict[str, object]:
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
