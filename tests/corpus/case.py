"""One bad input and the code it must be answered with."""

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from worlds.site import Site

Family = Literal[
    "job shape",
    "JSON types",
    "number ranges",
    "text",
    "base64",
    "file containers",
    "geometry",
    "bombs",
    "URL syntax",
    "URL behaviour",
    "protocol",
    "upload targets",
    "strengths",
    "masks",
    "margins",
]


@dataclass(frozen=True, slots=True)
class Case:
    """A job, and the only code it may be answered with; None is a picture (odd, but no fault).

    `job` makes the whole job of the SDK (but its id) for a site; `environ` are its own settings.
    """

    family: Family
    name: str
    job: Callable[[Site], dict[str, Any]]
    code: str | None = "INVALID_INPUT"
    environ: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.family}: {self.name}"


def job(given: Any, **beside: Any) -> Callable[[Site], dict[str, Any]]:
    """Return a job with this `input`, whatever the site."""
    return lambda _: {"input": given, **beside}


def draw(**fields: Any) -> Callable[[Site], dict[str, Any]]:
    """Return an otherwise good text-to-image job with these fields."""
    return job({"prompt": "a cat", "seed": 1, **fields})


def edit(data: bytes, **fields: Any) -> Callable[[Site], dict[str, Any]]:
    """Return an otherwise good edit job of this file."""
    return draw(image=base64.b64encode(data).decode("ascii"), **fields)
