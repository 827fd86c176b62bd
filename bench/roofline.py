"""The least that a forward can take on a card, computed, not measured: python bench/roofline.py.

From the operations and bytes that the pretend device counted (bench/results/pretend.json), at the
rates of the cards' data sheets: products and attention at the dense bf16 rate, and everything else,
whose time is that of its memory traffic, at the bandwidth. Real kernels reach less than both.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

RESULTS: Final = Path(__file__).parent / "results" / "pretend.json"
CASES: Final = ("image-1024-bf16", "edit-1024-1-bf16", "edit-1024-1-bf16-fused", "edit-1024-1-4bit")


@dataclass(frozen=True, slots=True)
class Rates:
    """A card's data sheet: bf16 operations per second, dense, with fp32 sums, and bytes per second.

    `memory` is in bytes.
    """

    operations: float
    bandwidth: float
    memory: float


CARDS: Final[Mapping[str, Rates]] = {
    "H200": Rates(989e12, 4.8e12, 141e9),
    "H100": Rates(989e12, 3.35e12, 80e9),
    "A100": Rates(312e12, 2.039e12, 80e9),
    "L40S": Rates(362e12, 0.864e12, 48e9),
    "4090": Rates(165.2e12, 1.008e12, 24e9),
}


@dataclass(frozen=True, slots=True)
class Floor:
    """Milliseconds of one forward: products with attention, and the traffic of everything else."""

    products: float
    pointwise: float

    @property
    def total(self) -> float:
        """Return the milliseconds of both, one after the other."""
        return self.products + self.pointwise

    @property
    def share(self) -> float:
        """Return the share of the products: what fusing everything else could come to."""
        return self.products / self.total


def compute(record: Mapping[str, Any], card: Rates) -> Floor | None:
    """Return the floor of a case on a card; None where its weights do not fit."""
    if record["weights"] > card.memory:
        return None
    return Floor(
        1000 * record["operations_per_forward"] / card.operations,
        1000 * record["pointwise_per_forward"] / card.bandwidth,
    )


def list_rows() -> Iterator[tuple[str, ...]]:
    """Yield a row per card: the floor of each case in ms, and the share of the products."""
    records = {one["case"]: one for one in json.loads(RESULTS.read_text(encoding="utf-8"))}
    for name, card in CARDS.items():
        floors = [compute(records[case], card) for case in CASES]
        shown = [
            f"{floor.total:.0f} ({floor.share:.0%})" if floor else "no room" for floor in floors
        ]
        yield name, *shown


def main() -> int:
    """Print the table."""
    for row in (("card", *CASES), *list_rows()):
        print(" | ".join(row))
    return 0


if __name__ == "__main__":
    sys.exit(main())
