"""Time and memory on a device, its matrix-multiply ceiling, and the work of a forward."""

import gc
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from worker.engine.device import reset_peak, synchronize
from worker.families.clock import Clock
from worker.seam import Phase

GIB = 1 << 30


def seconds(device: torch.device, work: Callable[[], Any]) -> float:
    """Return the wall time of work, from an idle device to an idle device."""
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


def free(device: torch.device) -> None:
    """Give memory that nothing holds any more back to the driver."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def held(device: torch.device) -> int:
    """Return the bytes of device memory that are allocated; zero on a CPU."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def peak(device: torch.device) -> int:
    """Return the peak of allocated bytes since the last reset; zero on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


@dataclass(slots=True)
class PeakClock(Clock):
    """A clock that also keeps the peak of allocated bytes of each phase."""

    peaks: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def measure_phase(self, name: Phase) -> Iterator[None]:
        """Add what runs inside to a phase."""
        reset_peak(self.device)
        try:
            with Clock.measure_phase(self, name):
                yield
        finally:
            self.peaks[name] = max(self.peaks.get(name, 0), peak(self.device))


@dataclass(slots=True)
class Spent:
    """What one job took: milliseconds and the peak of allocated bytes, each by phase."""

    phases: dict[str, float]
    peaks: dict[str, int]


def machine(device: torch.device) -> dict[str, Any]:
    """Say what this was measured on."""
    facts: dict[str, Any] = {
        "device": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "device": properties.name,
            "memory_gib": round(properties.total_memory / GIB, 1),
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
        }
    return facts


@dataclass(frozen=True, slots=True)
class Product:
    """A matrix product [m, k] x [k, n]."""

    m: int
    k: int
    n: int


def ceiling(device: torch.device, products: list[Product], *, repeats: int) -> dict[str, float]:
    """Return the bf16 TFLOP/s of matrix products on random operands; the median of `repeats`.

    Random and not zeros: zeros switch fewer transistors and run faster than any real product.
    """
    rates = {}
    for product in products:
        left = torch.randn(product.m, product.k, dtype=torch.bfloat16, device=device)
        right = torch.randn(product.k, product.n, dtype=torch.bfloat16, device=device)
        out = torch.empty(product.m, product.n, dtype=torch.bfloat16, device=device)
        calls = 10 if device.type == "cuda" else 1

        def work(left: Any = left, right: Any = right, out: Any = out, calls: int = calls) -> None:
            for _ in range(calls):
                torch.matmul(left, right, out=out)

        for _ in range(2):
            seconds(device, work)
        taken = statistics.median(seconds(device, work) for _ in range(repeats)) / calls
        flops = 2 * product.m * product.k * product.n
        rates[f"{product.m}x{product.k}x{product.n}"] = round(flops / taken / 1e12, 3)
    return rates


def kernels(device: torch.device, work: Callable[[], Any], most: int = 40) -> dict[str, Any]:
    """Return what took longest on the device while `work` ran: milliseconds and calls by name."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=kinds) as watched:
        seconds(device, work)
    spent = {}
    for event in watched.key_averages():
        own = event.self_cpu_time_total
        if device.type == "cuda":
            own = event.self_device_time_total
        spent[event.key] = {"ms": round(own / 1000, 3), "calls": event.count}
    longest = sorted(spent.items(), key=lambda item: -item[1]["ms"])[:most]
    return dict(longest)


def forward_flops(
    *,
    blocks: int,
    dim: int,
    image_tokens: int,
    text_tokens: int,
    rank: int,
    batch: int,
    products: int = 24,
) -> float:
    """Return the floating-point operations of one forward of the denoiser.

    A token of either stream passes four dim x dim projections and an MLP of 4 dim: 12 dim^2
    multiply-adds, 24 dim^2 operations; attention costs 4 dim a pair of tokens; a LoRA of rank r
    beside all of them 36 r dim a token. Norms, embeddings and modulation are left out (below 1 %).
    `products` is 26 where the MLP has a gate and is 3 dim wide, as in FLUX.2's blocks.
    """
    tokens = image_tokens + text_tokens
    linear = products * dim**2 * tokens + 36 * rank * dim * tokens
    attention = 4 * dim * tokens**2
    return float(batch * blocks * (linear + attention))
