"""What was measured: a JSON file that grows, so that a run cut short loses nothing; a table."""

import json
from collections.abc import Mapping
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

    def is_measured(self, *keys: str) -> bool:
        """Tell whether something was measured already, and did not fail."""
        value: Any = self.held
        for key in keys:
            value = value.get(key, {})
        return bool(value) and "error" not in value

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


PHASES: Final = ("text", "reference", "denoise", "decode", "png")
HEADS: Final = " ".join(
    [
        f"{'precision/task/steps/batch side':<38}",
        *(f"{head:>8}" for head in ("job s", "step ms", "x floor", "speedup")),
        *(f"{phase:>9}" for phase in PHASES),
        *(f"{head:>8}" for head in ("TFLOP/s", "%", "peak GB", "/ comp.", "differs", "first s")),
        "graphs",
    ]
)


def _show(value: float | None, digits: int, width: int = 8) -> str:
    return f"{value:{width}.{digits}f}" if value is not None else "-".rjust(width)


def _show_row(name: str, found: Mapping[str, Any], before: float | None, ceiling: float) -> str:
    """Return the line of one side; `before` is the seconds of the plain one."""
    if "median_s" not in found:
        return f"{name:<38} {found.get('error', 'not measured')}"
    difference = found.get("difference")
    columns = [
        f"{name:<38}",
        _show(found["median_s"], 3),
        _show(found["step_ms"], 1),
        _show(found.get("of_floor"), 2),
        _show(before / found["median_s"] if before else None, 2),
        *(_show(found["phases_ms"].get(phase), 1, 9) for phase in PHASES),
        _show(found["tflops"], 1),
        _show(100 * found["tflops"] / ceiling if ceiling else None, 0),
        _show(max(found["peaks_gb"].values(), default=None), 2),
        _show(found.get("of_computed"), 2),
        f"{difference:8.1e}" if difference is not None else "-".rjust(8),
        _show(found.get("first_s"), 1),
        str(found.get("graphs", "")) + ("" if found.get("compiled", True) else " plain!"),
    ]
    return " ".join(columns)


def table(held: dict[str, Any]) -> str:
    """Return what was measured as lines.

    Seconds a job, milliseconds a step and that over the computed floor; how much faster than the
    plain side; milliseconds by phase; the denoiser's rate and its share of the ceiling of matrix
    products; the peak beside the weights and that over the computed one; the relative difference
    of the latents from the plain side's; seconds of the first job, compilation included.
    """
    ceiling = max(held.get("ceiling", {}).get("all", {}).values(), default=0.0)
    lines = [f"machine: {json.dumps(held.get('machine', {}))}"]
    if ceiling:
        lines.append(f"bf16 matrix products, TFLOP/s: {json.dumps(held['ceiling']['all'])}")
    cases = held.get("cases", {})
    if cases:
        lines.append(HEADS)
    for name, sides in cases.items():
        before = sides.get("plain", {}).get("median_s")
        lines += [_show_row(f"{name} {each}", sides[each], before, ceiling) for each in sides]
    for part in ("built", "speech", "generate", "offload", "memory", "cold"):
        for name, value in held.get(part, {}).items():
            lines.append(f"{part}: {name}: {json.dumps(value)}")
    return "\n".join(lines)
