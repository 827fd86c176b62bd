"""The transfer process: requests on standard input, reports on standard output."""

import errno
import json
import os
import random
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from worlds.hub import Fault, Hub, running

DATA = random.Random(1).randbytes(700_001)
PATH = "model.safetensors"
ENDS_S = 60.0


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running() as given:
        given.add("acme/painter", {PATH: DATA})
        yield given


def asked(hub: Hub, part: Path, **other: Any) -> "subprocess.CompletedProcess[str]":
    """Have it transfer the file to `part`."""
    commit = hub.branches["acme/painter"]["main"]
    request = {
        "parent": os.getpid(),
        "url": f"{hub.storage}/acme/painter/resolve/{commit}/{PATH}?signature=secret",
        "filename": str(part),
        "max_files": 2,
        "chunk_size": 200_000,
        "parallel_failures": 1,
        "max_retries": 1,
        "headers": {},
        **other,
    }
    return subprocess.run(
        [sys.executable, "-m", "worker.weights.child"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        timeout=ENDS_S,
        check=False,
    )


def test_it_writes_the_file_and_tells_how_far_it_is(hub: Hub, tmp_path: Path) -> None:
    done = asked(hub, tmp_path / "part")
    *counts, last = done.stdout.splitlines()
    assert last == "done"
    assert counts, "the first range is reported at once"
    numbers = [int(count) for count in counts]
    assert numbers == sorted(numbers)
    assert 0 < numbers[0] <= numbers[-1] <= len(DATA)
    assert (tmp_path / "part").read_bytes() == DATA
    assert done.returncode == 0


def test_it_does_not_tell_of_every_range(hub: Hub, tmp_path: Path) -> None:
    """Its reports are for a person who waits, not for a machine that counts."""
    done = asked(hub, tmp_path / "part", chunk_size=5000)
    assert done.stdout.splitlines()[-1] == "done"
    assert len(done.stdout.splitlines()) < len(DATA) // 5000 // 2


def test_a_refusal_is_told_without_a_number(hub: Hub, tmp_path: Path) -> None:
    hub.misbehave(Fault("status", path=PATH, times=None, status=403))
    done = asked(hub, tmp_path / "part")
    fault = json.loads(done.stdout.splitlines()[-1])
    assert "403" in fault["error"]
    assert fault["errno"] is None


@pytest.mark.parametrize(
    ("place", "number"), [("no such folder/part", errno.ENOENT), (".", errno.EISDIR)]
)
def test_what_the_system_says_is_told_by_its_number(
    hub: Hub, tmp_path: Path, place: str, number: int
) -> None:
    done = asked(hub, tmp_path / place)
    assert json.loads(done.stdout.splitlines()[-1])["errno"] == number


def test_who_asked_must_still_be_there(hub: Hub, tmp_path: Path) -> None:
    """Its parent may end before the kernel is asked to report that."""
    done = asked(hub, tmp_path / "part", parent=os.getppid())
    assert done.returncode == 1
    assert done.stdout == ""
    assert not (tmp_path / "part").exists()
    assert not hub.requests()


ORPHAN = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-m", "worker.weights.child"], stdin=subprocess.PIPE)
child.stdin.write(sys.stdin.read().replace("PARENT", str(os.getpid())).encode())
child.stdin.close()
print(child.pid, flush=True)
time.sleep(600)
"""


def test_it_ends_with_its_parent_however_that_ends(hub: Hub, tmp_path: Path) -> None:
    hub.misbehave(Fault("stall-body", path=PATH, times=None, skip=1))
    commit = hub.branches["acme/painter"]["main"]
    request = {
        "url": f"{hub.storage}/acme/painter/resolve/{commit}/{PATH}",
        "filename": str(tmp_path / "part"),
        "max_files": 1,
        "chunk_size": 200_000,
        "headers": {},
    }
    text = f'{{"parent": PARENT, {json.dumps(request)[1:]}'
    with subprocess.Popen(
        [sys.executable, "-c", ORPHAN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        parent.stdin.write(text)
        parent.stdin.close()
        child = int(parent.stdout.readline())
        assert hub.stalled.wait(ENDS_S)
        ends = os.pidfd_open(child)
        try:
            parent.kill()
            ready, _, _ = select.select([ends], [], [], ENDS_S)
        finally:
            os.close(ends)
    assert ready, "it outlived its parent"
