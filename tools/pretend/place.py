"""Which line of the worker, or of a library that it called, runs."""

import inspect
from typing import Final

# Whose lines are named: the worker's, or those of the library that it called.
MARKS: Final = ("/src/worker/", "/diffusers/", "/transformers/", "/bitsandbytes/", "/tests/")


def find_place() -> str:
    """Name the line of the worker, or of the library that it called, that runs."""
    frame = inspect.currentframe()
    while frame is not None:
        name = frame.f_code.co_filename
        for mark in MARKS:
            if mark in name:
                package = mark.strip("/").rpartition("/")[2]
                return f"{package}/{name.partition(mark)[2]}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"
