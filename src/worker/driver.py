"""What the NVIDIA driver reports about itself and its GPUs, through NVML: without torch or CUDA.

NVML (libnvidia-ml.so.1) comes with the driver, needs no context on the device, and answers where
torch only says that CUDA is not available, for example with a driver that is too old.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

LIBRARY: Final = "libnvidia-ml.so.1"
# Taken of a GPU's memory by no tensor: CUDA's context and kernels, the workspaces of cuBLAS and
# cuDNN, what the allocator cannot use of its blocks (est.).
CONTEXT_BYTES: Final = 1_000_000_000
# nvml.h gives both buffer sizes
VERSION_LENGTH: Final = 80
NAME_LENGTH: Final = 96


class _Memory(ctypes.Structure):
    """nvmlMemory_t: bytes."""

    _fields_ = (
        ("total", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    )


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU: its name, compute capability, and memory in bytes."""

    name: str
    capability: tuple[int, int]
    total: int
    free: int

    @property
    def room(self) -> int:
        """The bytes for models and their jobs: what is free, less what CUDA takes for itself."""
        return self.free - CONTEXT_BYTES


@dataclass(frozen=True, slots=True)
class Driver:
    """The driver's version ("580.65.06"), the newest CUDA that it supports, and its GPUs."""

    version: str
    cuda: tuple[int, int]
    gpus: tuple[Gpu, ...]


class DriverError(Exception):
    """The driver is installed but does not answer; the message is NVML's own."""


def query_driver(load: Callable[[str], Any] = ctypes.CDLL) -> Driver | None:
    """Query the driver; None if this machine has none. Raises DriverError.

    Every structure and return code is NVML's (nvml.h); `load` opens a shared library by name.
    """
    try:
        nvml = load(LIBRARY)
    except OSError:
        return None
    nvml.nvmlErrorString.restype = ctypes.c_char_p

    def call(name: str, *arguments: Any) -> None:
        code = getattr(nvml, name)(*arguments)
        if code:
            raise DriverError(nvml.nvmlErrorString(code).decode())

    call("nvmlInit_v2")
    try:
        version = ctypes.create_string_buffer(VERSION_LENGTH)
        call("nvmlSystemGetDriverVersion", version, VERSION_LENGTH)
        cuda = ctypes.c_int()
        call("nvmlSystemGetCudaDriverVersion_v2", ctypes.byref(cuda))
        count = ctypes.c_uint()
        call("nvmlDeviceGetCount_v2", ctypes.byref(count))
        gpus = []
        for index in range(count.value):
            handle = ctypes.c_void_p()
            call("nvmlDeviceGetHandleByIndex_v2", index, ctypes.byref(handle))
            name = ctypes.create_string_buffer(NAME_LENGTH)
            call("nvmlDeviceGetName", handle, name, NAME_LENGTH)
            major, minor = ctypes.c_int(), ctypes.c_int()
            call(
                "nvmlDeviceGetCudaComputeCapability",
                handle,
                ctypes.byref(major),
                ctypes.byref(minor),
            )
            memory = _Memory()
            call("nvmlDeviceGetMemoryInfo", handle, ctypes.byref(memory))
            capability = (major.value, minor.value)
            gpus.append(Gpu(name.value.decode(), capability, memory.total, memory.free))
    finally:
        nvml.nvmlShutdown()
    # 13020 is CUDA 13.2 (nvml.h)
    newest = (cuda.value // 1000, cuda.value % 1000 // 10)
    return Driver(version.value.decode(), newest, tuple(gpus))
