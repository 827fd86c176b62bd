"""Reading a bundle's files: every byte once, nothing more once the reader is left."""

import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from worker.bundle import tensors
from worker.bundle.layout import Damaged
from worker.bundle.read import BIG_BYTES, REQUEST_BYTES, FileReader
from worker.engine import device as devices
from worker.errors import DeviceLost
from worlds.streams import Streams

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
RANGES = 6
PAGE = 4096


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """One tensor of several ranges."""
    state = {"x": torch.arange(RANGES * REQUEST_BYTES // 4, dtype=torch.int32)}
    return tmp_path / tensors.write(tmp_path, "weights", state)[0]


class Slow:
    """A disk that answers on command."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.begun = threading.Event()
        self.released = threading.Event()
        self._read = os.preadv

    def preadv(self, number: int, buffers: list[Any], offset: int) -> int:
        """Read as os.preadv does, later."""
        self.asked.append(offset)
        self.begun.set()
        assert self.released.wait(60)
        return self._read(number, buffers, offset)


class Failure(Exception):
    """What ends the opening of a bundle early."""


@pytest.mark.parametrize("mapped", [False, True])
def test_an_opening_that_fails_does_not_wait_for_the_rest_of_the_bytes(
    file: Path, monkeypatch: pytest.MonkeyPatch, *, mapped: bool
) -> None:
    """Ranges that no thread has begun are not read any more."""
    disk = Slow()
    monkeypatch.setattr(os, "preadv", disk.preadv)

    reader = FileReader(CPU, threads=1, mapped=mapped)
    ended = threading.Event()
    shutdown = reader._pool.shutdown

    def end(**named: Any) -> None:
        shutdown(**{**named, "wait": False})
        disk.released.set()  # the one that a thread has begun
        shutdown(wait=True)
        ended.set()

    monkeypatch.setattr(reader._pool, "shutdown", end)
    with pytest.raises(Failure), reader:  # noqa: PT012 - the block is what fails
        reader.start(file)
        assert disk.begun.wait(60)
        raise Failure
    assert ended.is_set()
    assert disk.asked == [disk.asked[0]]


@pytest.mark.parametrize("mapped", [False, True])
def test_a_reader_that_is_left_has_no_thread_at_work(
    file: Path, monkeypatch: pytest.MonkeyPatch, *, mapped: bool
) -> None:
    disk = Slow()
    monkeypatch.setattr(os, "preadv", disk.preadv)
    before = threading.active_count()
    with FileReader(CPU, threads=2, mapped=mapped) as reader:
        reader.start(file)
        assert disk.begun.wait(60)
        disk.released.set()
    assert threading.active_count() == before


@pytest.mark.parametrize("size", [BIG_BYTES - 1, BIG_BYTES, BIG_BYTES + 1])
@pytest.mark.parametrize("mapped", [False, True])
def test_tensors_around_the_border_of_small_ones_are_read_exactly(
    tmp_path: Path, size: int, *, mapped: bool
) -> None:
    state = {f"t{n}": torch.arange(size, dtype=torch.int64).to(torch.uint8) + n for n in range(3)}
    state |= {"small": torch.tensor([1.5, -2.5]), "none": torch.empty(0)}
    path = tmp_path / tensors.write(tmp_path, "weights", state)[0]
    with FileReader(CPU, mapped=mapped) as reader:
        reader.start(path)
        found = reader.take(path)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


def test_every_byte_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tensors before, between and behind large ones too."""
    state = {
        "a": torch.ones(PAGE, dtype=torch.uint8),
        "b": torch.ones(BIG_BYTES + 2, dtype=torch.uint8),
        "c": torch.ones(6, dtype=torch.uint8),
        "d": torch.ones(BIG_BYTES + 1, dtype=torch.uint8),
        "e": torch.ones(1, dtype=torch.uint8),
    }
    path = tmp_path / tensors.write(tmp_path, "weights", state)[0]
    original, counts = os.preadv, list[int]()

    def read(number: int, buffers: list[Any], offset: int) -> int:
        counts.append(original(number, buffers, offset))
        return counts[-1]

    monkeypatch.setattr(os, "preadv", read)
    with FileReader(CPU) as reader:
        reader.start(path)
        found = reader.take(path)
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    assert sum(counts) == sum(len(tensor) for tensor in state.values())


def test_a_disk_that_gives_less_than_it_is_asked_for_is_asked_again(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = os.preadv

    def read(number: int, buffers: list[Any], offset: int) -> int:
        return original(number, [buffers[0][: REQUEST_BYTES // 3]], offset)

    monkeypatch.setattr(os, "preadv", read)
    with FileReader(CPU) as reader:
        reader.start(file)
        found = reader.take(file)["x"]
    assert torch.equal(found, torch.arange(len(found), dtype=torch.int32))


def test_several_files_are_read_side_by_side(tmp_path: Path) -> None:
    paths = []
    for number in range(4):
        state = {"x": torch.full((BIG_BYTES,), number, dtype=torch.uint8)}
        paths.append(tmp_path / tensors.write(tmp_path, f"weights-{number}", state)[0])
    with FileReader(CPU, threads=3) as reader:
        for path in paths:
            reader.start(path)
        for number, path in reversed(list(enumerate(paths))):
            assert reader.take(path)["x"][-1] == number


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("lost", [1, 5000])
def test_a_file_without_its_last_bytes_names_the_file_and_where_it_should_end(
    file: Path, lost: int, *, mapped: bool
) -> None:
    size = file.stat().st_size
    with file.open("r+b") as opened:
        opened.truncate(size - lost)
    with FileReader(CPU, mapped=mapped) as reader:
        reader.start(file)
        with pytest.raises(Damaged, match=f"{file.name} ends before byte {size}") as caught:
            reader.take(file)
    assert caught.value.folder == file.parent


def test_descriptors_are_closed(file: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - the open folder is one of them
    for mapped in (False, True):
        with FileReader(CPU, mapped=mapped) as reader:
            reader.start(file)
            del reader.take(file)["x"]
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208 - as above


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Streams:
    """Streams whose copies are put off until they are waited for."""
    return Streams(monkeypatch)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_gpu_gets_every_byte_through_pinned_buffers(
    tmp_path: Path, gpu: Streams, threads: int
) -> None:
    """Two per thread, which are filled again only when they have been copied."""
    paths, written = [], []
    for number in range(2):
        torch.manual_seed(number)
        state = {"small": torch.rand(7)}
        state |= {f"t{n}": torch.rand(REQUEST_BYTES // 4 * 2 + 5 * n) for n in range(2)}
        written.append(state)
        paths.append(tmp_path / tensors.write(tmp_path, f"weights-{number}", state)[0])
    with FileReader(GPU, threads=threads) as reader:
        # by the second file the threads' streams exist: its memory must be waited for too
        for path, state in zip(paths, written, strict=True):
            reader.start(path)
            read = reader.take(path)
            # all of it is there, before the reader is left, which waits for whatever is not
            assert read.keys() == state.keys()
            assert all(torch.equal(read[name], tensor) for name, tensor in state.items())
        assert len(gpu.pinned) == 2 * (len(gpu.streams) - 1) <= 2 * threads
    assert len(gpu.allocated) == 4  # small tensors stay on the CPU


def test_copies_in_flight_are_waited_for_when_an_opening_fails(file: Path, gpu: Streams) -> None:
    """What they write to is freed next, and the memory given to others."""
    with pytest.raises(Failure), FileReader(GPU, threads=2) as reader:  # noqa: PT012 - the block is what fails
        reader.start(file)
        for future in reader._files[file].ranges:
            future.result()
        assert not all(stream.is_idle for stream in gpu.streams)
        raise Failure
    assert all(stream.is_idle for stream in gpu.streams)


def test_pinned_memory_is_the_systems_again(file: Path, gpu: Streams) -> None:
    """None is in use by then: torch keeps what is."""
    with FileReader(GPU, threads=2) as reader:
        reader.start(file)
        reader.take(file)
        assert gpu.emptied == []
    assert gpu.pinned
    assert gpu.emptied == [0]
    with FileReader(CPU, threads=2) as reader:
        reader.start(file)
        reader.take(file)
    assert gpu.emptied == [0]


@pytest.mark.usefixtures("gpu")
def test_a_device_that_is_lost_while_copying_is_reported(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever ended the opening: its error is a consequence."""

    def fail(_stream: Any) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    reader = FileReader(GPU, threads=1)
    monkeypatch.setattr(torch.cuda.Stream, "synchronize", fail)
    with pytest.raises(DeviceLost), devices.translate_errors(), reader:  # noqa: PT012 - as above
        reader.start(file)
        reader._files[file].ranges[0].result()
        raise Failure
