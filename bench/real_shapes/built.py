"""One precision's weights on the device, and every way of running them: all share the tensors."""

from dataclasses import replace
from typing import Any

import torch

from bench.real_shapes import measure, ours, switches
from bench.real_shapes.agenda import COMPILED, MERGED, Side
from bench.real_shapes.ours import Ours
from bench.real_shapes.shapes import Architecture
from bench.real_shapes.stock import Stock
from worker.engine.compiled import Compiled
from worker.engine.quantise import Precision

MOST_ROWS = 4  # of a batch, for which the blocks are compiled


class Built:
    """The weights of a precision; `seconds` and `held` bytes are what building them took."""

    def __init__(
        self, architecture: Architecture, precision: Precision, device: torch.device, steps: int
    ) -> None:
        self._architecture = architecture
        self._precision = precision
        self._device = device
        self._steps = steps
        self._merged = False
        self._models: dict[tuple[bool, bool], Ours] = {}
        edit = ours.components(
            architecture, edit=True, precision=precision, device=device, steps=(steps,)
        )
        self._parts = {True: edit, False: ours.share(architecture, edit, edit=False)}

    def choose(self, side: Side, *, edit: bool) -> Any:
        """Return the model of a side, switched as the side says."""
        self._set_merged(merged=side in MERGED)
        if side == "stock":
            return Stock(
                self._architecture,
                self._parts[edit],
                edit=edit,
                precision=self._precision,
                steps=self._steps,
            )
        return self._find(edit=edit, compiled=side in COMPILED)

    def find_plain(self, *, edit: bool) -> Ours:
        """Return the uncompiled model of a task, switched as it is."""
        return self._find(edit=edit, compiled=False)

    def _find(self, *, edit: bool, compiled: bool) -> Ours:
        """Return a model, whose graphs are kept from one call to the next."""
        key = edit, compiled
        if key not in self._models:
            # a Forward is made with the parts
            parts = replace(self._parts[edit], compiled_batch=MOST_ROWS if compiled else 0)
            self._models[key] = Ours(
                self._architecture, parts, edit=edit, precision=self._precision
            )
        return self._models[key]

    def _set_merged(self, *, merged: bool) -> None:
        """Add the LoRA to the weights or put it beside them: both tasks share the modules."""
        if merged != self._merged:
            (switches.merge if merged else switches.split)(self._parts[True])
            self._merged = merged
        measure.free(self._device)

    def offload(self) -> None:
        """Move the text encoder to the host, for good."""
        self._parts[True].text_encoder.to("cpu")
        measure.free(self._device)


def describe_graphs(model: Any) -> dict[str, Any]:
    """Return how many graphs a model's blocks have and whether they are in use; {} where none."""
    run = getattr(getattr(getattr(model, "parts", None), "forward", None), "_run_block", None)
    if not isinstance(run, Compiled):
        return {}
    return {"graphs": run.graphs, "compiled": run.is_active}
