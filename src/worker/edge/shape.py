"""The shape of a job's input before its fields are looked at: one object, given once."""

from collections.abc import Container
from typing import Any, Final

from worker.edge.fields import show

EXAMPLE: Final = '{"input": {"prompt": "a cat"}}'


def find_fault(job_input: Any, words: Container[str]) -> str | None:
    """Return why this is not an object of fields, None when it is one.

    `words` are those of which one must be given. An object with none of them that has
    another object as `input` is a doubled one. A string there, unless it is an object written as
    text, is an unknown field like any other.
    """
    if _is_written(job_input):
        return f"must be an object, and is one written as a string; send {EXAMPLE}"
    if isinstance(job_input, list):
        return f"must be an object, not a list; send one job for each, as in {EXAMPLE}"
    if not isinstance(job_input, dict):
        return f"must be an object, as in {EXAMPLE} (got {show(job_input)})"
    inner = job_input.get("input")
    if (isinstance(inner, dict | list) or _is_written(inner)) and not _is_request(job_input, words):
        return f"is doubled: the job's input contains another `input`; send {EXAMPLE}"
    return None


def _is_request(given: dict[Any, Any], words: Container[str]) -> bool:
    """Return whether an input requests something, whatever its own `input` is."""
    return any(
        value is not None and word in words and word != "input" for word, value in given.items()
    )


def _is_written(value: Any) -> bool:
    """Return whether this is an object written as text, by its ends: parsing could take long."""
    if not isinstance(value, str):
        return False
    return value.lstrip().startswith("{") and value.rstrip().endswith("}")
