"""A file's bytes by hf_transfer, many ranges at once, in a child process under a watchdog."""

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from worker.weights.address import Hub
from worker.weights.proof import RemoteFile
from worker.weights.retry import Again, Patience
from worker.weights.sequential import OK, PARTIAL, span_of
from worker.weights.space import FULL, UNUSABLE, UNWRITABLE

# hf_transfer reports whole ranges. 8 of 8 MiB within the 60 s of a stall ask for 1.1 MB/s; a slower
# line is served by the sequential way.
RANGE_BYTES: Final = 8 * 1024 * 1024
# Failed ranges are asked for again by hf_transfer itself, as losing a 5 GB shard to one of its 600
# ranges would cost more than all retries of it.
RANGE_FAILURES: Final = 3
RANGE_RETRIES: Final = 3


def download(
    hub: Hub,
    url: str,
    file: RemoteFile,
    part: Path,
    patience: Patience,
    report: Callable[[int], None],
    *,
    workers: int,
    range_bytes: int = RANGE_BYTES,
) -> None:
    """Write the whole file to `part`, which hf_transfer creates; `report` gets the bytes so far.

    The redirect is followed here, so that the child gets the last address, and the token only if
    that is still the hub. Raises Again when hf_transfer fails or stands still, OSError (with its
    errno) when the disk refused, WeightsUnavailable as `Hub.open`.
    """
    # A signed address may be for GET alone, so that HEAD would be refused.
    with closing(
        hub.open(url, patience, what=file.path, span="bytes=0-0", accept=(OK, PARTIAL))
    ) as response:
        if response.status_code != PARTIAL or span_of(response) != (0, 0, file.size):
            raise Again("the hub does not answer with the range that was asked for")
        url = response.url
    request = {
        "parent": os.getpid(),
        "url": url,
        "filename": str(part),
        "max_files": workers,
        "chunk_size": range_bytes,
        "parallel_failures": min(RANGE_FAILURES, workers - 1),
        "max_retries": RANGE_RETRIES if workers > 1 else 0,
        "headers": hub.headers(url),
    }
    # -I would drop PYTHONPATH, by which a source tree without installation finds the package
    try:
        child = subprocess.Popen(
            [sys.executable, "-m", "worker.weights.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
    except OSError:  # no process or pipe to be had: the sequential way needs neither
        raise Again("no transfer process could be started") from None
    try:
        _watch(child, request, file, patience, report)
    finally:
        child.kill()
        child.communicate()


def _watch(
    child: "subprocess.Popen[bytes]",
    request: dict[str, Any],
    file: RemoteFile,
    patience: Patience,
    report: Callable[[int], None],
) -> None:
    """Hand the child its work and read what it tells until it is done or stands still."""
    if child.stdin is None or child.stdout is None:
        raise Again("the transfer process has no pipes")
    try:
        child.stdin.write(json.dumps(request).encode())
        child.stdin.close()
    except BrokenPipeError:
        raise Again("the transfer process ended early") from None
    finally:
        child.stdin = None
    pending = b""
    deadline = time.monotonic() + patience.stall_s
    while True:
        ready, _, _ = select.select([child.stdout], [], [], max(0, deadline - time.monotonic()))
        if not ready:
            raise Again("the transfer stood still")
        data = os.read(child.stdout.fileno(), 65536)
        if not data:
            raise Again("the transfer process ended early")
        deadline = time.monotonic() + patience.stall_s
        *lines, pending = (pending + data).split(b"\n")
        for line in lines:
            if line == b"done":
                report(file.size)
                return
            if line.startswith(b"{"):
                _fail(json.loads(line))
            report(min(int(line), file.size))


def _fail(fault: dict[str, Any]) -> None:
    if fault["errno"] in (*FULL, *UNWRITABLE, *UNUSABLE):  # connections have errnos too
        raise OSError(fault["errno"], os.strerror(fault["errno"]))
    raise Again("the parallel transfer failed")
