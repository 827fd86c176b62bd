"""CUDA graphs without CUDA: operators are recorded while they are captured, and replayed in place.

As on a device, a capture leaves every tensor as it was, a replay reads and writes the tensors that
were there when it was captured, and whatever waits for a value cannot be captured.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAITING = "aten::_local_scalar_dense"


class RecordedGraph:
    """Stands for torch.cuda.CUDAGraph."""

    captured = 0

    def __init__(self) -> None:
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def pool(self) -> object:
        """Return what names the memory of a graph."""
        return RecordedGraph

    def replay(self) -> None:
        """Run what was captured, its results in the memory that they had."""
        for operator, args, kwargs, results in self.calls:
            found = operator(*args, **kwargs)
            for old, new in zip(tree_leaves(results), tree_leaves(found), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class Recorder(TorchDispatchMode):
    """Records operators, and what the tensors had that they write to."""

    def __init__(self, graph: RecordedGraph) -> None:
        super().__init__()
        self._graph = graph
        self.before: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any | None = None
    ) -> Any:
        """Run an operator and record it."""
        del types
        given = kwargs or {}
        if func._schema.name == WAITING:  # noqa: SLF001 - the only place of its name
            raise RuntimeError("operation not permitted when stream is capturing")
        for place, argument in enumerate(func._schema.arguments):  # noqa: SLF001 - the same
            if argument.alias_info is not None and argument.alias_info.is_write:
                written = args[place] if place < len(args) else given[argument.name]
                self.before.append((written, written.clone()))
        results = func(*args, **given)
        self._graph.calls.append((func, args, given, results))
        return results


@contextmanager
def capture(graph: RecordedGraph, pool: object = None) -> Iterator[None]:
    """Stand for torch.cuda.graph."""
    assert pool in (None, RecordedGraph)
    recorder = Recorder(graph)
    try:
        with recorder:
            yield
    finally:
        for tensor, before in reversed(recorder.before):
            tensor.copy_(before)
    RecordedGraph.captured += 1


def enter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test capture graphs."""
    monkeypatch.setattr(torch.cuda, "CUDAGraph", RecordedGraph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _device: None)
    monkeypatch.setattr(RecordedGraph, "captured", 0)
