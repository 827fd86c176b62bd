"""What a hub and the network do wrong: each case sets it up, downloads, and names its outcome."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from faults.room import REPOSITORY, SHARD, TOKEN, Room, room

from worlds.hub import Act, Fault, Step

ANYWHERE: Final = Fault("cut").at
OF_BODIES: Final = ("cut", "reset", "short", "long", "flip", "gzip", "wrong-range", "drip")
Expected = Literal[
    "recovered", "WEIGHTS_UNAVAILABLE", "try later", "VOLUME_FULL", "LORA_NOT_APPLIED"
]


@dataclass(frozen=True)
class Case:
    """One fault: `run` does all of it and raises what the download raised.

    `fast`: it takes no time; `stalls`: something stands still, which is to be told soon.
    """

    name: str
    expected: Expected
    run: Callable[[Room], None]
    group: str = "network"
    fast: bool = True
    home: Callable[[Path, int], AbstractContextManager[Room]] = room
    stalls: bool = False


def case(
    name: str,
    expected: Expected,
    *faults: Fault,
    stalls: bool = False,
) -> Case:
    """Make a case of faults that are there from the start."""

    def run(room: Room) -> None:
        room.hub.misbehave(*(_fresh(fault, room) for fault in faults))
        room.fetch()

    return Case(name, expected, run, fast=not stalls, stalls=stalls)


def _fresh(fault: Fault, room: Room) -> Fault:
    """Copy a fault, with its place in the body and among the ranges drawn from the seed.

    The parallel way asks twice for one byte before it starts: no place for a broken body.
    """
    copy = Fault(**vars(fault))
    if copy.at == ANYWHERE:
        copy.at = room.rng.uniform(0.05, 0.95)
    if room.parallel and copy.path == SHARD:
        copy.skip = room.rng.randrange(2 if copy.act in OF_BODIES else 0, 5)
    return copy


def shard(
    act: Act, times: int | None = 1, *, status: int = 500, retry_after: str | None = None
) -> Fault:
    """Make a fault of the first shard's bytes."""
    headers = {"Retry-After": retry_after} if retry_after else {}
    return Fault(act, path=SHARD, times=times, status=status, headers=headers)


def everywhere(status: int, step: Step, times: int | None = None) -> Fault:
    """Make a fault of every request of a step."""
    return Fault("status", step=step, times=times, status=status)


def _gated(room: Room) -> None:
    room.hub.gated.add(REPOSITORY)
    room.hub.tokens[TOKEN] = set()
    room.fetch()


def _gated_and_accepted(room: Room) -> None:
    room.hub.gated.add(REPOSITORY)
    room.hub.tokens[TOKEN] = {REPOSITORY}
    room.fetch()


def _away_keeps_the_token(room: Room) -> None:
    room.hub.misbehave(Fault("redirect-away", step="resolve", times=None))
    room.fetch()
    strangers = [s for s in room.hub.requests() if s.host != room.hub.endpoint]
    assert any(s.host == room.hub.other for s in strangers), "no redirect was followed"
    assert not any(s.authorization for s in strangers), "the token left the hub"


def _refused(room: Room) -> None:
    room.hub.stop()
    room.fetch()


def _down_with_all_there(room: Room) -> None:
    room.fetch()
    room.hub.stop()
    room.fetch()


def _moved_on(room: Room) -> None:
    """The branch moves between two starts: the second goes on with the commit of the first."""
    room.snapshot()
    room.hub.add(REPOSITORY, {"model_index.json": b"{}", SHARD: b"another"})
    room.fetch()


def _without_a_shard(room: Room) -> None:
    snapshot = room.snapshot()
    del room.hub.commits[REPOSITORY][snapshot.commit][SHARD]
    room.fetch()


RECOVERED: Final = "recovered"
UNAVAILABLE: Final = "WEIGHTS_UNAVAILABLE"
LATER: Final = "try later"

CASES: tuple[Case, ...] = (
    case("500 once", RECOVERED, shard("status")),
    case("503 three times", RECOVERED, shard("status", 3, status=503)),
    case("500 for ever", LATER, shard("status", None)),
    case("408 once", RECOVERED, shard("status", status=408)),
    case("429, wait 0 s", RECOVERED, shard("status", status=429, retry_after="0")),
    case("429, wait an hour", RECOVERED, shard("status", status=429, retry_after="3600")),
    case("429 for ever", LATER, shard("status", None, status=429, retry_after="3600")),
    case("hub: 500 once", RECOVERED, everywhere(500, "info", 1)),
    case("hub: 500 for ever", LATER, everywhere(500, "info")),
    case("hub: 401", UNAVAILABLE, everywhere(401, "info")),
    case("hub: 404", UNAVAILABLE, everywhere(404, "info")),
    case("hub: HTML once", RECOVERED, Fault("html", "info")),
    case("hub: answer cut", RECOVERED, Fault("cut", "info")),
    case("hub: stall", RECOVERED, Fault("stall-before", "info"), stalls=True),
    Case("gated, licence not accepted", UNAVAILABLE, _gated),
    Case("gated, licence accepted", RECOVERED, _gated_and_accepted),
    case("file: 401", UNAVAILABLE, everywhere(401, "resolve")),
    case("file: 403", UNAVAILABLE, everywhere(403, "resolve")),
    Case("file: 404", UNAVAILABLE, _without_a_shard),
    case("storage: 403, signature ran out", RECOVERED, shard("status", status=403)),
    case("416 on resume", RECOVERED, shard("cut"), shard("status", status=416)),
    case("cut by FIN", RECOVERED, shard("cut", 2)),
    case("cut by RST", RECOVERED, shard("reset", 2)),
    case("cut by FIN, then by RST", RECOVERED, shard("cut"), shard("reset")),
    case("short body", RECOVERED, shard("short")),
    case("short body for ever", LATER, shard("short", None)),
    case("long body", RECOVERED, shard("long")),
    case("one byte flipped", RECOVERED, shard("flip")),
    case("one byte flipped for ever", LATER, shard("flip", None)),
    case("HTML instead of weights", RECOVERED, shard("html")),
    case("HTML instead of weights for ever", LATER, shard("html", None)),
    case("gzip", RECOVERED, shard("gzip")),
    case("Range ignored", RECOVERED, shard("cut"), shard("no-range", None)),
    case("wrong Content-Range", RECOVERED, shard("cut"), shard("wrong-range")),
    case("stall before the body", RECOVERED, shard("stall-before"), stalls=True),
    case("stall in the body", RECOVERED, shard("stall-body"), stalls=True),
    case("1 KB/s drip", RECOVERED, shard("drip"), stalls=True),
    Case("redirect to another host", RECOVERED, _away_keeps_the_token),
    case("redirect loop", LATER, shard("redirect-loop", None)),
    case("redirect loop once", RECOVERED, shard("redirect-loop", 1)),
    Case("connection refused", LATER, _refused),
    case("etag changed between requests", RECOVERED, shard("cut"), shard("etag-changes", None)),
    Case("hub down, all files there", RECOVERED, _down_with_all_there),
    case("cut by RST for ever", LATER, Fault("reset", path=SHARD, times=None, at=0.3)),
    Case("the branch moves meanwhile", RECOVERED, _moved_on),
)
