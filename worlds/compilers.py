"""Compilers in place of inductor, which takes a GPU or a C++ compiler and many seconds."""

import hashlib
import pickle
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

# A graph without Triton code; since torch 2.13 what is loaded is read as one.
EMPTY = SimpleNamespace(_triton_bundle=None)


def run_as_traced(graph: Any, _inputs: list[Any]) -> Callable[..., Any]:
    """Be a compiler that changes nothing: run the graph as torch traced it."""
    run: Callable[..., Any] = graph.forward
    return run


def run_and_record(graph: Any, inputs: list[Any]) -> Callable[..., Any]:
    """Be such a compiler that gives torch one artifact per graph, as inductor does."""
    from torch._inductor import codecache  # noqa: F401, PLC0415 - registers its kind, in seconds
    from torch.compiler._cache import CacheArtifactManager  # noqa: PLC0415 - the same

    key = "g" + hashlib.sha256(graph.code.encode()).hexdigest()
    CacheArtifactManager.record_artifact("inductor", key, pickle.dumps(EMPTY))
    return run_as_traced(graph, inputs)
