"""Import bitsandbytes without the compiler that it does not need, before anything else does."""

from collections.abc import Callable
from typing import Any

import torch


def _as_it_is(function: Callable[..., Any] | None = None, **_: Any) -> Any:
    """Stand in for torch.compile: return the function, or a decorator that does."""
    return function if function is not None else _as_it_is


def load() -> None:
    """Import bitsandbytes with torch.compile switched off for that time.

    Its fallback kernels for exotic devices are compiled by decorators, and the first torch.compile
    of a process imports all of torch._inductor: 3 s of every cold start, for functions that no CUDA
    or CPU job calls.
    """
    compiler = torch.compile
    torch.compile = _as_it_is  # type: ignore[assignment] # for the import alone
    try:
        import bitsandbytes  # type: ignore[import-not-found,import-untyped,unused-ignore] # noqa: F401, PLC0415 - for its effect
    finally:
        torch.compile = compiler
