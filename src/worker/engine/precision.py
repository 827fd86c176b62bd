"""Choose the precision of a model from computed sizes, before anything is prepared."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from worker.engine.quantise import PRECISIONS, Precision
from worker.errors import UnfitHost

GIGABYTE: Final = 1_000_000_000
# bf16 arithmetic begins with compute capability 8.0 (CUDA C++ programming guide, table of
# arithmetic instructions); fp16 gives black or NaN pictures, so it is no alternative.
BF16_CAPABILITY: Final = (8, 0)

Mode = Literal["auto", "bf16", "8bit", "4bit"]


@dataclass(frozen=True, slots=True)
class Need:
    """Device bytes of all weights, and of those that must be there while the others wait.

    `waiting` is the word in messages for the others, which may wait in the host's memory.
    """

    whole: int
    least: int
    waiting: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """A precision and the reason; `offload` when what may wait in the host's memory has to."""

    precision: Precision
    reason: str
    offload: bool = False


def choose(
    mode: Mode,
    need: Mapping[Precision, Need],
    *,
    free: int | None,
    capability: tuple[int, int] | None,
    working: Callable[[Precision], int],
    offloaded: Callable[[Precision], int],
) -> Choice:
    """Choose the most exact precision whose weights fit, or check the requested one.

    `need` has every available precision; `free` is the memory in bytes that the device has for a
    model and `capability` its compute capability, both None without a GPU; `working` computes what
    a job takes in addition to the weights, `offloaded` what it takes where some of those wait in
    the host's memory. Raises UnfitHost, which says what to change, when
    nothing fits or the GPU has no bf16.
    """
    if free is None or capability is None:
        if mode != "auto":
            return Choice(mode, f"PRECISION_MODE={mode}")
        return Choice("bf16", "there is no GPU: bf16 is exact and quantised weights are no faster")
    if capability < BF16_CAPABILITY:
        raise UnfitHost(
            f"the GPU has compute capability {capability[0]}.{capability[1]} and no bf16"
            " arithmetic, which this model needs: choose a pool of Ampere or newer"
        )
    every: tuple[Precision, ...] = tuple(p for p in reversed(PRECISIONS) if p in need)
    candidates = every if mode == "auto" else (mode,)
    for precision in candidates:
        if need[precision].whole + working(precision) <= free:
            reason = _describe_fit(need[precision].whole, working(precision), free)
            return Choice(precision, reason)
    last = candidates[-1]
    if need[last].least + offloaded(last) <= free:
        reason = _describe_fit(need[last].least, offloaded(last), free)
        word = need[last].waiting
        return Choice(last, f"{reason} once the {word} waits in the host's memory", True)
    raise UnfitHost(_advise(mode, need, free, working, offloaded))


def _describe_fit(whole: int, working: int, free: int) -> str:
    return f"{_show_gb(whole)} of weights and {_show_gb(working)} to work in fit {_show_gb(free)}"


def _advise(
    mode: Mode,
    need: Mapping[Precision, Need],
    free: int,
    working: Callable[[Precision], int],
    offloaded: Callable[[Precision], int],
) -> str:
    available = [p for p in PRECISIONS if p in need]
    smaller = [p for p in available if need[p].least + offloaded(p) <= free]
    least = need[available[0]].least + offloaded(available[0])
    change = (
        f"set PRECISION_MODE={smaller[-1]}"
        if smaller
        else f"choose a pool with at least {_show_gb(least)} of GPU memory"
    )
    asked: Precision = available[0] if mode == "auto" else mode
    return (
        f"the GPU has {_show_gb(free)} free and the model takes {_show_gb(need[asked].whole)} at"
        f" {asked} and {_show_gb(working(asked))} to work in: {change}"
    )


def _show_gb(count: int) -> str:
    return f"{count / GIGABYTE:.1f} GB"
