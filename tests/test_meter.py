"""A download tells how far it is: a bar in a terminal, else a line now and then."""

import io
import json
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
    assert "event" not in terminal.getvalue()
