"""Import bitsandbytes without what it does not need, before anything else does."""

import logging
import sys
from collections.abc import Callable
from typing import Any, Final

import torch


def _as_it_is(function: Callable[..., Any] | None = None, **_: Any) -> Any:
    """Stand in for torch.compile: return the function, or a decorator that does."""
    return function if function is not None else _as_it_is


# The package that fetches compiled kernels from the hub and runs them: bitsandbytes asks for it
# when it is imported on a CPU with AVX512-BF16, transformers and diffusers know it too.
FETCHER: Final = "kernels"
CPU_LOGGER: Final = "bitsandbytes.backends.cpu.ops"


def _is_no_fetch(record: logging.LogRecord) -> bool:
    """Drop the line in which bitsandbytes asks for `kernels`: it is kept away on purpose."""
    return "kernels-community" not in str(record.msg)


def shut_out() -> None:
    """Let no library of this process import `kernels`, installed or not: nothing is fetched.

    Python's import raises ImportError for a name that is None in sys.modules, and
    importlib.util.find_spec, by which libraries look for it, answers that there is none.
    """
    sys.modules[FETCHER] = None  # type: ignore[assignment] # documented: importlib, sys.modules
    logging.getLogger(CPU_LOGGER).addFilter(_is_no_fetch)


def load() -> None:
    """Import bitsandbytes with torch.compile switched off for that time, and without `kernels`.

    Its fallback kernels for exotic devices are compiled by decorators, and the first torch.compile
    of a process imports all of torch._inductor: 3 s of every cold start, for functions that no CUDA
    or CPU job calls.
    """
    shut_out()
    compiler = torch.compile
    torch.compile = _as_it_is  # type: ignore[assignment] # for the import alone
    try:
        import bitsandbytes  # type: ignore[import-not-found,import-untyped,unused-ignore] # noqa: F401, PLC0415 - for its effect
    finally:
        torch.compile = compiler
