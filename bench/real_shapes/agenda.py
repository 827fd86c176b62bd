"""What one run on a GPU measures, in the order of what matters, and how long each may take."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from bench.real_shapes.job import Case
from worker.engine.quantise import Precision

Kind = Literal["ceiling", "case", "profile", "offload", "memory", "cold"]
Side = Literal["plain", "compiled", "merged", "both", "stock"]

# plain: COMPILE and LIGHTNING_MERGE off; merged: the LoRA added to the weights (bf16) or while they
# are unpacked (4bit); both: compiled and merged; stock: diffusers' pipeline with peft's adapter.
SIDES: Final[tuple[Side, ...]] = ("plain", "compiled", "both", "stock")
COMPILED: Final = frozenset({"compiled", "both"})
MERGED: Final = frozenset({"merged", "both"})

# Seconds on an H100, the first five measured there: a forward at 1024 x 1024 with and without a
# reference, what a job takes beside its steps, the compilation of a graph, and builds.
FORWARD: Final = {True: 0.5, False: 0.22}
BESIDE: Final = 0.6
COMPILATION: Final = 18.0
BUILD: Final[dict[Precision, float]] = {"bf16": 2.0, "4bit": 11.0, "8bit": 15.0}
STOCK_BUILD: Final = 4.0
OTHERS: Final[dict[Kind, float]] = {
    "ceiling": 3.0,
    "profile": 15.0,
    "offload": 40.0,
    "memory": 35.0,
    "cold": 180.0,
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing to measure; `precision` is that of the weights it needs, None where it needs none.

    `value` is the card of a memory cap in GiB. `graphs` are the graphs that are compiled for it,
    those of earlier entries apart.
    """

    kind: Kind
    precision: Precision | None = None
    case: Case | None = None
    side: Side = "plain"
    value: int = 0
    graphs: int = 0

    @property
    def name(self) -> str:
        """Name it as the results and the command line do."""
        words: list[str] = [] if self.precision is None else [self.precision]
        if self.kind != "case":
            words.insert(0, self.kind)
        if self.value:
            words.append(str(self.value))
        if self.case is not None:
            words += [self.case.name, self.side]
        return "/".join(words)

    @property
    def place(self) -> tuple[str, ...]:
        """Return the keys of its result."""
        if self.kind == "case" and self.case is not None:
            return "cases", f"{self.precision}/{self.case.name}", self.side
        if self.kind == "profile":
            return self.kind, f"{self.precision}/{self.side}"
        return self.kind, str(self.value or self.precision or "all")

    def estimate(self, repeats: int) -> float:
        """Return the seconds that it may take, a build of its weights apart."""
        if self.kind != "case" or self.case is None:
            return OTHERS[self.kind] + COMPILATION * self.graphs
        case = self.case
        size = (case.side / 1024) ** 2 * case.batch
        forward = FORWARD[case.edit] * size * (2.0 if self.precision == "8bit" else 1.0)
        jobs = (1 + repeats) * (case.steps * forward + BESIDE * max(1.0, size))
        compiling = COMPILATION * self.graphs
        return jobs + compiling + (STOCK_BUILD if self.side == "stock" else 0.0)


def _list_sides(precision: Precision, case: Case, *sides: Side) -> Iterator[Entry]:
    """Yield the sides of a case, each that is compiled with a graph of its own."""
    for side in sides:
        yield Entry("case", precision, case, side, graphs=int(side in COMPILED))


def _list_batches(side: int, steps: int) -> Iterator[Entry]:
    """Yield text to image at half and at full size, one by one and several at once."""
    sizes = [(half, batch) for half in (side // 2,) for batch in (1, 2, 4)]
    sizes += [(side, 2), (side, 4)]
    for pixels, batch in sizes:
        yield Entry("case", "bf16", Case(pixels, 0, steps, batch), "plain")
    for index, (pixels, batch) in enumerate([(side, 2), (side, 4), *sizes[:3]]):
        # one graph for one picture, from before, and one for several
        case = Case(pixels, 0, steps, batch)
        yield Entry("case", "bf16", case, "compiled", graphs=int(index == 0))


def list_entries(side: int, steps: int) -> list[Entry]:
    """Return everything, the most important first; `side` is the usual one in pixels."""
    edit, image = Case(side, 1, steps), Case(side, 0, steps)
    return [
        Entry("ceiling"),
        *_list_sides("bf16", edit, *SIDES),
        *_list_sides("4bit", edit, *SIDES),
        *_list_sides("4bit", image, *SIDES),
        *_list_sides("bf16", image, *SIDES),
        *_list_sides("8bit", edit, "plain", "compiled"),
        Entry("memory", value=16),
        Entry("memory", value=24),
        *_list_batches(side, steps),
        Entry("profile", "bf16", edit, "plain"),
        Entry("profile", "bf16", edit, "compiled", graphs=1),
        *_list_sides("bf16", edit, "merged"),
        Entry("offload", "bf16", edit, "plain"),
        *_list_sides("4bit", edit, "merged"),
        Entry("cold"),
    ]
