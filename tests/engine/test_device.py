"""What is asked of the device is asked of a GPU alone, and its errors become ours."""

from collections.abc import Iterator

import pytest
import torch

from worker.engine import device as devices
from worker.errors import CudaOutOfMemory, DeviceLost

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_threads")
def test_one_thread_serves_where_the_cpu_is_the_device() -> None:
    for device, threads in ((GPU, 3), (CPU, 1)):
        torch.set_num_threads(3)
        devices.limit_threads(device)
        assert torch.get_num_threads() == threads


def test_a_gpu_is_waited_for_and_its_peak_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, torch.device]] = []
    for name in ("synchronize", "reset_peak_memory_stats"):
        monkeypatch.setattr(
            torch.cuda, name, lambda device, name=name: asked.append((name, device))
        )
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: (7 << 20) + 5)
    for device in (CPU, GPU):
        devices.synchronize(device)
        devices.reset_peak(device)
    assert asked == [("synchronize", GPU), ("reset_peak_memory_stats", GPU)]
    assert (devices.read_peak_mb(CPU), devices.read_peak_mb(GPU)) == (0, 7)


@pytest.mark.parametrize("has_gpu", [False, True])
def test_memory_is_given_back_to_the_driver_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, *, has_gpu: bool
) -> None:
    emptied: list[bool] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))
    devices.free_memory()
    assert emptied == [True] * has_gpu


@pytest.mark.parametrize(
    ("error", "ours"),
    [
        (torch.OutOfMemoryError("full"), CudaOutOfMemory),
        (torch.AcceleratorError("lost"), DeviceLost),
        (ValueError("another"), ValueError),
    ],
)
def test_what_the_device_raises_is_translated_and_nothing_else(
    error: Exception, ours: type[Exception]
) -> None:
    with pytest.raises(ours) as raised, devices.translate_errors():
        raise error
    assert (raised.value is error) is (ours is ValueError)
    assert raised.value.__cause__ is (None if ours is ValueError else error)
