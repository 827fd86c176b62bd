"""A function compiled by torch's inductor: used while that works and agrees, else run as it is."""

import time
from collections.abc import Callable
from types import FunctionType
from typing import Any, Final

import torch
from torch import Tensor

from worker import log
from worker.engine.device import is_out_of_memory

Tensors = tuple[Tensor, ...]

# Largest relative difference of a compiled result: bf16 has 8 bits, and fused kernels round fewer
# intermediate values (5e-3 measured for a transformer of 6 blocks on a CPU).
AGREEMENT: Final = 0.02
# Graphs of one function at most: each adapter, none of them, one picture or several, with a mask or
# without. torch's own limit is 8.
MOST_GRAPHS: Final = 64
LONGEST_REASON: Final = 400  # characters of a compiler's message, whose stack goes on for pages


def compile_for_device(graph: Any, inputs: list[Any]) -> Callable[..., Any]:
    """Compile a graph with inductor."""
    from torch._inductor.compile_fx import compile_fx  # noqa: PLC0415 - takes seconds to import

    compiled: Any = compile_fx(graph, inputs)
    return compiled  # type: ignore[no-any-return] # torch types it by what its options can yield


def configure_compiler() -> None:
    """Set how torch traces graphs, for the whole process."""
    # As dimensions that happen to be equal at first would have to stay equal (duck shapes).
    torch.fx.experimental._config.use_duck_shape = False  # noqa: SLF001 - torch's name for it
    torch._dynamo.config.recompile_limit = MOST_GRAPHS  # noqa: SLF001 - the same
    # Numbers such as a norm's epsilon never change: as variables they would be compiled twice.
    torch._dynamo.config.specialize_float = True  # noqa: SLF001 - the same


class Compiled:
    """A function of tensors, modules and numbers that returns tensors, compiled as one graph.

    All sizes share the graph; another structure of its arguments, as a module with another adapter
    or a batch of more than one, gets its own. The first result of each graph is compared with the
    plain function's. When compiling fails or the two differ by more than `AGREEMENT`, the plain
    function runs from then on, and the log says why once. What the device itself raises is passed
    on: OutOfMemoryError, AcceleratorError.
    """

    def __init__(self, function: Callable[..., Tensors]) -> None:
        self._plain = function
        self._graphs = self._checked = 0
        configure_compiler()
        self._compiled: Callable[..., Tensors] | None = torch.compile(
            _copy(function), backend=self._compile, fullgraph=True, dynamic=True
        )

    @property
    def graphs(self) -> int:
        """Return how many graphs were compiled."""
        return self._graphs

    @property
    def is_active(self) -> bool:
        """Return whether the compiled function is in use."""
        return self._compiled is not None

    def __call__(self, *given: Any) -> Tensors:
        """Return what the function returns for `given`."""
        if self._compiled is None:
            return self._plain(*given)
        start = time.monotonic()
        try:
            found = self._compiled(*given)
        except Exception as error:
            if is_out_of_memory(error) or isinstance(error, torch.AcceleratorError):
                raise
            return self._run_plain(f"{type(error).__name__}: {error}", given)
        if self._graphs == self._checked:
            return found
        expected = self._plain(*given)
        if not all(bool(each.isfinite().all()) for each in expected):
            return expected  # nothing to compare with: the next call's is
        differences = [*map(measure_difference, found, expected)]
        if not all(difference <= AGREEMENT for difference in differences):
            return self._run_plain(f"its results differ by {differences}", given)
        self._checked = self._graphs
        log.get().info(
            "compiled",
            graphs=self._graphs,
            seconds=round(time.monotonic() - start, 1),
            difference=float(f"{max(differences):.2g}"),
        )
        return found

    def _compile(self, graph: Any, inputs: list[Any]) -> Callable[..., Any]:
        self._graphs += 1
        return compile_for_device(graph, inputs)

    def _run_plain(self, reason: str, given: tuple[Any, ...]) -> Tensors:
        self._compiled = None
        reason = " ".join(reason.split())[:LONGEST_REASON]
        log.get().warning("not compiled: running uncompiled, slower", reason=reason)
        return self._plain(*given)


def measure_difference(found: Tensor, expected: Tensor) -> float:
    """Return |found - expected| / |expected|; NaN where `found` is not finite."""
    norm = expected.float().norm()
    return float((found.float() - expected.float()).norm() / norm.clamp(min=1e-30))


def _copy(function: Callable[..., Tensors]) -> Callable[..., Tensors]:
    """Copy a function with its code: torch counts the graphs of each code."""
    assert isinstance(function, FunctionType)  # noqa: S101 - every caller's is one
    return FunctionType(
        function.__code__.replace(),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
