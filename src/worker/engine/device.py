"""What the device reports about itself, and how its failures become our errors."""

import gc
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch

from worker.errors import CudaOutOfMemory, DeviceLost

# cudaErrorMemoryAllocation, which no context is lost by.
OUT_OF_MEMORY_CODE: Final = 2
# How the libraries below torch report too little memory, in RuntimeErrors of any kind. cuDNN's
# convolutions try one engine after another, so what they report at last is that none was left;
# INTERNAL_ERROR and NOT_INITIALIZED come where a library or its handle found no room. A context
# that is lost in truth shows when the phase waits for the device.
OUT_OF_MEMORY: Final = re.compile(
    r"CUDA out of memory|(CUDA error|CUDA driver error|Triton Error \[CUDA\]): out of memory"
    r"|CUBLAS_STATUS_(ALLOC_FAILED|NOT_INITIALIZED)"
    r"|CUDNN_STATUS_(ALLOC_FAILED|NOT_INITIALIZED|INTERNAL_ERROR)"
    r"|unable to find an engine to execute this computation"
)
# How they report that the context is lost, where torch raises no AcceleratorError.
LOST: Final = re.compile(
    r"(CUDA error|CUDA driver error|Triton Error \[CUDA\]): (?!CUBLAS_STATUS|CUSOLVER_STATUS)"
    r"|CUBLAS_STATUS_(EXECUTION_FAILED|INTERNAL_ERROR|MAPPING_ERROR)"
    r"|CUDNN_STATUS_(EXECUTION_FAILED|MAPPING_ERROR)"
)


def limit_threads(device: torch.device) -> None:
    """Use one thread where the CPU is the device.

    Only the embedded models run there: at their size a second thread gains nothing on an idle
    machine, and on a busy one the threads wait for each other (measured on 2 shared cores, 8 steps
    at 96x96: 0.15 s with one thread, 4.2 s with two). It also makes results independent of the
    number of cores.
    """
    if device.type == "cpu":
        torch.set_num_threads(1)


def free_memory() -> None:
    """Return unused device memory to the driver; raises DeviceLost."""
    gc.collect()
    if torch.cuda.is_available():
        with translate_errors():
            torch.cuda.empty_cache()


def count_free_bytes(device: torch.device) -> int | None:
    """Return the bytes that can be allocated, in pieces: the driver's and those that torch keeps.

    None on a CPU.
    """
    if device.type != "cuda":
        return None
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0] + unused)


@contextmanager
def translate_errors() -> Iterator[None]:
    """Raise CudaOutOfMemory or DeviceLost where torch raises its own device errors.

    What is raised while a lost device is left, whatever it is, becomes DeviceLost too: cleaning up
    after it fails in ways of its own.
    """
    try:
        yield
    except DeviceLost:
        raise
    except Exception as error:
        if any(_is_lost(each) for each in _list_causes(error)):
            raise DeviceLost(
                "the device stopped answering; this worker will be replaced"
            ) from error
        if not is_out_of_memory(error):
            raise
        raise CudaOutOfMemory(
            "the device ran out of memory; request a smaller picture or fewer references, or give"
            " the endpoint a larger GPU"
        ) from error


def _list_causes(error: BaseException) -> list[BaseException]:
    """Return an error and all that were being handled when it was raised."""
    found: list[BaseException] = []
    left: list[BaseException | None] = [error]
    while left:
        each = left.pop()
        if each is not None and all(each is not other for other in found):
            found.append(each)
            left += [each.__cause__, each.__context__]
    return found


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error of torch says that the device has too little memory."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    if getattr(error, "error_code", None) == OUT_OF_MEMORY_CODE:
        return True
    return isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(str(error)) is not None


def _is_lost(error: BaseException) -> bool:
    if is_out_of_memory(error):
        return False
    if isinstance(error, torch.AcceleratorError | DeviceLost):
        return True
    return isinstance(error, RuntimeError) and LOST.search(str(error)) is not None


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def read_peak_mb(device: torch.device) -> int:
    """Return the peak of allocated device memory since the last reset, in MiB; 0 on a CPU."""
    if device.type != "cuda":
        return 0
    return int(torch.cuda.max_memory_allocated(device) >> 20)


def reset_peak(device: torch.device) -> None:
    """Restart the measurement of the peak."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
