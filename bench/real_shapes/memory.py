"""Does it fit? One model in a 16 GB card, both in a 24 GB card, by a cap on the allocator."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch

from bench.real_shapes import job, measure, ours
from bench.real_shapes.job import Case
from bench.real_shapes.measure import GIB
from bench.real_shapes.shapes import Architecture
from worker.engine.quantise import Precision
from worker.errors import CudaOutOfMemory

if TYPE_CHECKING:
    from bench.real_shapes.warm import Warm

# CUDA's context, its libraries' workspaces and the driver take about this much beside torch's
# allocator (est.), so it gets what the card has less this.
OUTSIDE: Final = 1.0


@dataclass(frozen=True, slots=True)
class Card:
    """A card's memory in GiB and the models that it shall serve: edit, text-to-image."""

    gib: float
    edits: tuple[bool, ...]

    @property
    def name(self) -> str:
        """Name it as the results do."""
        return f"{self.gib:g}gib-{'both' if len(self.edits) > 1 else 'edit'}"


CARDS: Final = (Card(16, (True,)), Card(24, (True, False)))


@contextmanager
def capped(device: torch.device, gib: float) -> Iterator[None]:
    """Let torch allocate no more than `gib` on the device; nothing is capped on a CPU."""
    if device.type != "cuda":
        yield
        return
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(min(1.0, gib * GIB / total), device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def fits(
    architecture: Architecture, card: Card, precision: Precision, device: torch.device
) -> dict[str, Any]:
    """Open and use the models of a card under its cap; return the peak, or how far it came."""
    report: dict[str, Any] = {"precision": precision}
    if device.type == "cuda":
        report |= {"cap_gib": card.gib - OUTSIDE, "fits": False}
    models: list[Warm] = []
    lent = None
    peak = 0
    with capped(device, card.gib - OUTSIDE):
        measure.free(device)
        try:
            for edit in card.edits:
                parts = ours.components(
                    architecture,
                    edit=edit,
                    precision=precision,
                    device=device,
                    steps=ours.STEPS[1:],
                    lent=lent,
                )
                models.append(ours.open_model(architecture, parts, edit=edit, precision=precision))
                lent = ours.Lent(parts.text_encoder, parts.vae)
            report["weights_gb"] = round(measure.held(device) / 1e9, 3)
            for model, edit in zip(models, card.edits, strict=True):
                for references in (1, 2) if edit else (0,):
                    case = Case(architecture.small, references, ours.STEPS[1])
                    spent = model.job(case, next(job.inputs(case)))
                    peak = max(peak, *spent.peaks.values())
                    report[case.name] = "drawn"
            if device.type == "cuda":
                report["fits"] = True
        except (CudaOutOfMemory, torch.OutOfMemoryError):
            report["out_of_memory"] = True
    return report | {"peak_gb": round(peak / 1e9, 3)}
