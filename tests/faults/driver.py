"""A process that starts as a worker does, and stops where it is told, to be killed there.

Processes are forked from one that has imported everything: importing torch for each would take most
of a campaign.
"""

import fcntl
import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

from worker import log, settings
from worker.errors import WorkerError
from worker.weights import metadata, temporary
from worker.weights.download import fetch_snapshot
from worker.weights.retry import Patience

ENDS_S = 120.0
# What processes are forked with; a campaign that prepares bundles adds what imports torch.
PRELOADED = ["faults.driver"]


@dataclass(frozen=True)
class Orders:
    """What a process is to do.

    It prepares a bundle if `into` is None, else downloads `repository` there. It says where it is
    and stays at `stop`, such as "before shard 2" or "after part 1"; with `go_on` until it is told.
    `locks` is False on a network file system whose locks always succeed.
    """

    variables: Mapping[str, str]
    repository: str
    into: Path | None
    patience: Patience
    parallel: bool
    stop: str = ""
    go_on: bool = False
    wait: bool = False
    locks: bool = True


class Process:
    """A running worker of a trial."""

    def __init__(self, orders: Orders) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self._pipe, there = context.Pipe()
        self._process = context.Process(target=_main, args=(orders, there), daemon=True)
        self._process.start()
        there.close()

    @property
    def pid(self) -> int:
        """Its number."""
        assert self._process.pid is not None
        return self._process.pid

    def await_line(self, line: str) -> None:
        """Wait until it says that it is there."""
        said: list[str] = []
        while line not in said:
            assert self._pipe.poll(ENDS_S), f"it does not say {line!r}, only {said}"
            try:
                said.append(self._pipe.recv())
            except EOFError:
                raise AssertionError(f"it ended without {line!r}, saying {said}") from None

    def go(self) -> None:
        """Let it go on."""
        self._pipe.send("go")

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def ended(self) -> str:
        """Wait for its end and return the last that it said."""
        last = ""
        try:
            while self._pipe.poll(ENDS_S):
                last = self._pipe.recv()
        except (EOFError, ConnectionResetError):
            pass
        self._process.join(ENDS_S)
        assert self._process.exitcode is not None, "it does not end"
        return last

    def kill(self) -> None:
        """End it as the kernel does, and wait for that."""
        self._process.kill()
        self.ended()


def _main(orders: Orders, pipe: Connection) -> None:
    """Be that worker."""
    log.configure("ERROR")
    if not orders.locks:
        fcntl.flock = lambda _fd, _operation: None
    setattr(temporary, "publish", _stopping(orders, pipe, temporary.publish))  # noqa: B010 - mypy
    read = settings.read(orders.variables)
    pipe.send("started")
    if orders.wait:
        pipe.recv()
    try:
        if orders.into is None:
            from faults.preparing import obtained  # noqa: PLC0415 - it imports torch

            obtained(read)
        else:
            snapshot = replace(
                metadata.resolve(orders.repository, None, read, patience=orders.patience),
                parallel_from=300_000 if orders.parallel else 1 << 60,
                range_bytes=200_000,
            )
            fetch_snapshot(snapshot, snapshot.files, orders.into, read)
    except WorkerError as error:
        pipe.send(f"failed {error.code}: {error.message}")
    else:
        pipe.send("done")


def _stopping(
    orders: Orders, pipe: Connection, publish: Callable[[Path, Path], None]
) -> Callable[[Path, Path], None]:
    """Return a `publish` that stops before or after the file that the orders name."""
    published: Counter[str] = Counter()

    def stop(at: str) -> None:
        if orders.stop == at:
            pipe.send(f"at {at}")
            if orders.go_on:
                pipe.recv()
            else:
                threading.Event().wait()

    def stopping(part: Path, target: Path) -> None:
        what = _kind(target)
        published[what] += 1
        nth = f"{what} {published[what]}"
        stop(f"before {nth}")
        publish(part, target)
        stop(f"after {nth}")

    return stopping


def _kind(target: Path) -> str:
    """Name what a file is, by where it goes."""
    if target.name == "manifest.json":
        return "bundle" if target.parent.parent.name == "bundles" else "component"
    if target.suffix != ".safetensors":
        return "small file"
    return "part" if target.parent.parent.name == "components" else "shard"
