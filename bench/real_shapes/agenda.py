"""What one run on a GPU measures, in the order of what matters, and how long each may take."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from bench.real_shapes.job import Case
from worker.engine.quantise import Precision

Kind = Literal["ceiling", "case", "profile", "offload", "memory", "cold", "speech", "generate"]
Side = Literal["plain", "compiled", "merged", "both", "stock"]
# By what a model's entries begin with; nothing for Qwen-Image's.
Subject = Literal["", "flux-2-klein-4b", "flux-2-klein-9b", "orpheus"]

# plain: COMPILE and LIGHTNING_MERGE off; merged: the LoRA added to the weights (bf16) or while they
# are unpacked (4bit); both: compiled and merged; stock: diffusers' pipeline with peft's adapter.
SIDES: Final[tuple[Side, ...]] = ("plain", "compiled", "both", "stock")
# Of a model without a LoRA of its own.
BARE_SIDES: Final[tuple[Side, ...]] = ("plain", "compiled", "stock")
COMPILED: Final = frozenset({"compiled", "both"})
MERGED: Final = frozenset({"merged", "both"})

# Seconds on an H100, the first five measured there for Qwen-Image, for others estimated: a forward
# at 1024 x 1024 by references, what a job takes beside its steps, the compilation of a graph, and
# builds.
FORWARDS: Final[Mapping[Subject, tuple[float, ...]]] = {
    "": (0.22, 0.5, 0.8),
    "flux-2-klein-4b": (0.1, 0.2, 0.35),
    "flux-2-klein-9b": (0.2, 0.45, 0.75),
}
BESIDE: Final = 0.6
COMPILATION: Final = 18.0
BUILDS: Final[Mapping[Subject, Mapping[Precision, float]]] = {
    "": {"bf16": 2.0, "4bit": 11.0, "8bit": 15.0},
    "flux-2-klein-4b": {"bf16": 2.0, "4bit": 4.0, "8bit": 5.0},
    "flux-2-klein-9b": {"bf16": 3.0, "4bit": 9.0, "8bit": 11.0},
    "orpheus": {"bf16": 3.0, "4bit": 4.0, "8bit": 5.0},
}
STOCK_BUILD: Final = 4.0
OTHERS: Final[Mapping[Kind, float]] = {
    "ceiling": 3.0,
    "profile": 15.0,
    "offload": 40.0,
    "memory": 35.0,
    "cold": 180.0,
    "speech": 30.0,
    "generate": 12.0,
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
    subject: Subject = ""

    @property
    def name(self) -> str:
        """Name it as the results and the command line do."""
        words: list[str] = [] if self.precision is None else [self.precision]
        if self.kind != "case":
            words.insert(0, self.kind)
        if self.subject:
            words.insert(0, self.subject)
        if self.value:
            words.append(str(self.value))
        if self.case is not None:
            words += [self.case.name, self.side]
        return "/".join(words)

    @property
    def place(self) -> tuple[str, ...]:
        """Return the keys of its result."""
        if self.kind == "case" and self.case is not None:
            return "cases", f"{self.weights}/{self.case.name}", self.side
        if self.kind == "profile":
            return self.kind, f"{self.weights}/{self.side}"
        if self.kind == "offload":
            # earlier runs have another way to offload, without the word
            return self.kind, f"{self.weights}/streamed"
        return self.kind, str(self.value or self.weights or "all")

    @property
    def weights(self) -> str:
        """Name the weights that it needs, nothing where it needs none."""
        return "/".join(word for word in (self.subject, self.precision) if word)

    def estimate(self, repeats: int) -> float:
        """Return the seconds that it may take, a build of its weights apart."""
        if self.kind != "case" or self.case is None:
            return OTHERS[self.kind] + COMPILATION * self.graphs
        case = self.case
        size = (case.side / 1024) ** 2 * case.batch
        forward = FORWARDS[self.subject][case.references] * size
        forward *= 2.0 if self.precision == "8bit" else 1.0
        jobs = (1 + repeats) * (case.steps * forward + BESIDE * max(1.0, size))
        compiling = COMPILATION * self.graphs
        return jobs + compiling + (STOCK_BUILD if self.side == "stock" else 0.0)

    def estimate_build(self) -> float:
        """Return the seconds that a build of its weights may take."""
        return BUILDS[self.subject][self.precision] if self.precision else 0.0


def _list_sides(precision: Precision, case: Case, *sides: Side) -> Iterator[Entry]:
    """Yield the sides of a case, each that is compiled with a graph of its own."""
    for side in sides:
        yield Entry("case", precision, case, side, graphs=int(side in COMPILED))


def _list_bare(
    subject: Subject, precision: Precision, case: Case, *sides: Side, graphs: int = 0
) -> Iterator[Entry]:
    """Yield the sides of a case of FLUX.2, whose two kinds of blocks have a graph each.

    `graphs` are compiled for this case: all cases share them, but that with weights.
    """
    for side in sides or BARE_SIDES:
        count = graphs if side in COMPILED else 0
        yield Entry("case", precision, case, side, graphs=count, subject=subject)


def _list_first(side: int, steps: int) -> Iterator[Entry]:
    """Yield what matters most of FLUX.2 and Orpheus, of which there are the fewest figures."""
    klein: Subject = "flux-2-klein-4b"
    edit, image = Case(side, 1, steps), Case(side, 0, steps)
    yield from _list_bare(klein, "bf16", edit, graphs=2)
    yield from _list_bare(klein, "bf16", image)
    for precision in ("bf16", "4bit"):
        yield Entry("speech", precision, subject="orpheus")
        yield Entry("generate", precision, subject="orpheus")
    yield from _list_bare(klein, "4bit", edit, graphs=2)
    yield from _list_bare(klein, "4bit", image)


def _list_rest(side: int, steps: int) -> Iterator[Entry]:
    """Yield the others of FLUX.2 and Orpheus."""
    klein: Subject = "flux-2-klein-4b"
    large: Subject = "flux-2-klein-9b"
    edit, image, both = Case(side, 1, steps), Case(side, 0, steps), Case(side, 2, steps)
    weighed = Case(side, 2, steps, weighed=True)
    yield from _list_bare(klein, "bf16", both, "plain", "stock")
    yield from _list_bare(klein, "bf16", weighed, "plain")
    yield from _list_bare(klein, "bf16", both, "compiled", graphs=2)
    yield from _list_bare(klein, "bf16", weighed, "compiled", graphs=2)
    yield Entry("offload", "bf16", edit, subject=klein)
    yield from _list_bare(klein, "8bit", edit, "plain", "compiled", graphs=2)
    yield Entry("speech", "8bit", subject="orpheus")
    yield from _list_bare(large, "bf16", edit, graphs=2)
    yield from _list_bare(large, "bf16", image)
    yield from _list_bare(large, "4bit", edit, graphs=2)
    yield from _list_bare(large, "4bit", image)


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
        *_list_first(side, steps),
        Entry("offload", "bf16", edit, "plain"),
        Entry("cold"),
        *_list_rest(side, steps),
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
        *_list_sides("4bit", edit, "merged"),
    ]
