"""What was measured: a JSON file that grows, so that a run cut short loses nothing; a table."""

import json
from pathlib import Path
from typing import Any, Final


class Results:
    """The file of one machine's measurements; every `put` is on the disk when it returns."""

    def __init__(self, path: Path, *, again: bool) -> None:
        self.path = path
        self.held: dict[str, Any] = {}
        if path.is_file() and not again:
            self.held = json.loads(path.read_text())

    def has(self, *keys: str) -> bool:
        """Tell whether something was measured already."""
        value: Any = self.held
        for key in keys:
            if not isinstance(value, dict) or key not in value:
                return False
            value = value[key]
        return True

    def put(self, value: Any, *keys: str) -> None:
        """Keep a value under nested keys."""
        place = self.held
        for key in keys[:-1]:
            place = place.setdefault(key, {})
        place[keys[-1]] = value
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.held, indent=2) + "\n")
        part.replace(self.path)


def _case(name: str, sides: dict[str, Any], ceiling: float) -> str:
    ours, fused, stock = (sides.get(side, {}) for side in ("ours", "fused", "stock"))
    if "median_s" not in ours:
        return f"{name:<28} {ours.get('error', 'not measured')}"

    def shown(value: float | None, width: int, digits: int) -> str:
        return f"{value:{width}.{digits}f}" if value is not None else "-".rjust(width)

    ratio = stock["median_s"] / ours["median_s"] if "median_s" in stock else None
    columns = [
        f"{name:<28}",
        *(shown(side.get("median_s"), 8, 3) for side in (stock, ours, fused)),
        shown(ratio, 5, 2),
        *(shown(ours["phases_ms"].get(phase, 0.0), 9, 1) for phase in PHASES),
        shown(ours["phases_ms"]["denoise"] / ours["steps"], 8, 1),
        shown(ours["tflops"], 7, 2),
        shown(100 * ours["tflops"] / ceiling if ceiling else None, 4, 0),
        *(shown(side.get("allocated_gib"), 7, 2) for side in (stock, ours)),
    ]
    return " ".join(columns)


PHASES: Final = ("text", "reference", "denoise", "decode", "png")
HEADS: Final = " ".join(
    [
        f"{'precision/task/steps/batch':<28}",
        *(f"{head:>8}" for head in ("stock s", "ours s", "fused s")),
        "ratio",
        *(f"{phase:>9}" for phase in PHASES),
        f"{'step ms':>8} {'TFLOP/s':>7} {'%':>4} {'stock':>7} {'ours':>7} GiB",
    ]
)


def table(held: dict[str, Any]) -> str:
    """Return what was measured as lines.

    Seconds a job on each side, their ratio stock / ours, then of ours: milliseconds by phase and by
    step, the denoiser's rate and its share of the matrix-multiply ceiling; GiB at the peak.
    """
    ceiling = max(held.get("ceiling", {}).values(), default=0.0)
    lines = [f"machine: {json.dumps(held.get('machine', {}))}"]
    if ceiling:
        lines.append(f"bf16 matrix products, TFLOP/s: {json.dumps(held['ceiling'])}")
    cases = held.get("cases", {})
    if cases:
        lines += [HEADS, *(_case(name, sides, ceiling) for name, sides in cases.items())]
    for part in ("built", "same", "memory", "cold"):
        for name, value in held.get(part, {}).items():
            lines.append(f"{part}: {name}: {json.dumps(value)}")
    return "\n".join(lines)
