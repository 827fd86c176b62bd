"""A file's bytes in order over one connection, going on where they stopped: slow and sure."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import BinaryIO, Final

import requests
import urllib3

from worker.weights.address import Hub
from worker.weights.proof import RemoteFile
from worker.weights.retry import Again, Patience

READ_BYTES: Final = 1024 * 1024
OK: Final = 200
PARTIAL: Final = 206
RANGE_REFUSED: Final = 416
CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


def download(
    hub: Hub,
    url: str,
    file: RemoteFile,
    part: Path,
    patience: Patience,
    report: Callable[[int], None],
) -> None:
    """Append to `part` until it has the file's size; `report` gets the bytes that are there.

    A server that ignores Range or refuses it makes the part start anew. Raises Again when the
    attempt ends early (what arrived stays), WeightsUnavailable as `Hub.open`, OSError of the disk.
    """
    part.touch()
    have = part.stat().st_size
    if 0 < have == file.size:
        return
    span = f"bytes={have}-" if have else None
    accept = (OK, PARTIAL, RANGE_REFUSED) if have else (OK,)
    with (
        closing(hub.open(url, patience, what=file.path, span=span, accept=accept)) as response,
        part.open("r+b") as opened,
    ):
        opened.seek(_start(response, file, have, opened))
        opened.truncate()
        have = _append(response, file, opened, patience, report)
    if have < file.size:
        raise Again("the transfer was cut short")


def read_range(
    hub: Hub, url: str, file: RemoteFile, start: int, end: int, patience: Patience
) -> bytes:
    """Return bytes `start` up to `end` of a file; raises as `download`."""
    if start == end:
        return b""
    if not 0 <= start < end <= file.size:
        raise ValueError(f"bytes {start} to {end} of a file of {file.size}")
    with closing(
        hub.open(
            url, patience, what=file.path, span=f"bytes={start}-{end - 1}", accept=(OK, PARTIAL)
        )
    ) as response:
        if response.status_code == OK and (start, end) != (0, file.size):
            raise Again("the hub ignores Range")
        if response.status_code == PARTIAL and span_of(response) != (start, end - 1, file.size):
            raise Again("the hub answered with another range")
        _check_plain(response)
        data = bytearray()
        for chunk in _chunks(response, patience):
            data += chunk
            if len(data) > end - start:
                raise Again("the hub sent more than was asked for")
    if len(data) != end - start:
        raise Again("the transfer was cut short")
    return bytes(data)


def _start(response: requests.Response, file: RemoteFile, have: int, opened: BinaryIO) -> int:
    """Return the offset at which this body starts; raises Again for a body of another file."""
    _check_plain(response)
    if response.status_code == OK:
        length = response.headers.get("Content-Length")
        if length is not None and length.strip() != str(file.size):
            raise Again(f"the hub sent a body of {length[:20]} bytes for a file of {file.size}")
        return 0
    if response.status_code == PARTIAL and span_of(response) == (have, file.size - 1, file.size):
        return have
    opened.truncate(0)  # the next attempt asks for the whole file
    raise Again("the hub answered with another range")


def _check_plain(response: requests.Response) -> None:
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise Again("the hub sent an encoded body")


def span_of(response: requests.Response) -> tuple[int, int, int] | None:
    """Return Content-Range's first byte, last byte and size; None when it has no such three."""
    match = CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
    if match is None or match[3] == "*":
        return None
    return int(match[1]), int(match[2]), int(match[3])


def _append(
    response: requests.Response,
    file: RemoteFile,
    opened: BinaryIO,
    patience: Patience,
    report: Callable[[int], None],
) -> int:
    have = opened.tell()
    for chunk in _chunks(response, patience):
        if have + len(chunk) > file.size:
            opened.truncate(0)
            raise Again("the hub sent more bytes than the file has")
        opened.write(chunk)
        have += len(chunk)
        report(have)
    return have


def _chunks(response: requests.Response, patience: Patience) -> Iterator[bytes]:
    """Yield the body as it arrives; raises Again when it breaks off or stands still.

    `read1` returns what one receive gave, so that a drip is seen: `read` would wait for a full
    chunk, and each byte would reset the socket's timeout.
    """
    since, fresh = time.monotonic(), 0
    while True:
        try:
            chunk = response.raw.read1(READ_BYTES)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            timed_out = isinstance(error, urllib3.exceptions.TimeoutError | TimeoutError)
            raise Again("the transfer stood still" if timed_out else "the hub hung up") from None
        if not chunk:
            return
        yield chunk
        fresh += len(chunk)
        now = time.monotonic()
        if now - since >= patience.stall_s:
            if fresh < patience.slowest * patience.stall_s:
                raise Again("the transfer all but stood still")
            since, fresh = now, 0
