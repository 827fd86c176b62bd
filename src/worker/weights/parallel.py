"""A file downloaded by hf_transfer, many ranges at once, in a child process under a watchdog."""

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from http import HTTPStatus
from pathlib import Path
from typing import IO, Any, Final, cast

from worker.weights.hub import Hub
from worker.weights.proof import RemoteFile
from worker.weights.retry import AttemptFailed, Patience
from worker.weights.sequential import read_span
from worker.weights.space import FULL, UNUSABLE_DISK, UNWRITABLE

# hf_transfer reports complete ranges only. 8 of 8 MiB within the 60 s of a stall need 1.1 MB/s; on
# a slower line the sequential download takes over.
RANGE_BYTES: Final = 8 * 1024 * 1024
# hf_transfer itself retries a failed range: losing a 5 GB shard to one of its 600 ranges would cost
# more than all retries of that range.
RANGE_FAILURES: Final = 3
RANGE_RETRIES: Final = 3
LINES_BYTES: Final = 65536


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
    """Write the file to `part`, which hf_transfer creates; `report` gets the bytes so far.

    Redirects are followed here, so that the child gets the final address, and the token only if
    that is still the hub's. Raises AttemptFailed when hf_transfer fails or stalls, OSError (with
    its errno) when the disk refuses, WeightsUnavailable as `Hub.open`.
    """
    accept = (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT)
    # GET: a signed address may refuse HEAD
    with closing(
        hub.open(url, patience, what=file.path, span="bytes=0-0", accept=accept)
    ) as response:
        if response.status_code != HTTPStatus.PARTIAL_CONTENT or read_span(response) != (
            0,
            0,
            file.size,
        ):
            raise AttemptFailed("the hub did not answer with the requested range")
        url = response.url
    request = {
        "parent": os.getpid(),
        "url": url,
        "filename": str(part),
        "max_files": workers,
        "chunk_size": range_bytes,
        "parallel_failures": min(RANGE_FAILURES, workers - 1),
        "max_retries": RANGE_RETRIES if workers > 1 else 0,
        "headers": hub.make_headers(url),
    }
    # -I would drop PYTHONPATH, by which an uninstalled source tree finds the package
    try:
        child = subprocess.Popen(
            [sys.executable, "-m", "worker.weights.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
    except OSError:  # out of processes or pipes: the sequential download needs neither
        raise AttemptFailed("no transfer process could be started") from None
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
    """Send the child its request and read its reports until it is done or stalls."""
    stdin, stdout = cast("IO[bytes]", child.stdin), cast("IO[bytes]", child.stdout)
    try:
        with stdin:
            stdin.write(json.dumps(request).encode())
    except BrokenPipeError:
        raise AttemptFailed("the transfer process ended early") from None
    finally:
        child.stdin = None
    pending = b""
    deadline = time.monotonic() + patience.stall_s
    while True:
        ready, _, _ = select.select([stdout], [], [], max(0, deadline - time.monotonic()))
        if not ready:
            raise AttemptFailed("the transfer stalled")
        data = os.read(stdout.fileno(), LINES_BYTES)
        if not data:
            raise AttemptFailed("the transfer process ended early")
        deadline = time.monotonic() + patience.stall_s
        *lines, pending = (pending + data).split(b"\n")
        for line in lines:
            if line == b"done":
                report(file.size)
                return
            if line.startswith(b"{"):
                _raise_fault(json.loads(line))
            report(min(int(line), file.size))


def _raise_fault(fault: dict[str, Any]) -> None:
    if fault["errno"] in (*FULL, *UNWRITABLE, *UNUSABLE_DISK):  # connections have errnos too
        raise OSError(fault["errno"], os.strerror(fault["errno"]))
    raise AttemptFailed("the parallel transfer failed")
