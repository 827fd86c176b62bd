"""Ports for the doors of tests: no two processes have the same one, and nobody is given it."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from worlds import ports
from worlds.ports import take_port


def test_a_port_is_free_below_those_that_systems_give_and_another_each_time() -> None:
    taken = [take_port() for _ in range(10)]
    assert len(set(taken)) == len(taken)
    assert {port // ports.SIZE for port in taken} == {taken[0] // ports.SIZE}
    assert all(ports.FIRST <= port < 32_768 for port in taken)
    with socket.create_server(("127.0.0.1", taken[0])), socket.create_server(("", taken[1])):
        again = {take_port() for _ in range(ports.SIZE)}
    assert again.isdisjoint(taken[:2])
    assert again.issuperset(taken[2:])


def test_another_process_has_another_block_until_it_ends() -> None:
    say = "from worlds.ports import take_port; print(take_port(), flush=True); input()"
    seen = []
    for _ in range(2):
        with subprocess.Popen(
            [sys.executable, "-c", say], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            cwd=Path(ports.__file__).parents[1],
        ) as other:  # fmt: skip
            assert other.stdout is not None
            theirs = int(other.stdout.readline())
            assert theirs // ports.SIZE != take_port() // ports.SIZE
            seen.append(theirs)
            other.kill()
    assert seen[0] == seen[1], "killed, it has given its block back"


def test_a_forked_process_has_a_block_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    own = take_port()
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert take_port() // ports.SIZE != own // ports.SIZE


def test_no_port_is_given_twice_for_want_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    take_port()
    monkeypatch.setattr(ports, "_bind", lambda _own, _port: False)
    with pytest.raises(RuntimeError, match="listens on every port"):
        take_port()
    monkeypatch.setattr(os, "getpid", lambda: -2)
    with pytest.raises(RuntimeError, match="every block of ports has an owner"):
        take_port()
