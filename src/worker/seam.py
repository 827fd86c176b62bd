"""The seam between serving and models: what is asked of a model and what comes back.

Nothing here knows a task, a door or a family: a wish is its task's own frozen value, and a model
reads what its family understands of it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from worker.media.piece import Piece
from worker.settings import Settings

# A part of the work on one wish, by the name that the task gives it: "text", "denoise", "decode".
Phase = str


class Wish(Protocol):
    """One thing to make, as its task froze it: everything resolved, nothing left to choose."""

    @property
    def task(self) -> str:
        """The name of its task."""

    @property
    def seed(self) -> int:
        """What the random numbers start from: the same seed makes the same thing."""


class Offer(Protocol):
    """What one model offers for one task: the task's own plain data, readable without torch."""

    def describe(self, settings: Settings) -> Mapping[str, Any]:
        """Return what op=capabilities reports about it: plain JSON, by public names."""


@dataclass(frozen=True, slots=True)
class Served:
    """What callers may request of one model; `offers` maps the name of each task it can do.

    `working` is what the largest of it takes on the device in addition to the weights, in bytes,
    `kept` what of that stays there between jobs.
    `is_gated` says whether its publisher gives it to those alone who accepted the licence.
    """

    id: str
    repository: str
    revision: str
    precision: str
    licence: str
    offers: Mapping[str, Offer]
    working: int = 0
    kept: int = 0
    is_gated: bool = False

    @property
    def tasks(self) -> tuple[str, ...]:
        """Name the tasks that it can do."""
        return tuple(self.offers)


@dataclass(frozen=True, slots=True)
class Made:
    """One thing made and how: `timings_ms` by phase, `peak_vram_mb` in MiB.

    Where wishes share forwards, the timings are what all of them together have taken by then.
    `found` has fields of its wish that were not known before it was made, with their values.
    """

    piece: Piece
    timings_ms: Mapping[Phase, float]
    peak_vram_mb: int = 0
    warnings: tuple[str, ...] = ()
    found: Mapping[str, Any] = field(default_factory=dict)


# What became of one wish: what was made, or the error that concerns it alone.
Outcome = Made | Exception


def take_made(outcome: Outcome) -> Made:
    """Return what was made; raises the error where there is one instead."""
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def complete_wish(wish: Any, made: Made) -> Any:
    """Return a wish with what was found while it was made."""
    return replace(wish, **made.found) if made.found else wish


class BatchKey(Protocol):
    """What wishes must agree in to share forwards: those of equal keys may.

    Everything that changes a forward's shape or the values that its rows have in common belongs
    into it: a key that lacks something makes wrong pictures. Hashable, compared by value.
    """

    def __hash__(self) -> int: ...

    @property
    def pixels(self) -> int:
        """How many pixels one of the wishes has, for BATCH_MAX_PIXELS; 0 where it makes none."""


class Control(Protocol):
    """How the making of one wish communicates with its job."""

    def report(self, phase: Phase, step: int, steps: int) -> None:
        """Record that `step` of `steps` of a phase is done; raises when the work must stop here."""

    def hand_over(self, part: Piece) -> None:
        """Take a part of what is made, in order, of a wish whose job has it sent meanwhile."""
        del part
        return  # noqa: PLR1711 - mypy takes an empty body for an abstract one


class Unheard(Control):
    """The control of a wish that nothing follows or stops, such as a warm-up's."""

    def report(self, phase: Phase, step: int, steps: int) -> None:
        """Do nothing."""


class Model(Protocol):
    """One open model; used by one thread at a time, and without memory of earlier wishes."""

    @property
    def served(self) -> Served:
        """What callers may request of it."""

    def make_key(self, wish: Any) -> BatchKey | None:
        """Return what another wish must have too to share forwards with it; None: it is alone."""

    def read_ahead(self, wish: Any) -> Any:
        """Return a wish with what it takes of the host alone done for it; in any thread.

        Even of a model that is released meanwhile. `make` does what is missing. Raises
        LoraNotApplied, LoraRefused, LoraFetchFailed.
        """

    def make(self, wishes: Sequence[Any], controls: Sequence[Control]) -> Iterable[Outcome]:
        """Make what is wished, of equal keys, and give each outcome, in order, once it is there.

        `controls` has one per wish; what one of them raises is the outcome of its wish, and ends no
        other. What is raised concerns every wish without an outcome: CudaOutOfMemory, DeviceLost,
        LoraNotApplied; of a wish made alone also BadPicture and what its control raises.
        """

    def warm(self) -> None:
        """Make something small, so that a job finds everything loaded; raises as `make`."""

    def release(self) -> None:
        """Free the device memory; the model cannot be used afterwards.

        Raises DeviceLost when something else still refers to it.
        """


@dataclass(frozen=True, slots=True)
class Openable:
    """A model that can be opened at any time: what it serves, what it takes, and how.

    `parts` maps what identifies a part to its device bytes: models may share parts. `facts` say in
    op=health where it came from. `limit` returns the model with nothing larger to request than what
    so many bytes beside the weights suffice for, if it has a choice.
    """

    served: Served
    parts: Mapping[str, int]
    open: Callable[[], Model]
    facts: Mapping[str, object] = field(default_factory=dict)
    limit: "Callable[[int], Openable] | None" = None


class Models(Protocol):
    """The models of this worker: at least one is warm, others may be swapped in."""

    @property
    def served(self) -> tuple[Served, ...]:
        """Every model that callers may name; the first that can do a task is its default."""

    def take(self, model_id: str) -> Model:
        """Return that model, warm; called only in the lane to the device."""

    def find_open(self, model_id: str) -> Model | None:
        """Return that model where it is warm, in any thread; None: `take` would open it."""

    def list_addable(self, task: str) -> Sequence[str]:
        """Name the models that MODEL may name for a task that none of these can do."""

    def report_health(self) -> Mapping[str, object]:
        """Return what op=health reports: plain JSON, without paths, hosts or secrets."""
