"""What was seen of a case, as a JSON line and a row of a table, and what is wrong with it."""

from typing import Any, Final

from tools.pretend.cases import Case
from tools.pretend.model import RANK
from tools.pretend.run import Seen
from worker.families.qwen_image.planning import SEES_ALL
from worker.families.qwen_image.working import SHOWN_PIXELS, Load, estimate_phases

GIGABYTE: Final = 1e9
HEADER: Final = (
    *("case", "GB of weights", "text", "reference", "denoise", "decode", "working, computed"),
    *("T operations", "kernels", "GB moved", "of it pointwise", "waits in the loop"),
)


def estimate(case: Case) -> dict[str, int]:
    """Return what the worker computes for a case: bytes beside the weights, by phase."""
    is_adapted = not (case.guided or case.opened.is_fused)
    is_first = case.opened.pipeline == SEES_ALL
    return estimate_phases(
        Load(
            case.side**2,
            case.references,
            case.batch,
            adapters=is_adapted,
            ranks=case.loras * RANK,
            precision=case.opened.precision,
            tiled=case.room is not None,
            steps=case.steps,
            prompt_tokens=case.prompt_tokens,
            shown_pixels=1024**2 if is_first else SHOWN_PIXELS,
            begins=bool(case.begins),
            passing=case.opened.is_offloaded,
        )
    )


def find_faults(seen: Seen) -> list[str]:
    """Return what a GPU would trip over, in words; a fault that is known must be there."""
    ledger, computed = seen.ledger, max(estimate(seen.case).values())
    repeated = [f"the host waits in every step: {event}" for event in ledger.list_repeated()]
    mixed = [f"operands on two devices: {event}" for event in ledger.mixed]
    masked = [
        f"a mask reaches attention: {event}" for event in ledger.masked if event.phase == "denoise"
    ]
    found = [fault for fault in [*repeated, *mixed, *masked] if not is_known(fault, seen.case)]
    if seen.case.known and len(found) == len([*repeated, *mixed, *masked]):
        found.append(f"a known fault is gone, so it must not be listed: {seen.case.known}")
    if seen.working > computed:
        peak = max(seen.peaks, key=seen.peaks.__getitem__)
        found.append(f"{peak} takes {seen.working} bytes beside the weights, computed {computed}")
    return found


def is_known(fault: str, case: Case) -> bool:
    """Return whether a fault is the one that a case names as known."""
    return bool(case.known) and case.known in fault


def make_record(seen: Seen) -> dict[str, Any]:
    """Return a case as JSON: bytes, operations and counts, per forward where it says so."""
    ledger, forwards = seen.ledger, seen.forwards
    return {
        "case": seen.case.name,
        "weights": seen.weights,
        "peaks": seen.peaks,
        "places": seen.places,
        "computed": estimate(seen.case),
        "operations_per_forward": ledger.operations["denoise"] // forwards,
        "attention_per_forward": ledger.attention["denoise"] // forwards,
        "kernels_per_forward": ledger.kernels["denoise"] // forwards,
        "moved_per_forward": ledger.moved["denoise"] // forwards,
        "pointwise_per_forward": ledger.pointwise["denoise"] // forwards,
        "operations": dict(ledger.operations),
        "kernels": dict(ledger.kernels),
        "moved": dict(ledger.moved),
        "waits": {str(event): count for event, count in ledger.waits.items()},
        "waits_in_loop": len(ledger.list_repeated()),
        "mixed": {str(event): count for event, count in ledger.mixed.items()},
        "masked": {str(event): count for event, count in ledger.masked.items()},
        "faults": find_faults(seen),
    }


def make_row(record: dict[str, Any]) -> tuple[str, ...]:
    """Return the row of HEADER for a record."""

    def show(count: float, unit: float = GIGABYTE, digits: int = 2) -> str:
        return f"{count / unit:.{digits}f}"

    peaks = record["peaks"]
    phases = [
        show(peaks[phase]) if phase in peaks else ""
        for phase in ("text", "reference", "denoise", "decode")
    ]
    return (
        f"`{record['case']}`",
        show(record["weights"]),
        *phases,
        show(max(record["computed"].values())),
        show(record["operations_per_forward"], 1e12, 1),
        str(record["kernels_per_forward"]),
        show(record["moved_per_forward"], digits=0),
        show(record["pointwise_per_forward"], digits=0),
        str(record["waits_in_loop"]),
    )
