"""One connection: what the hub sends is believed only as far as it is what was asked for."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests
import urllib3
from faults.room import FAST, REPOSITORY, SHARD, Room, room

from worker.errors import HubUnreachable, WeightsUnavailable
from worker.weights import sequential
from worker.weights.hub import Hub
from worker.weights.proof import RemoteFile
from worker.weights.retry import AttemptFailed, Patience
from worker.weights.snapshot import find_file
from worlds.hub import Fault

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


def answer_range(name: str, first: int, last: int, size: int, times: int | None = 1) -> Fault:
    """Return a hub's answer with the right bytes under such a Content-Range."""
    template = RANGES[name]
    headers = {}
    if template is not None:
        headers["Content-Range"] = template.format(
            first=first, last=last, size=size, later=first + 1, sooner=last - 1, more=size + 1
        )
    return Fault("claimed-range", path=SHARD, times=times, headers=headers)


@pytest.mark.parametrize("name", RANGES)
def test_a_range_with_such_a_content_range_is_asked_for_again(made: Room, name: str) -> None:
    snapshot = made.snapshot()
    shard = find_file(snapshot, SHARD)
    made.hub.misbehave(answer_range(name, START, END - 1, shard.size))
    assert snapshot.read_range(shard, START, END) == made.published[SHARD][START:END]
    assert len(made.hub.requests("bytes", SHARD)) == 3, "one more, as http is read twice"


def test_a_hub_that_never_says_which_range_it_sends_is_not_believed(made: Room) -> None:
    snapshot = made.snapshot()
    shard = find_file(snapshot, SHARD)
    made.hub.misbehave(answer_range("missing", START, END - 1, shard.size, times=None))
    with pytest.raises(HubUnreachable, match="another range"):
        snapshot.read_range(shard, START, END)


@pytest.mark.parametrize(("word", "times"), [("identity", 2), ("gzip", 3)])
def test_a_range_that_is_called_compressed_is_asked_for_again(
    made: Room, word: str, times: int
) -> None:
    """Whatever its bytes are; over http it is read twice."""
    snapshot = made.snapshot()
    shard = find_file(snapshot, SHARD)
    span = f"bytes {START}-{END - 1}/{shard.size}"
    headers = {"Content-Range": span, "Content-Encoding": word}
    made.hub.misbehave(Fault("claimed-range", path=SHARD, headers=headers))
    assert snapshot.read_range(shard, START, END) == made.published[SHARD][START:END]
    assert len(made.hub.requests("bytes", SHARD)) == times


def test_a_range_of_more_bytes_than_were_asked_for_is_told_as_that(made: Room) -> None:
    snapshot = made.snapshot()
    made.hub.misbehave(Fault("long", path=SHARD, times=None))
    with pytest.raises(HubUnreachable, match="more than was requested"):
        snapshot.read_range(find_file(snapshot, SHARD), 5000, 9000)


@pytest.mark.parametrize("name", RANGES)
def test_a_resumed_download_starts_anew_after_such_a_content_range(made: Room, name: str) -> None:
    size = len(made.published[SHARD])
    have = size * 2 // 5
    made.hub.misbehave(Fault("cut", path=SHARD, at=0.4), answer_range(name, have, size - 1, size))
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
    made.hub.misbehave(answer_range(name, 0, 0, size, times=None))
    made.fetch()
    assert not made.wrong()
    assert not made.missing()
    spans = [seen.span for seen in made.hub.requests("bytes", SHARD)]
    assert spans == ["bytes=0-0", "bytes=0-0", None], "two tries of the parallel way, then the sure"


def test_a_hub_that_ignores_range_may_still_send_the_whole_file(made: Room) -> None:
    """It is what was asked for, if the whole was asked for and nothing less."""
    snapshot = made.snapshot()
    shard = find_file(snapshot, SHARD)
    made.hub.misbehave(Fault("no-range", path=SHARD, times=2))
    assert snapshot.read_range(shard, 0, shard.size) == made.published[SHARD]
    assert len(made.hub.requests("bytes", SHARD)) == 2
    for start, end in ((1, shard.size), (0, shard.size - 1)):
        made.hub.seen.clear()
        made.hub.misbehave(Fault("no-range", path=SHARD))
        assert snapshot.read_range(shard, start, end) == made.published[SHARD][start:end]
        assert len(made.hub.requests("bytes", SHARD)) == 3


def part_of(made: Room, data: bytes) -> Path:
    """Leave a part of the shard as a dead process of another machine does."""
    target = made.into / SHARD
    target.parent.mkdir(parents=True)
    part = target.with_name(f".{target.name}.hffffffff-1-1-1.resume.part")
    part.write_bytes(data)
    os.utime(part, (0, 0))
    return part


def spans(made: Room) -> list[str | None]:
    return [seen.span for seen in made.hub.requests("bytes", SHARD)]


def test_a_part_that_is_whole_is_proven_and_nothing_asked(made: Room) -> None:
    part_of(made, made.published[SHARD])
    made.fetch()
    assert not made.wrong()
    assert spans(made) == []


def test_a_part_that_is_whole_and_wrong_is_thrown_away(made: Room) -> None:
    part_of(made, made.published[SHARD][:-1] + b"\0")
    made.fetch()
    assert not made.wrong()
    assert spans(made) == [None]


def test_a_part_that_is_longer_than_the_file_starts_anew(made: Room) -> None:
    size = len(made.published[SHARD])
    part_of(made, made.published[SHARD] + b"more")
    made.fetch()
    assert not made.wrong()
    assert spans(made) == [f"bytes={size + 4}-", None]


def test_an_empty_part_is_no_beginning(made: Room) -> None:
    part_of(made, b"")
    made.fetch()
    assert not made.wrong()
    assert spans(made) == [None]


def test_a_part_of_other_bytes_costs_one_more_download(made: Room) -> None:
    """It is proven as a whole at the end, then thrown away as a whole."""
    have = len(made.published[SHARD]) // 2
    part_of(made, bytes(have))
    made.fetch()
    assert not made.wrong()
    assert spans(made) == [f"bytes={have}-", None]


def test_a_hub_that_ignores_range_makes_the_part_start_anew(made: Room) -> None:
    part_of(made, made.published[SHARD][:500_000])
    made.hub.misbehave(Fault("no-range", path=SHARD))
    made.fetch()
    assert not made.wrong()
    assert spans(made) == ["bytes=500000-"]


@pytest.mark.parametrize("word", ["", "identity", "Identity", "none", "aws-chunked", "gzip"])
def test_only_a_compression_is_taken_for_one(made: Room, word: str) -> None:
    """A mirror may name a coding that says nothing about the bytes."""
    data = made.published[SHARD]
    part_of(made, data[:500_000])
    span = f"bytes 500000-{len(data) - 1}/{len(data)}"
    headers = {"Content-Range": span, "Content-Encoding": word}
    made.hub.misbehave(Fault("claimed-range", path=SHARD, headers=headers))
    made.fetch()
    assert not made.wrong()
    assert spans(made) == ["bytes=500000-"] * (2 if word == "gzip" else 1)


@pytest.mark.parametrize("act", ["long", "gzip", "html"])
def test_a_body_of_another_size_is_not_written_to_its_end(made: Room, act: str) -> None:
    made.hub.misbehave(Fault(act, path=SHARD))  # type: ignore[arg-type]
    reported: list[int] = []

    def progress(file: RemoteFile, done: int) -> None:
        if file.path == SHARD:
            reported.append(done)

    made.fetch(progress)
    assert not made.wrong()
    assert spans(made) == [None, None]
    assert max(reported) == len(made.published[SHARD])


def test_an_empty_file_is_made(made: Room) -> None:
    made.fetch()
    assert (made.into / "vae/config.json").read_bytes() == b""


# at 1 KB/s, in pieces of 100 bytes
@pytest.mark.parametrize(("slowest", "attempts"), [(200, 1), (5000, 2), (Patience().slowest, 2)])
def test_a_drip_is_taken_for_a_stall_below_the_slowest_rate_and_only_there(
    made: Room, slowest: int, attempts: int
) -> None:
    made.patience = replace(made.patience, stall_s=0.5, slowest=slowest)
    made.published = {"model_index.json": b"{}", SHARD: made.rng.randbytes(3000)}
    made.hub.add(REPOSITORY, made.published)
    made.hub.misbehave(Fault("drip", path=SHARD, at=0.0))
    made.fetch()
    assert not made.wrong()
    assert len(spans(made)) == attempts


def test_a_body_that_stands_still_is_given_up_after_its_time(made: Room) -> None:
    made.patience = replace(made.patience, stall_s=0.3)
    made.hub.misbehave(Fault("stall-body", path=SHARD, at=0.5))
    made.fetch()
    assert not made.wrong()
    assert spans(made) == [None, f"bytes={len(made.published[SHARD]) // 2}-"]


class Line(requests.adapters.BaseAdapter):
    """A hub that answers once: with a status, headers, and a body that comes in such pieces."""

    def __init__(
        self, pieces: Iterator[bytes | Exception], status: int, length: str | None
    ) -> None:
        super().__init__()
        self._pieces, self._status, self._length = pieces, status, length

    def send(self, request: requests.PreparedRequest, **_: object) -> requests.Response:  # type: ignore[override]  # the rest is the connection's
        """Answer."""
        response = requests.Response()
        response.status_code, response.request, response.url = self._status, request, "x"
        if self._length is not None:
            response.headers["Content-Length"] = self._length
        response.raw = self
        return response

    def read1(self, _count: int) -> bytes:
        """Return the next piece; nothing at the end."""
        piece = next(self._pieces, b"")
        if isinstance(piece, Exception):
            raise piece
        return piece

    def close(self) -> None:
        """Hold nothing."""


Answer = Callable[..., None]


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Answer:
    """Have the hub answer so."""

    def answered(
        pieces: Iterable[bytes | Exception], status: int = 200, length: str | None = None
    ) -> None:
        line = Line(iter(pieces), status, length)
        monkeypatch.setattr(requests.Session, "get_adapter", lambda *_, **__: line)

    return answered


WHOLE = RemoteFile("x", 100)
HUB = Hub("https://a.example", None)
URL = "https://a.example/x"


def download(part: Path, patience: Patience = FAST, file: RemoteFile = WHOLE) -> list[int]:
    reported: list[int] = []
    sequential.download(HUB, URL, file, part, patience, reported.append)
    return reported


def test_what_a_cut_answer_replaces_is_gone(answer: Answer, tmp_path: Path) -> None:
    """A hub that ignored Range and hung up left the beginning of the file, and no old end."""
    (tmp_path / "part").write_bytes(b"o" * 50)
    answer([b"n" * 10])
    with pytest.raises(AttemptFailed, match="cut short"):
        download(tmp_path / "part")
    assert (tmp_path / "part").read_bytes() == b"n" * 10


@pytest.mark.parametrize(("length", "fits"), [(None, True), (" 100 ", True), ("99", False)])
def test_a_body_may_be_of_no_known_length_and_of_no_other(
    answer: Answer, tmp_path: Path, length: str | None, *, fits: bool
) -> None:
    answer([b"x" * 60, b"x" * 40], length=length)
    if fits:
        assert download(tmp_path / "part") == [60, 100]
    else:
        with pytest.raises(AttemptFailed, match="a body of 99 bytes"):
            download(tmp_path / "part")


def test_a_body_of_no_known_length_that_does_not_end_with_the_file_leaves_nothing(
    answer: Answer, tmp_path: Path
) -> None:
    """It was another file's from its first byte on, for all that is known."""
    answer([b"x" * 60, b"x" * 41])
    with pytest.raises(AttemptFailed, match="more bytes than the file has"):
        download(tmp_path / "part")
    assert (tmp_path / "part").read_bytes() == b""


@pytest.mark.parametrize("status", [206, 416])
def test_a_part_that_was_not_asked_for_is_none(answer: Answer, tmp_path: Path, status: int) -> None:
    answer([b"x" * 100], status)
    with pytest.raises((AttemptFailed, WeightsUnavailable), match=str(status)):
        download(tmp_path / "part")


def test_the_beginning_of_a_file_is_not_taken_for_a_range_of_its_length(answer: Answer) -> None:
    """A hub that ignores Range and hangs up after as many bytes as were asked for."""
    answer([b"x" * 10])
    with pytest.raises(AttemptFailed, match="ignores Range"):
        sequential.read_range(HUB, URL, WHOLE, 50, 60, FAST)


def test_a_hub_that_does_not_end_is_left(answer: Answer) -> None:
    answer(chain(repeat(b"x" * 10, 50), [AssertionError("it was read on")]))
    with pytest.raises(AttemptFailed, match="more than was requested"):
        sequential.read_range(HUB, URL, WHOLE, 0, 100, FAST)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (urllib3.exceptions.ReadTimeoutError(None, "x", "slow"), "stalled"),  # type: ignore[arg-type] # of no pool
        (TimeoutError("slow"), "stalled"),
        (urllib3.exceptions.ProtocolError("broken"), "hung up"),
        (ConnectionResetError(104, "reset"), "hung up"),
    ],
)
def test_how_a_body_ended_is_told(
    answer: Answer, tmp_path: Path, error: Exception, reason: str
) -> None:
    answer([b"x" * 10, error])
    with pytest.raises(AttemptFailed, match=reason):
        download(tmp_path / "part")
    assert (tmp_path / "part").stat().st_size == 10


@pytest.mark.parametrize(
    ("windows", "stalls"),
    [([], False), ([100], False), ([99], True), ([100, 100], False), ([500, 99], True)],
)
def test_a_rate_is_measured_in_windows_of_a_stall(
    answer: Answer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    windows: list[int],
    *,
    stalls: bool,
) -> None:
    """At least 10 bytes per second in each 10 seconds; a window that is not over counts nothing."""
    now = [1000.0]
    monkeypatch.setattr(sequential, "time", SimpleNamespace(monotonic=lambda: now[0]))
    size = sum(windows) + 1

    def drip() -> Iterator[bytes]:
        for count in windows:
            now[0] += 9.9
            yield b"x"
            now[0] += 0.1
            yield b"x" * (count - 1)
        yield b"x"

    answer(drip())
    patience = replace(FAST, stall_s=10, slowest=10)
    if stalls:
        with pytest.raises(AttemptFailed, match="nearly stalled"):
            download(tmp_path / "part", patience, RemoteFile("x", size))
    else:
        assert download(tmp_path / "part", patience, RemoteFile("x", size))[-1] == size
