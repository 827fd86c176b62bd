"""A process that has imported what is slow to import, and forks one child for each trial.

It runs in the root of a copy, with the source and test folders as arguments. Orders arrive on
standard input and answers leave on standard output, one line of JSON each.
"""

import ast
import ctypes
import importlib
import json
import os
import resource
import select
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from tools.mutation import session
from tools.mutation.marks import MARK
from tools.mutation.reach import Recorder

PR_SET_CHILD_SUBREAPER: Final = 36  # prctl(2): orphans of a trial become ours, to be killed
COLLECTING_S: Final = 180.0
LEAVING_S: Final = 60.0
NOTHING_RUN: Final = 5  # pytest's exit status when the named tests no longer exist
# A change may make a program write or allocate without end.
MOST_WRITTEN: Final = 4 << 30
MOST_MEMORY: Final = 12 << 30


@dataclass(frozen=True, slots=True)
class Order:
    """What a child must do: run the `tests` of `files`, or with `record` all of them.

    `limits` has the time limit of each test in seconds; a recording allows each test `longest`.
    """

    files: Sequence[str]
    scratch: str
    tests: Sequence[str] = ()
    limits: Sequence[float] = ()
    record: str = ""
    longest: float = 0.0


@dataclass(frozen=True, slots=True)
class Answer:
    """How it ended: "passed", "failed", "hangs", or "broken" (no test could be run).

    `test` is the one that failed or hangs; `results` are a recording's messages about its tests.
    """

    verdict: str
    test: str = ""
    seconds: float = 0.0
    results: Sequence[dict[str, Any]] = ()


def main() -> None:
    """Serve orders until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    warm(Path.cwd(), sys.argv[1:])
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        answer = carry_out(Order(**json.loads(line)))
        print(json.dumps(asdict(answer)), file=answers, flush=True)


def warm(root: Path, folders: Sequence[str]) -> None:
    """Import every third-party module that the files of some folders import, and none of theirs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module, name in sorted(set(_imported(root, folders))):
            with suppress(Exception):
                found = importlib.import_module(module)
                if name and not hasattr(found, name):
                    importlib.import_module(f"{module}.{name}")


def _imported(root: Path, folders: Sequence[str]) -> Iterator[tuple[str, str]]:
    own = [root, *(root / folder for folder in folders), *(root / f for f in _parents(folders))]
    for folder in folders:
        for path in (root / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                found: list[tuple[str, str]] = []
                if isinstance(node, ast.Import):
                    found = [(alias.name, "") for alias in node.names]
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    found = [(node.module, alias.name) for alias in node.names]
                for module, name in found:
                    top = module.partition(".")[0]
                    if not any((o / top).exists() or (o / f"{top}.py").exists() for o in own):
                        yield module, name


def _parents(folders: Sequence[str]) -> list[str]:
    return [str(Path(folder).parent) for folder in folders]


def carry_out(order: Order) -> Answer:
    """Fork a child for an order, watch it, and kill all that it leaves."""
    start = time.monotonic()
    reading, writing = os.pipe()
    log = os.open(f"{order.scratch}/log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    child = os.fork()
    if child == 0:
        os.close(reading)
        _run_child(order, writing, log)
    os.close(writing)
    os.close(log)
    messages, hangs = _watch(order, child, reading)
    os.close(reading)
    status = _reap(child, kill=hangs)
    _kill_orphans()
    seconds = time.monotonic() - start
    failed = [message["failed"] for message in messages if "failed" in message]
    last = next((message["start"] for message in reversed(messages) if "start" in message), "")
    results = [message for message in messages if "test" in message or "fixture" in message]
    if hangs:
        return Answer("hangs", last, seconds, results)
    if status in (0, NOTHING_RUN):
        return Answer("passed", "", seconds, results)
    if failed:
        return Answer("failed", failed[0], seconds, results)
    return Answer("broken", last, seconds, results)


def _run_child(order: Order, writing: int, log: int) -> None:
    """Run pytest in this process and exit at once, without exit handlers."""
    status = 70
    try:
        os.setsid()
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        resource.setrlimit(resource.RLIMIT_FSIZE, (MOST_WRITTEN, MOST_WRITTEN))
        resource.setrlimit(resource.RLIMIT_DATA, (MOST_MEMORY, MOST_MEMORY))
        Path(os.environ["TMPDIR"]).mkdir(exist_ok=True)
        send = session.make_sender(writing)
        plugin: session.Chosen | session.Recording = session.Chosen(order.tests, send)
        if order.record:
            recorder = Recorder(Path(order.record))
            recorder.switch("collecting")
            recorder.start(MARK)
            plugin = session.Recording(recorder, send)
        status = session.run(order.files, order.scratch, plugin, stop=not order.record)
    except BaseException:  # noqa: BLE001 - the log is where the operator looks
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _watch(order: Order, child: int, reading: int) -> tuple[list[dict[str, Any]], bool]:
    """Read a child's messages until it ends; also return whether it hung."""
    limits = dict(zip(order.tests, order.limits, strict=False))
    messages: list[dict[str, Any]] = []
    pending = b""
    deadline = time.monotonic() + COLLECTING_S
    ends = os.pidfd_open(child)  # what it forked may keep the pipe open for longer
    try:
        while True:
            left = max(0.0, deadline - time.monotonic())
            ready, _, _ = select.select([reading, ends], [], [], left)
            if not ready:
                return messages, True
            if reading not in ready or not (data := os.read(reading, 65536)):
                return messages, False
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                message = json.loads(line)
                messages.append(message)
                if "start" in message:
                    limit = limits.get(message["start"], order.longest)
                    # the session ends after the last test without another message
                    is_last = message["start"] in order.tests[-1:]
                    deadline = time.monotonic() + limit + (LEAVING_S if is_last else 0)
                elif "test" in message:
                    deadline = time.monotonic() + LEAVING_S
    finally:
        os.close(ends)


def _reap(child: int, *, kill: bool) -> int:
    """Wait for a child, no longer than LEAVING_S, and return its status."""
    if kill:
        _kill(find_descendants(child))
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
    deadline = time.monotonic() + LEAVING_S
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -signal.SIGKILL


def _kill_orphans() -> None:
    """Kill what a trial has left: its orphans are our children."""
    while orphans := find_descendants(os.getpid())[1:]:
        _kill(orphans)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.005)


def find_descendants(process: int) -> list[int]:
    """Return a process and all its descendants."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                parents.setdefault(parent, []).append(int(entry.name))
    found = [process]
    for each in found:
        found.extend(parents.get(each, ()))
    return found


def _kill(processes: Sequence[int]) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
