"""Proof that the bytes of a file are the ones that its publisher recorded."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

READ_BYTES: Final = 4 * 1024 * 1024
HEADER_LENGTH_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file as its repository records it: `path` in the repository, `size` in bytes.

    `sha256` is known for files in LFS, `blob_id` (git's sha1) for small ones; a plain local folder
    has neither.
    """

    path: str
    size: int
    sha256: str | None = None
    blob_id: str | None = None


@dataclass(frozen=True, slots=True)
class Digests:
    """What one pass over a file gives: its size in bytes, and in hex its sha256 and git blob id.

    `blob_id` is None when it was not requested.
    """

    size: int
    sha256: str
    blob_id: str | None


def digest_file(path: Path, *, blob_id: bool) -> Digests:
    """Read a file once and return its digests.

    The blob id is the sha1 of "blob <size>" + NUL + the bytes, as git defines it; without it, a
    file takes half the time.
    """
    sha256 = hashlib.sha256()
    blob = _start_blob(path.stat().st_size) if blob_id else None
    buffer = memoryview(bytearray(READ_BYTES))
    seen = 0
    with path.open("rb") as file:
        while count := file.readinto(buffer):
            sha256.update(buffer[:count])
            if blob is not None:
                blob.update(buffer[:count])
            seen += count
    return Digests(seen, sha256.hexdigest(), blob.hexdigest() if blob is not None else None)


def digest_bytes(data: bytes) -> Digests:
    """Return the digests of bytes in memory."""
    blob = _start_blob(len(data))
    blob.update(data)
    return Digests(len(data), hashlib.sha256(data).hexdigest(), blob.hexdigest())


def _start_blob(size: int) -> "hashlib._Hash":
    return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)


def find_difference(found: Digests, file: RemoteFile) -> str | None:
    """Return how the bytes differ from the recorded ones; None when they do not."""
    if found.size != file.size:
        return f"{found.size} bytes instead of {file.size}"
    if file.sha256 is not None and found.sha256 != file.sha256:
        return "a sha256 other than the recorded one"
    if file.sha256 is None and file.blob_id is not None and found.blob_id != file.blob_id:
        return "a git blob id other than the recorded one"
    return None


def find_fault(path: Path) -> str | None:
    """Return why a safetensors file must be damaged, by its header and size alone; None if not.

    The format: 8 bytes little-endian header length, a JSON header, then the data; the largest
    `data_offsets` end is the end of the file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(HEADER_LENGTH_BYTES), "little")
        if not 1 < length <= size - HEADER_LENGTH_BYTES:
            return "no safetensors header"
        try:
            header = json.loads(file.read(length))
            ends = [
                int(entry["data_offsets"][1])
                for name, entry in header.items()
                if name != "__metadata__"
            ]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
            return "an unreadable safetensors header"
    expected = HEADER_LENGTH_BYTES + length + max(ends, default=0)
    return None if size == expected else f"{size} bytes instead of {expected}"
