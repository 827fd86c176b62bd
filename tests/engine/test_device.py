"""What is asked of the device is asked of a GPU alone, and its errors become ours."""

import copy
import gc
import weakref
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


def test_what_is_free_is_the_drivers_and_what_torch_keeps_unused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 70)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 40)
    assert devices.count_free_bytes(GPU) == 130
    assert devices.count_free_bytes(CPU) is None


LATER = (
    "\nCUDA kernel errors might be asynchronously reported at some other API call, so the"
    " stacktrace below might be incorrect.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1"
    "\nCompile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.\n"
)


def accelerator(message: str, code: int | None = None) -> Exception:
    """Return what torch raises for an error of the CUDA runtime."""
    error = torch.AcceleratorError(f"CUDA error: {message}{LATER}")
    if code is not None:
        error.error_code = code  # type: ignore[attr-defined]  # set by torch where it raises
    return error


# What torch 2.13, cuDNN 9, bitsandbytes and Triton raise, word by word.
OUT_OF_MEMORY = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.38 GiB. GPU 0 has a total ..."),
    accelerator("out of memory", 2),
    accelerator("out of memory"),
    accelerator("too little of it", 2),
    RuntimeError("CUDA driver error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"),
    RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"),
    RuntimeError("GET was unable to find an engine to execute this computation"),
    RuntimeError("FIND was unable to find an engine to execute this computation"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
)
LOST = (
    accelerator("an illegal memory access was encountered", 700),
    accelerator("unspecified launch failure", 719),
    accelerator("uncorrectable ECC error encountered", 214),
    accelerator("device-side assert triggered", 710),
    accelerator("the launch timed out and was terminated"),
    accelerator("invalid argument", 1),
    accelerator("initialization error", 3),
    torch.AcceleratorError("CUDA error: unknown error"),
    RuntimeError("CUDA driver error: unknown error"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx( handle`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_INTERNAL_ERROR when calling `cublasGemmEx( handle`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_MAPPING_ERROR"),
    RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
)
OTHERS = (
    ValueError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("CUDA error: CUBLAS_STATUS_INVALID_VALUE when calling `cublasGemmEx( handle`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasGemmEx( handle`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_BAD_PARAM"),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
    InterruptedError(),
)
TRANSLATED = [
    *[(error, CudaOutOfMemory) for error in OUT_OF_MEMORY],
    *[(error, DeviceLost) for error in LOST],
    *[(error, type(error)) for error in OTHERS],
]


@pytest.mark.parametrize(("error", "ours"), TRANSLATED, ids=[str(e)[:60] for e, _ in TRANSLATED])
def test_what_the_device_raises_is_translated_and_nothing_else(
    error: Exception, ours: type[Exception]
) -> None:
    with pytest.raises(ours) as raised, devices.translate_errors():
        raise copy.copy(error)
    kept = ours not in (CudaOutOfMemory, DeviceLost)
    assert (raised.value.__cause__ is None) is kept
    assert str(raised.value if kept else raised.value.__cause__) == str(error)


def raise_both(first: Exception, last: Exception) -> None:
    """Raise an error, and another while it is left."""
    with devices.translate_errors():
        try:
            raise copy.copy(first)
        finally:
            raise copy.copy(last)


@pytest.mark.parametrize("last", [*OUT_OF_MEMORY[:2], *LOST[:1], CudaOutOfMemory("x"), *OTHERS])
@pytest.mark.parametrize("first", [LOST[0], LOST[7], DeviceLost("lost")])
def test_a_lost_device_is_lost_whatever_is_raised_last(first: Exception, last: Exception) -> None:
    """What is raised while cleaning up after it hides nothing."""
    with pytest.raises(DeviceLost):
        raise_both(first, last)


@pytest.mark.parametrize("first", OUT_OF_MEMORY[:5])
def test_what_follows_from_too_little_memory_is_no_lost_device(first: Exception) -> None:
    with pytest.raises(ValueError, match="another"):
        raise_both(first, ValueError("another"))


def test_memory_of_a_lost_device_cannot_be_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is said in our words wherever it is tried: by an opening, a job, a release."""

    def fail() -> None:
        raise copy.copy(LOST[0])

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", fail)
    with pytest.raises(DeviceLost):
        devices.free_memory()


def test_what_only_refers_to_itself_is_freed_first() -> None:
    """Its tensors would keep the memory that is to go back."""

    class Ring:
        def __init__(self) -> None:
            self.ring = self

    gc.disable()
    try:
        left = weakref.ref(Ring())
        assert left() is not None
        devices.free_memory()
        assert left() is None
    finally:
        gc.enable()
