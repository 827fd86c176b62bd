"""Processes that stand still: a test that counts on being soon fails, and nothing stays stopped."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from tools import certain, stalls

SUITE = """
import time

def test_counts_on_being_soon():
    end = last = time.monotonic()
    while last < end + 60:
        now = time.monotonic()
        assert now - last < 0.25
        last = now
        time.sleep(0.005)
"""
PATIENT = """
import subprocess, sys

def test_waits_for_another_process():
    code = "import time; time.sleep(3); print(7)"
    assert subprocess.check_output([sys.executable, "-c", code]) == b"7\\n"
"""


def stalled(tmp_path: Path, text: str) -> int:
    """Run a file of tests whose processes stand still for moments; return the status."""
    file = tmp_path / "test_some.py"
    file.write_text(text)
    words = ("--times", "1", "--neighbour", "stalls", "--out", str(tmp_path / "out"), str(file))
    return certain.main(words)


def test_what_counts_on_being_soon_fails_and_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stalled(tmp_path, SUITE) == 1
    assert capsys.readouterr().out.rstrip().endswith("::test_counts_on_being_soon")


def test_what_waits_passes(tmp_path: Path) -> None:
    assert stalled(tmp_path, PATIENT) == 0
    assert "stalls" not in [thread.name for thread in threading.enumerate()]


def test_processes_go_on_afterwards_but_not_those_that_were_stopped_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = (sys.executable, "-c", "import sys; print(7, flush=True); input()")
    with (
        subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as one,
        subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other,
    ):
        assert one.stdout is not None
        assert other.stdout is not None
        one.stdout.readline(), other.stdout.readline()
        assert {one.pid, other.pid} <= set(stalls.list_tree(os.getpid()))

        def wait_for_stop(pid: int) -> None:
            while not stalls.is_stopped(pid):
                pass

        slept: list[float] = []

        def look(seconds: float) -> None:
            wait_for_stop(one.pid)
            slept.append(seconds)

        os.kill(other.pid, signal.SIGSTOP)
        wait_for_stop(other.pid)
        monkeypatch.setattr(stalls, "time", SimpleNamespace(sleep=look))
        stalls.stop_for(0.5, [one.pid, other.pid])
        assert slept == [0.5]
        assert (stalls.is_stopped(one.pid), stalls.is_stopped(other.pid)) == (False, True)
        for process in (one, other):
            process.kill()
    assert stalls.list_tree(one.pid) == []
