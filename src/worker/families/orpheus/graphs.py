"""CUDA graphs of a step: captured once per length and replayed; elsewhere it just runs."""

from collections.abc import Callable, Iterable
from typing import Any

import torch

from worker import log
from worker.engine.device import is_out_of_memory


class Graphs:
    """The graphs of one step, by the length that it is for.

    A step must compute the same again when it runs again: it may change only what `run` says. What
    cannot be captured runs as it is from then on, and the log says why once.
    """

    def __init__(self, device: torch.device) -> None:
        self._works = device.type == "cuda"
        self._device = device
        self._graphs: dict[int, Any] = {}
        self._pool: Any = None

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._graphs)

    def stop(self) -> None:
        """Run every step as it is from now on."""
        self._works = False
        self._graphs.clear()

    def capture(self, lengths: Iterable[int], step: Callable[[int], None]) -> None:
        """Capture a step of each length that has no graph; it also runs. Elsewhere do nothing.

        The longest is the first: the others find room in the memory that it has left.
        """
        for length in sorted(lengths, reverse=True):
            if self._works and length not in self._graphs:
                self.run(length, step)

    def run(self, length: int, step: Callable[[int], None]) -> None:
        """Run a step of a length; on CUDA by its graph."""
        if not self._works:
            step(length)
            return
        graph = self._graphs.get(length)
        if graph is None:
            # The step itself runs first, as it is: what it needs is loaded then, and its result is
            # the one that counts. A capture runs nothing.
            step(length)
            self._record(length, step)
            return
        graph.replay()

    def _record(self, length: int, step: Callable[[int], None]) -> None:
        try:
            graph = torch.cuda.CUDAGraph()
            torch.cuda.synchronize(self._device)
            with torch.cuda.graph(graph, pool=self._pool):
                step(length)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            # whatever a library raises that cannot be captured
            self.stop()
            reason = f"{type(error).__name__}: {error}"[:200]
            log.get().warning("steps run without graphs", reason=reason)
            return
        self._pool = graph.pool()
        self._graphs[length] = graph
