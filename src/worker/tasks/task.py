"""What a task is: one kind of request, from the fields of its input to the wish that it becomes."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from worker.edge.fields import CommonInput
from worker.edge.verdict import Verdict
from worker.loras.origin import LoraSource
from worker.media.fetch import ImageSource
from worker.seam import Phase, Served, Wish
from worker.settings import Settings

Warn = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Asked:
    """What a job requests of its task, checked and complete except for what must be fetched.

    `draft` is the wish with all that is known of it: its seed, and what depends on `sources`, come
    later. `prompt` is what the caller wrote, for a log that may include it. `loras` are those whose
    files the field of that name in the wish takes, once they are here. With `streams` the wish has
    a field of that name, and parts of what is made are sent while the rest is made.
    """

    draft: Any
    prompt: str
    sources: tuple[ImageSource, ...] = ()
    loras: tuple[LoraSource, ...] = ()
    streams: bool = False


@dataclass(frozen=True, slots=True)
class Settled:
    """A wish with nothing left open but its seed; `adjusted` maps a field to (asked, done)."""

    wish: Any
    adjusted: Mapping[str, Sequence[Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Span:
    """A phase of making a wish: its share of the progress, and its key in the reply's timings.

    `percent` is how much of the work it is (est.). `steps` names the field of the wish
    with the number of its steps: callers see the steps of that phase counted.
    """

    phase: Phase
    percent: int
    timing: str
    steps: str | None = None


def compare_nothing(values: Any, verdict: Verdict) -> None:
    """Find nothing to compare."""


def keep_values(values: Any, verdict: Verdict) -> Any:
    """Return the values as they were given."""
    del verdict
    return values


async def settle_draft(
    asked: Any, fetched: Sequence[bytes], settings: Settings, warn: Warn
) -> Settled:
    """Settle a wish for which nothing is fetched."""
    del fetched, settings, warn
    return Settled(asked.draft)


@dataclass(frozen=True, slots=True)
class Task:
    """One kind of request, with all that serving it takes.

    `input` has its fields, `wish` is the frozen type that they become. What is made goes into the
    reply under `key`; `noun` is the word for one piece. `formats` maps the words for its formats to
    them, the first being the default; `smaller` are those that a reply which must fit falls back
    to, in order, and `lossless` those without a quality; `advice` says what makes a reply smaller.
    `spans` are the phases of making a wish, in order. `sign` is the field that asks for this task
    where none is named; `unused` are those of `input` that other tasks alone have a use for. A job
    of a task that `is_single` makes one piece, which its reply has without a list around it. The
    wish of one that `has_previews` has a field of that name.

    `reread` puts a value that other APIs write into another field where it belongs. `compare`
    checks fields against each other, before a model is known. `judge` checks them against what a
    model offers. `settle` makes the wish of what was asked and fetched, and may raise InvalidInput;
    both it and `judge` may raise nothing else that is the caller's fault.
    """

    name: str
    input: type[CommonInput]
    wish: type[Wish]
    key: str
    noun: str
    formats: Mapping[str, str]
    spans: tuple[Span, ...]
    judge: Callable[[Any, Served, Verdict, Settings], Asked]
    compare: Callable[[Any, Verdict], None] = compare_nothing
    settle: Callable[[Any, Sequence[bytes], Settings, Warn], Awaitable[Settled]] = settle_draft
    reread: Callable[[Any, Verdict], Any] = keep_values
    smaller: tuple[str, ...] = ()
    lossless: tuple[str, ...] = ()
    advice: str = ""
    sign: str | None = None
    unused: frozenset[str] = frozenset()
    is_single: bool = False
    has_previews: bool = False

    @property
    def default_format(self) -> str:
        """The format where none is named."""
        return next(iter(self.formats))

    @property
    def timings(self) -> Mapping[Phase, str]:
        """The reply's key for the time that each phase took."""
        return {span.phase: span.timing for span in self.spans}

    def count_steps(self, wish: Wish) -> int:
        """Return how many steps a wish takes as callers count them, 1 where none are counted."""
        counted = next((span.steps for span in self.spans if span.steps), None)
        return 1 if counted is None else int(getattr(wish, counted))
