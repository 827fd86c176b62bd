"""What the device reports about itself, and how its failures become our errors."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from worker.errors import CudaOutOfMemory, DeviceLost


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
    """Return unused device memory to the driver."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def translate_errors() -> Iterator[None]:
    """Raise CudaOutOfMemory or DeviceLost where torch raises its own device errors."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise CudaOutOfMemory(
            "the device ran out of memory; request a smaller picture or fewer references, or give"
            " the endpoint a larger GPU"
        ) from error
    except torch.AcceleratorError as error:
        raise DeviceLost("the device stopped answering; this worker will be replaced") from error


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
