"""Bytes are proven by size and digest, and a cut safetensors file is recognised by its header."""

import hashlib
import json
import struct
from pathlib import Path

import pytest

from worker.weights.proof import (
    READ_BYTES,
    Digests,
    RemoteFile,
    digest_bytes,
    digest_file,
    find_difference,
    find_fault,
)

A, B = "a" * 64, "b" * 64
GIT_A, GIT_B = "a" * 40, "b" * 40


@pytest.mark.parametrize("size", [0, 1, READ_BYTES, READ_BYTES + 1, 2 * READ_BYTES + 7])
def test_digests_are_of_all_bytes_whatever_the_size(tmp_path: Path, size: int) -> None:
    data = hashlib.shake_256(b"x").digest(size)
    path = tmp_path / "file"
    path.write_bytes(data)
    blob = hashlib.sha1(b"blob %d\0" % size + data, usedforsecurity=False).hexdigest()
    expected = Digests(size, hashlib.sha256(data).hexdigest(), blob)
    assert digest_file(path, blob_id=True) == digest_bytes(data) == expected
    assert digest_file(path, blob_id=False) == Digests(size, expected.sha256, None)


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (RemoteFile("x", 5), None),
        (RemoteFile("x", 4), "5 bytes instead of 4"),
        (RemoteFile("x", 6, sha256=A), "5 bytes instead of 6"),
        (RemoteFile("x", 5, sha256=A), None),
        (RemoteFile("x", 5, sha256=B), "a sha256 other than the recorded one"),
        (RemoteFile("x", 5, blob_id=GIT_A), None),
        (RemoteFile("x", 5, blob_id=GIT_B), "a git blob id other than the recorded one"),
        # of an LFS file git knows the pointer alone
        (RemoteFile("x", 5, sha256=A, blob_id=GIT_B), None),
        (RemoteFile("x", 5, sha256=B, blob_id=GIT_A), "a sha256 other than the recorded one"),
    ],
)
def test_what_is_recorded_is_compared(file: RemoteFile, reason: str | None) -> None:
    assert find_difference(Digests(5, A, GIT_A), file) == reason


def safetensors(header: bytes, data: bytes = b"", *, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def of(**ends: int) -> bytes:
    """Return the header of tensors that end there."""
    entries = {
        name: {"dtype": "U8", "shape": [end], "data_offsets": [0, end]}
        for name, end in ends.items()
    }
    return json.dumps(entries).encode()


WHOLE = safetensors(of(a=3, b=8, c=5), bytes(8))


@pytest.mark.parametrize(
    "data",
    [
        WHOLE,
        safetensors(b"{}"),
        safetensors(b'{"__metadata__": {"format": "pt"}}'),
        safetensors(b'{"__metadata__": {"a": "b"}, ' + of(x=2)[1:], bytes(2)),
    ],
)
def test_a_whole_safetensors_file_has_no_fault(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x").write_bytes(data)
    assert find_fault(tmp_path / "x") is None


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (WHOLE[:-1], f"{len(WHOLE) - 1} bytes instead of {len(WHOLE)}"),
        (WHOLE + b"\0", f"{len(WHOLE) + 1} bytes instead of {len(WHOLE)}"),
        (safetensors(b"{}", b"\0"), "11 bytes instead of 10"),
        (b"", "no safetensors header"),
        (b"\x02\0\0\0", "no safetensors header"),
        (safetensors(b""), "no safetensors header"),
        (safetensors(b"{", b"}", length=1), "no safetensors header"),
        (safetensors(b"{}", length=3), "no safetensors header"),
        (safetensors(b"{}", length=1 << 63), "no safetensors header"),
        (b"<!doctype html>" * 9, "no safetensors header"),
        (safetensors(b"{]"), "an unreadable safetensors header"),
        (safetensors(b"\xff\xff"), "an unreadable safetensors header"),
        (safetensors(b"[]"), "an unreadable safetensors header"),
        (safetensors(b'{"a": {}}'), "an unreadable safetensors header"),
        (safetensors(b'{"a": 3}'), "an unreadable safetensors header"),
        (safetensors(b'{"a": {"data_offsets": [0]}}'), "an unreadable safetensors header"),
        (safetensors(b'{"a": {"data_offsets": "xy"}}'), "an unreadable safetensors header"),
        (safetensors(b'{"a": {"data_offsets": null}}'), "an unreadable safetensors header"),
    ],
)
def test_a_safetensors_file_that_cannot_be_whole_says_why(
    tmp_path: Path, data: bytes, reason: str
) -> None:
    (tmp_path / "x").write_bytes(data)
    assert find_fault(tmp_path / "x") == reason
