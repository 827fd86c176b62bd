"""A download reports its progress: a bar in a terminal, else a line now and then."""

import io
import json
import re
import sys

import pytest

from worker import log
from worker.weights.meter import Meter
from worker.weights.proof import RemoteFile

A, B = RemoteFile("a", 6_000_000), RemoteFile("b", 4_000_000)


class Terminal(io.StringIO):
    """What a terminal is to who writes to it."""

    def isatty(self) -> bool:
        """Say so."""
        return True


def lines(captured: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in captured.splitlines()]


def test_a_line_has_bytes_rate_and_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("INFO")
    with Meter(10_000_000, "tiny", every_s=0) as meter:
        meter(A, 1_000_000)
        meter(B, 4_000_000)
        meter(A, 6_000_000)
    said = lines(capsys.readouterr().err)
    assert [line["done_mb"] for line in said] == [1, 5, 10, 10]
    assert [line["event"] for line in said] == ["downloading"] * 3 + ["downloaded"]
    assert {line["total_mb"] for line in said} == {10}
    assert all({"what", "mb_per_s", "left_s"} <= set(line) for line in said)
    assert said[-1]["left_s"] == 0


def test_lines_come_seldom(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("INFO")
    with Meter(10_000_000, "tiny", every_s=3600) as meter:
        for done in range(0, 6_000_000, 1000):
            meter(A, done)
    assert capsys.readouterr().err == ""


def test_a_file_that_starts_anew_is_not_counted_twice(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log.configure("INFO")
    with Meter(6_000_000, "tiny", every_s=0) as meter:
        meter(A, 5_000_000)
        meter(A, 1_000_000)
    assert [line["done_mb"] for line in lines(capsys.readouterr().err)] == [5, 1, 1]


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Meter(10_000_000, "tiny") as meter:
        meter(A, 6_000_000)
        meter(B, 4_000_000)
    assert "tiny: 100%" in terminal.getvalue()
    assert re.search(r"[\d.]+[kMG]?B/s", terminal.getvalue())
    assert "event" not in terminal.getvalue()


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        """Return its time."""
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("worker.weights.meter.time", made)
    return made


def test_lines_come_every_few_seconds_with_the_rate_since_the_start(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    log.configure("INFO")
    with Meter(10_000_000, "tiny", every_s=5) as meter:
        for second, done in ((0, 0), (4.9, 1_000_000), (5, 2_000_000), (9.9, 3_000_000)):
            clock.now = 100 + second
            meter(A, done)
        clock.now = 110
        meter(B, 2_000_000)
        clock.now = 112.5
    said = lines(capsys.readouterr().err)
    facts = ("event", "what", "done_mb", "total_mb", "mb_per_s", "left_s")
    assert [tuple(line[name] for name in facts) for line in said] == [
        ("downloading", "tiny", 2, 10, 0.4, 20),
        ("downloading", "tiny", 5, 10, 0.5, 10),
        ("downloaded", "tiny", 5, 10, 0.4, 12),
    ]


@pytest.mark.parametrize(("seconds", "rate"), [(0, 1000.0), (0.5, 2.0), (2, 0.5)])
def test_a_rate_is_of_the_time_that_has_passed_however_short(
    clock: Clock, capsys: pytest.CaptureFixture[str], seconds: float, rate: float
) -> None:
    log.configure("INFO")
    with Meter(10_000_000, "tiny", every_s=0) as meter:
        clock.now += seconds
        meter(A, 1_000_000)
    assert lines(capsys.readouterr().err)[0]["mb_per_s"] == rate


def test_nothing_yet_has_no_time_left(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("INFO")
    with Meter(10_000_000, "tiny", every_s=5) as meter:
        clock.now = 105
        meter(A, 0)
    assert [line["left_s"] for line in lines(capsys.readouterr().err)] == [None, None]


def test_more_than_was_announced_leaves_no_time(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    log.configure("INFO")
    with Meter(1_000_000, "tiny", every_s=5) as meter:
        clock.now = 105
        meter(A, 6_000_000)
    assert {line["left_s"] for line in lines(capsys.readouterr().err)} == {0}


def test_a_download_shorter_than_a_line_says_nothing(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    log.configure("INFO")
    with Meter(6_000_000, "tiny", every_s=5) as meter:
        clock.now = 104
        meter(A, 6_000_000)
    assert capsys.readouterr().err == ""


def test_a_download_that_fails_is_not_called_downloaded(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    log.configure("INFO")
    meter = Meter(6_000_000, "tiny", every_s=5)
    with pytest.raises(ValueError, match="cut"), meter:  # noqa: PT012 - the block is what fails
        clock.now = 105
        meter(A, 1_000_000)
        raise ValueError("cut")
    assert [line["event"] for line in lines(capsys.readouterr().err)] == ["downloading"]


def test_a_bar_goes_back_with_a_file_that_starts_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Meter(10_000_000, "tiny") as meter:
        meter(A, 6_000_000)
        meter(A, 2_000_000)
    bar = terminal.getvalue().split("\r")[-1]
    assert "20%" in bar
    assert "2.00M/10.0M" in bar
    assert terminal.getvalue().endswith("\n"), "it was closed"
