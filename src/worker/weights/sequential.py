"""A file downloaded in order over one connection, resuming where it stopped: slow and sure."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from http import HTTPStatus
from pathlib import Path
from typing import BinaryIO, Final

import requests
import urllib3

from worker.codings import parse_codings
from worker.weights.hub import Hub
from worker.weights.proof import RemoteFile
from worker.weights.retry import AttemptFailed, Patience

RECEIVE_BYTES: Final = 1024 * 1024
# What a server may answer to a request for the rest of a file, other than 200 and all of it.
RESUMED: Final = (HTTPStatus.PARTIAL_CONTENT, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
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

    If the server ignores or refuses Range, the part starts over. Raises AttemptFailed when the
    attempt ends early (what arrived stays), WeightsUnavailable as `Hub.open`, the disk's OSError.
    """
    part.touch()
    have = part.stat().st_size
    if have == file.size:
        return
    span = f"bytes={have}-" if have else None
    accept = (HTTPStatus.OK, *(RESUMED if have else ()))
    with (
        closing(hub.open(url, patience, what=file.path, span=span, accept=accept)) as response,
        part.open("r+b") as opened,
    ):
        opened.seek(_find_start(response, file, have, opened))
        opened.truncate()
        have = _append(response, file, opened, patience, report)
    if have < file.size:
        raise AttemptFailed("the transfer was cut short")


def read_range(
    hub: Hub, url: str, file: RemoteFile, start: int, end: int, patience: Patience
) -> bytes:
    """Return bytes `start` up to `end` of a file; raises as `download`."""
    if start == end:
        return b""
    if not 0 <= start < end <= file.size:
        raise ValueError(f"bytes {start} to {end} of a file of {file.size}")
    span = f"bytes={start}-{end - 1}"
    accept = (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT)
    with closing(hub.open(url, patience, what=file.path, span=span, accept=accept)) as response:
        is_partial = response.status_code == HTTPStatus.PARTIAL_CONTENT
        if not is_partial and (start, end) != (0, file.size):
            raise AttemptFailed("the hub ignores Range")
        if is_partial and read_span(response) != (start, end - 1, file.size):
            raise AttemptFailed("the hub answered with another range")
        _check_plain(response)
        data = bytearray()
        for chunk in _iterate_chunks(response, patience):
            data += chunk
            if len(data) > end - start:
                raise AttemptFailed("the hub sent more than was requested")
    if len(data) != end - start:
        raise AttemptFailed("the transfer was cut short")
    return bytes(data)


def _find_start(response: requests.Response, file: RemoteFile, have: int, opened: BinaryIO) -> int:
    """Return the offset at which this body starts; raises AttemptFailed for another file's."""
    _check_plain(response)
    if response.status_code == HTTPStatus.OK:
        length = response.headers.get("Content-Length")
        if length is not None and length.strip() != str(file.size):
            raise AttemptFailed(
                f"the hub sent a body of {length[:20]} bytes for a file of {file.size}"
            )
        return 0
    is_partial = response.status_code == HTTPStatus.PARTIAL_CONTENT
    if is_partial and read_span(response) == (have, file.size - 1, file.size):
        return have
    opened.truncate(0)  # the next attempt requests the complete file
    raise AttemptFailed("the hub answered with another range")


def _check_plain(response: requests.Response) -> None:
    if parse_codings(response.headers.get("Content-Encoding", "")):
        raise AttemptFailed("the hub sent a compressed body")


def read_span(response: requests.Response) -> tuple[int, int, int] | None:
    """Return Content-Range's first byte, last byte and size; None unless it has all three."""
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
    for chunk in _iterate_chunks(response, patience):
        if have + len(chunk) > file.size:
            opened.truncate(0)
            raise AttemptFailed("the hub sent more bytes than the file has")
        opened.write(chunk)
        have += len(chunk)
        report(have)
    return have


def _iterate_chunks(response: requests.Response, patience: Patience) -> Iterator[bytes]:
    """Yield the body as it arrives; raises AttemptFailed when it breaks off or stalls.

    `read1` returns what one receive gave, so that a drip is noticed: `read` would wait for a full
    chunk, and each byte would reset the socket's timeout.
    """
    since, fresh = time.monotonic(), 0
    while True:
        try:
            chunk = response.raw.read1(RECEIVE_BYTES)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            timed_out = isinstance(error, urllib3.exceptions.TimeoutError | TimeoutError)
            reason = "the transfer stalled" if timed_out else "the hub hung up"
            raise AttemptFailed(reason) from None
        if not chunk:
            return
        yield chunk
        fresh += len(chunk)
        now = time.monotonic()
        if now - since >= patience.stall_s:
            if fresh < patience.slowest * patience.stall_s:
                raise AttemptFailed("the transfer nearly stalled")
            since, fresh = now, 0
