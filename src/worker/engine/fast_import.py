"""Import bitsandbytes without what it does not need, before anything else imports it."""

import logging
import sys
from collections.abc import Callable
from typing import Any, Final

import torch


def _leave_unchanged(function: Callable[..., Any] | None = None, **_: Any) -> Any:
    """Replace torch.compile: return the function, or a decorator that returns it."""
    return function if function is not None else _leave_unchanged


# The package that fetches compiled kernels from the hub and runs them: bitsandbytes looks for it
# when it is imported on a CPU with AVX512-BF16; transformers and diffusers know it too.
FETCHER: Final = "kernels"
CPU_LOGGER: Final = "bitsandbytes.backends.cpu.ops"


def _is_no_fetch(record: logging.LogRecord) -> bool:
    """Drop the line in which bitsandbytes asks for `kernels`: it is blocked on purpose."""
    return "kernels-community" not in str(record.msg)


def block_fetcher() -> None:
    """Prevent every import of `kernels` in this process, installed or not: nothing is fetched.

    Python's import raises ImportError for a name that is None in sys.modules, and
    importlib.util.find_spec, which libraries look for it with, finds none.
    """
    sys.modules[FETCHER] = None  # type: ignore[assignment] # documented: importlib, sys.modules
    logging.getLogger(CPU_LOGGER).addFilter(_is_no_fetch)


def load() -> None:
    """Import bitsandbytes with torch.compile switched off meanwhile, and without `kernels`.

    Its fallback kernels for exotic devices are compiled by decorators, and the first torch.compile
    of a process imports all of torch._inductor: 3 s of every cold start, for functions that no CUDA
    or CPU job calls.
    """
    block_fetcher()
    compiler = torch.compile
    torch.compile = _leave_unchanged  # type: ignore[assignment] # for the import alone
    try:
        import bitsandbytes  # type: ignore[import-not-found,import-untyped,unused-ignore] # noqa: F401, PLC0415 - for its effect
    finally:
        torch.compile = compiler
