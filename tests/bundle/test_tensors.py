"""Safetensors as the bundle writes and reads it: named by content, aligned, never half."""

import hashlib
import json
import re
import struct
from pathlib import Path
from typing import Any, Self

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from worker.bundle.layout import Damaged
from worker.bundle.tensors import (
    Header,
    TensorEntry,
    UnknownFormat,
    decode,
    read_file_header,
    read_header,
    write,
)

PAGE = 4096
KINDS = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    *(torch.uint64, torch.uint32, torch.uint16, torch.complex64),
    *(torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz),
]


def of_every_kind() -> dict[str, torch.Tensor]:
    return {f"{kind}"[6:]: torch.arange(6).reshape(2, 3).to(kind) for kind in KINDS} | {
        "scalar": torch.tensor(2.5),
        "nothing": torch.empty(0, 3),
        "row": torch.ones(1, 4096),
    }


def test_every_number_format_comes_back_by_safetensors_and_by_our_header(tmp_path: Path) -> None:
    state = of_every_kind()
    name, _ = write(tmp_path, "weights", state)
    theirs = load_file(tmp_path / name)
    ours = read_file_header(tmp_path / name)
    data = (tmp_path / name).read_bytes()
    assert ours.keys() == theirs.keys() == state.keys()
    with safe_open(tmp_path / name, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}, "which transformers asks for"
    for key, tensor in state.items():
        entry = ours[key]
        assert theirs[key].dtype == entry.dtype == tensor.dtype
        assert entry.shape == tuple(tensor.shape)
        assert entry.count == tensor.numel()
        assert entry.end - entry.start == tensor.numel() * tensor.element_size()
        assert torch.equal(theirs[key], tensor)
        if entry.count:
            assert torch.equal(decode(entry, data[entry.start : entry.end]), tensor)


def test_a_header_is_read_as_safetensors_writes_it(tmp_path: Path) -> None:
    state = of_every_kind()
    save_file(state, tmp_path / "x", metadata={"format": "pt"})
    read = read_file_header(tmp_path / "x")
    assert {key: (e.dtype, e.shape) for key, e in read.items()} == {
        key: (t.dtype, tuple(t.shape)) for key, t in state.items()
    }
    assert max(entry.end for entry in read.values()) == (tmp_path / "x").stat().st_size


def test_only_the_header_is_read() -> None:
    facts = {"a": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [4, 16]}, "__metadata__": {}}
    text = json.dumps(facts).encode()
    data = struct.pack("<Q", len(text)) + text
    spans: list[tuple[int, int]] = []

    def read(start: int, end: int) -> bytes:
        spans.append((start, end))
        return data[start:end]

    base = len(data)
    assert read_header(read) == {"a": TensorEntry(torch.bfloat16, (2, 3), base + 4, base + 16)}
    assert spans == [(0, 8), (8, base)]


def test_a_format_of_scales_alone_is_known() -> None:
    text = b'{"x": {"dtype": "F8_E8M0", "shape": [2], "data_offsets": [0, 2]}}'
    data = struct.pack("<Q", len(text)) + text
    (entry,) = read_header(lambda start, end: data[start:end]).values()
    assert entry.dtype is torch.float8_e8m0fnu


def test_a_file_is_named_by_its_content_and_recorded(tmp_path: Path) -> None:
    state = of_every_kind()
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, record = write(tmp_path / "a", "weights-00003", state)
    second, _ = write(tmp_path / "b", "weights-00003", dict(reversed(state.items())))
    other, _ = write(tmp_path / "b", "weights-00003", {**state, "scalar": torch.tensor(2.25)})
    data = (tmp_path / "a" / first).read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    assert first == f"weights-00003-{digest[:16]}.safetensors"
    assert (record.size, record.sha256) == (len(data), digest)
    assert first == second, "the order of the mapping says nothing"
    assert other != first
    assert {path.name for path in (tmp_path / "b").iterdir()} == {second, other}


@pytest.mark.parametrize("count", [1, 40, 80, 200])
def test_data_begins_at_a_page_and_every_tensor_where_its_size_divides(
    tmp_path: Path, count: int
) -> None:
    """Each at a multiple of the largest power of two that divides its size, without holes."""
    state = {f"tensor {n}": torch.zeros(n + 1, dtype=torch.uint8) for n in range(count)}
    state |= {f"big {n}": torch.zeros(n, 1024) for n in range(5)}
    name, record = write(tmp_path, "weights", state)
    entries = sorted(read_file_header(tmp_path / name).values(), key=lambda entry: entry.start)
    begin = entries[0].start
    assert begin % PAGE == 0
    assert begin - PAGE <= 8 + len(json.dumps(dict.fromkeys(state, 0))) + 90 * len(state)
    at = begin
    for entry in entries:
        assert entry.start == at
        size = entry.end - entry.start
        assert size == 0 or (entry.start - begin) % (size & -size) == 0
        at += size
    assert at == record.size == (tmp_path / name).stat().st_size


def test_the_header_is_a_whole_number_of_pages_and_no_more_than_needed(tmp_path: Path) -> None:
    for length in range(3900, 4100, 7):
        name, _ = write(tmp_path, "weights", {"x" * length: torch.zeros(1)})
        (size,) = struct.unpack("<Q", (tmp_path / name).read_bytes()[:8])
        text = (tmp_path / name).read_bytes()[8 : 8 + size]
        assert (8 + size) % PAGE == 0
        assert len(text) - len(text.rstrip(b" ")) < PAGE


def test_what_is_no_run_of_bytes_is_written_as_one(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    state = {"turned": base.T, "every other": base[:, ::2], "stretched": base[:1].expand(3, 6)}
    name, _ = write(tmp_path, "weights", state)
    for key, tensor in load_file(tmp_path / name).items():
        assert torch.equal(tensor, state[key]), key


def test_nothing_is_left_of_a_file_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_part: Path, _target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("worker.weights.temporary.publish", refuse)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path, "weights", {"x": torch.zeros(1)})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "facts",
    [
        b"",
        b"{",
        b"[]",
        b'{"a": {}}',
        b'{"a": {"dtype": "Q4", "shape": [1], "data_offsets": [0, 1]}}',
        b'{"a": {"dtype": "U8", "shape": 1, "data_offsets": [0, 1]}}',
        b'{"a": {"dtype": "U8", "shape": [1], "data_offsets": [0]}}',
        b'{"a": {"dtype": "U8", "shape": [1]}}',
        b'{"a": []}',
        b'{"a": {"dtype": "U8", "shape": [2], "data_offsets": [0, 1]}}',
        b'{"a": {"dtype": "U8", "shape": [0], "data_offsets": [0, 1]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 1]}}',
        b'{"a": {"dtype": "U8", "shape": [-1, -1], "data_offsets": [0, 1]}}',
        b'{"a": {"dtype": "U8", "shape": [1], "data_offsets": [-1, 0]}}',
        b'{"a": {"dtype": "U8", "shape": [1.0], "data_offsets": [0, 1]}}',
        b'{"a": {"dtype": "U8", "shape": [true], "data_offsets": [0, 1]}}',
        b'{"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, true]}}',
        b'{"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}, "a": {}}',
        b'{"__metadata__": {}, "__metadata__": {}}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_safetensors_header_is_an_error_that_is_caught(
    facts: bytes, tmp_path: Path
) -> None:
    data = struct.pack("<Q", len(facts)) + facts
    with pytest.raises(ValueError, match=r"\w"):
        read_header(lambda start, end: data[start:end])
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(Damaged, match=r"x has ") as caught:
        read_file_header(tmp_path / "x")
    assert caught.value.folder == tmp_path


def test_a_header_may_be_as_long_as_the_format_lets_it() -> None:
    """A longer one is not even read."""
    text = b'{"a": {"dtype": "U8", "shape": [], "data_offsets": [0, 1]}}'
    ranges: list[tuple[int, int]] = []

    def read_one_of(length: int) -> Header:
        def read(start: int, end: int) -> bytes:
            ranges.append((start, end))
            return text if start else struct.pack("<Q", length)

        return read_header(read)

    (entry,) = read_one_of(100_000_000).values()
    assert (entry.shape, entry.count) == ((), 1)
    with pytest.raises(ValueError, match="a header of 100000001 bytes"):
        read_one_of(100_000_001)
    assert ranges == [(0, 8), (8, 100_000_008), (0, 8)]


def test_a_format_without_a_torch_type_is_named() -> None:
    text = b'{"x.weight": {"dtype": "F4", "shape": [1], "data_offsets": [0, 1]}}'
    data = struct.pack("<Q", len(text)) + text
    with pytest.raises(UnknownFormat, match=r"x.weight is in F4") as caught:
        read_header(lambda start, end: data[start:end])
    assert (caught.value.tensor, caught.value.written) == ("x.weight", "F4")


def test_a_disk_that_takes_a_part_of_what_it_is_given_gets_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Path.open

    def open_slowly(path: Path, mode: str = "r", **named: Any) -> Any:
        file = original(path, mode, **named)
        if mode != "wb":
            return file

        class Slow:
            def __enter__(self) -> Self:
                return self

            def __exit__(self, *_: object) -> None:
                file.close()

            def write(self, data: Any) -> int:
                """Take three bytes at most, once the header is there."""
                return int(file.write(data[:3] if isinstance(data, memoryview) else data))

        return Slow()

    monkeypatch.setattr(Path, "open", open_slowly)
    name, record = write(tmp_path, "weights", {"x": torch.arange(5.0)})
    assert load_file(tmp_path / name)["x"].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert record.sha256 == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()


NAME = re.compile(r"weights-[0-9a-f]{16}\.safetensors")


def test_a_file_that_is_there_is_replaced_by_its_equal(tmp_path: Path) -> None:
    first, _ = write(tmp_path, "weights", {"x": torch.zeros(3)})
    assert NAME.fullmatch(first)
    (tmp_path / first).write_bytes(b"damaged")
    second, _ = write(tmp_path, "weights", {"x": torch.zeros(3)})
    assert first == second
    assert load_file(tmp_path / first)["x"].tolist() == [0.0] * 3
