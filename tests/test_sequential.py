"""A 206 whose Content-Range does not name what was asked for is asked again, never believed."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from faults.room import FAST, SHARD, Room, room
from worlds.hub import Fault

from worker.errors import HubUnreachable
from worker.weights.snapshot import named

START, END = 100, 9000
# what stands in Content-Range in place of "bytes 100-8999/SIZE"; None: no such header
RANGES = {
    "missing": None,
    "empty": "",
    "a word": "bytes",
    "no span": "bytes */{size}",
    "no size": "bytes {first}-{last}",
    "unknown size": "bytes {first}-{last}/*",
    "another unit": "items {first}-{last}/{size}",
    "no unit": "{first}-{last}/{size}",
    "letters": "bytes a-b/c",
    "a sign": "bytes {first}--{last}/{size}",
    "turned round": "bytes {last}-{first}/{size}",
    "a byte later": "bytes {later}-{last}/{size}",
    "a byte shorter": "bytes {first}-{sooner}/{size}",
    "another size": "bytes {first}-{last}/{more}",
    "two spans": "bytes {first}-{last}/{size}, {first}-{last}/{size}",
    "more words": "bytes {first}-{last}/{size} and more",
}


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Room]:
    with room(tmp_path / "home", seed=1) as given:
        given.patience = replace(FAST, connect_s=30, stall_s=30)
        yield given


def told(name: str, first: int, last: int, size: int, times: int | None = 1) -> Fault:
    """Return a hub's answer with the right bytes under such a Content-Range."""
    template = RANGES[name]
    headers = {}
    if template is not None:
        headers["Content-Range"] = template.format(
            first=first, last=last, size=size, later=first + 1, sooner=last - 1, more=size + 1
        )
    return Fault("told-range", path=SHARD, times=times, headers=headers)


@pytest.mark.parametrize("name", RANGES)
def test_a_range_with_such_a_content_range_is_asked_for_again(made: Room, name: str) -> None:
    snapshot = made.snapshot()
    shard = named(snapshot, SHARD)
    made.hub.misbehave(told(name, START, END - 1, shard.size))
    assert snapshot.read_range(shard, START, END) == made.published[SHARD][START:END]
    assert len(made.hub.requests("bytes", SHARD)) == 3, "one more, as http is read twice"


def test_a_hub_that_never_says_which_range_it_sends_is_not_believed(made: Room) -> None:
    snapshot = made.snapshot()
    shard = named(snapshot, SHARD)
    made.hub.misbehave(told("missing", START, END - 1, shard.size, times=None))
    with pytest.raises(HubUnreachable, match="another range"):
        snapshot.read_range(shard, START, END)


@pytest.mark.parametrize("name", RANGES)
def test_a_resumed_download_starts_anew_after_such_a_content_range(made: Room, name: str) -> None:
    size = len(made.published[SHARD])
    have = size * 2 // 5
    made.hub.misbehave(Fault("cut", path=SHARD, at=0.4), told(name, have, size - 1, size))
    made.fetch()
    assert not made.wrong()
    assert not made.missing()
    spans = [seen.span for seen in made.hub.requests("bytes", SHARD)]
    assert spans == [None, f"bytes={have}-", None]


# one byte has no other end to begin at
@pytest.mark.parametrize("name", [name for name in RANGES if name != "turned round"])
def test_the_parallel_way_is_not_taken_where_the_hub_answers_so(made: Room, name: str) -> None:
    made.parallel = True
    size = len(made.published[SHARD])
    made.hub.misbehave(told(name, 0, 0, size, times=None))
    made.fetch()
    assert not made.wrong()
    assert not made.missing()
    spans = [seen.span for seen in made.hub.requests("bytes", SHARD)]
    assert spans == ["bytes=0-0", "bytes=0-0", None], "two tries of the parallel way, then the sure"
