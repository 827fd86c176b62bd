"""A process that downloads as a start does, and stops where it is told, to be killed there.

One line of JSON on standard input says what to do; lines on standard output say where it is.
"""

import fcntl
import json
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

ORDERS: dict[str, Any] = json.loads(sys.stdin.readline())


def stop(at: str) -> None:
    """Say where this process is and stay there, if that is where it was told to."""
    if ORDERS.get("stop") == at:
        print(f"at {at}", flush=True)
        threading.Event().wait()


if ORDERS.get("flock") == "no-op":
    # a network file system whose locks always succeed
    fcntl.flock = lambda _fd, _operation: None

from faults.room import FAST, REPOSITORY  # noqa: E402 - after flock is replaced

from worker import log, settings  # noqa: E402
from worker.errors import WorkerError  # noqa: E402
from worker.weights import metadata, temporary  # noqa: E402
from worker.weights.download import fetch_snapshot  # noqa: E402

PUBLISH = temporary.publish


def publish(part: Path, target: Path) -> None:
    """Publish, and stop before or after."""
    if target.name.endswith(".safetensors"):
        stop("proven")
    PUBLISH(part, target)
    if target.name.endswith(".safetensors"):
        stop("between files")


def main() -> None:
    """Download."""
    log.configure("WARNING")
    temporary.publish = publish
    read = settings.read(ORDERS["environ"])
    snapshot = replace(
        metadata.resolve(REPOSITORY, None, read, patience=FAST),
        parallel_from=300_000 if ORDERS["parallel"] else 1 << 60,
        range_bytes=200_000,
    )
    print("started", flush=True)
    if ORDERS.get("wait"):
        sys.stdin.readline()
    try:
        fetch_snapshot(snapshot, snapshot.files, Path(ORDERS["into"]), read)
    except WorkerError as error:
        print(f"failed {error.code}: {error.message}", flush=True)
    else:
        print("done", flush=True)


main()
