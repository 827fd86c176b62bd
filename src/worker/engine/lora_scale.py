"""The scale of a LoRA, from its alpha, its rank and what its file states beside the weights.

peft multiplies B(A(x)) by alpha / r, or by alpha / sqrt(r) where `use_rslora` is set
(peft/tuners/lora/layer.py, update_layer); `rank_pattern` and `alpha_pattern` give single modules
their own (peft/utils/other.py, get_pattern_key).
"""

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import regex

from worker.errors import LoraNotApplied

# Where diffusers' save_lora_weights and save_lora_adapter keep peft's configuration.
RECORD: Final = "lora_adapter_metadata"
# The prefix that save_lora_weights gives each of its entries; save_lora_adapter gives none.
COMPONENT_PREFIX: Final = "transformer."
# The file that peft's save_pretrained writes next to the weights.
ADAPTER_CONFIG: Final = "adapter_config.json"
ALPHA_FIELD: Final = "lora_alpha"
FIELDS: Final = (ALPHA_FIELD, "r", "use_rslora", "rank_pattern", "alpha_pattern")
# Initialisations that change the base's weights: such an adapter belongs to weights unlike ours.
CHANGED_BASES: Final = ("pissa", "olora", "corda", "loftq", "lora_ga")
WORDS: Final = {"True": True, "False": False, "None": None}
# Patterns are regular expressions from an unknown author: none may block the worker.
LONGEST_PATTERN: Final = 500  # characters; the longest module name has 60
PATTERNS_S: Final = 10.0
LEAST_S: Final = 0.001
# The relative error of a number that was written as JSON or float32.
EXACT: Final = 1e-6

Pattern = tuple[Any, float]


@dataclass(frozen=True, slots=True)
class Stated:
    """What one source (`name`, for messages) states about every module's alpha and rank.

    `rank` is None where none is stated; `ranks` and `alphas` are patterns of module names.
    """

    name: str
    alpha: float
    rank: float | None
    root: bool
    ranks: tuple[Pattern, ...]
    alphas: tuple[Pattern, ...]

    def compute_scale(self, module: str, rank: int, until: float) -> float:
        """Return the scale of a module whose A has `rank` rows.

        Raises LoraNotApplied when another rank is stated (peft cannot load such a file either),
        and when matching the patterns takes longer than `until` (time.monotonic).
        """
        known = self._match(self.ranks, module, until)
        known = self.rank if known is None else known
        if known is not None and known != rank:
            raise LoraNotApplied(f"{module} has rank {rank}, but {known:g} by {self.name}")
        alpha = self._match(self.alphas, module, until)
        alpha = self.alpha if alpha is None else alpha
        return alpha / (math.sqrt(rank) if self.root else rank)

    def _match(self, patterns: tuple[Pattern, ...], module: str, until: float) -> float | None:
        try:
            for pattern, value in patterns:
                left = until - time.monotonic()
                if pattern.match(module, timeout=max(left, LEAST_S)):
                    return value
        except TimeoutError:
            raise LoraNotApplied(f"the patterns of {self.name} take too long to match") from None
        return None


@dataclass(frozen=True, slots=True)
class Own:
    """A module's rank and its own alpha, None without one.

    `rounding` is the relative error of the alpha, due to its number format.
    """

    rank: int
    alpha: float | None = None
    rounding: float = EXACT


def read_stated(metadata: Mapping[str, str] | None, configuration: bytes | None) -> list[Stated]:
    """Return every source that states the scales of a complete file, by falling priority.

    `metadata` is the safetensors header's, `configuration` the adapter_config.json next to the
    file. `ss_network_alpha` describes the training, not a scale: ComfyUI and diffusers use the
    modules' own alpha. Raises LoraNotApplied for a source that cannot be read: its scale would be
    a guess.
    """
    entries = metadata or {}
    found = []
    if RECORD in entries:
        name = f"the metadata's {RECORD}"
        found.append(_read(_pick_own(_parse_object(entries[RECORD], name)), name))
    if ALPHA_FIELD in entries:
        name = f"the metadata's {ALPHA_FIELD}"
        found.append(_read({k: _parse(entries[k], name) for k in FIELDS if k in entries}, name))
    if configuration is not None:
        found.append(_read(_parse_object(configuration, ADAPTER_CONFIG), ADAPTER_CONFIG))
    return found


def pick_relevant(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the entries of a header's metadata that `read_stated` reads."""
    keys = (RECORD, *FIELDS) if ALPHA_FIELD in metadata else (RECORD,)
    return {key: metadata[key] for key in keys if key in metadata}


def compute_scales(modules: Mapping[str, Own], sources: Sequence[Stated] = ()) -> dict[str, float]:
    """Return every module's scale: its own alpha / rank, else the first source's, else 1.

    Raises LoraNotApplied when two of them disagree.
    """
    until = time.monotonic() + PATTERNS_S
    found = {}
    for module, own in modules.items():
        known = {} if own.alpha is None else {"its own alpha": own.alpha / own.rank}
        known |= {source.name: source.compute_scale(module, own.rank, until) for source in sources}
        first = next(iter(known), None)
        scale = 1.0 if first is None else known[first]
        for name, other in known.items():
            if not math.isclose(scale, other, rel_tol=own.rounding):
                raise LoraNotApplied(
                    f"the scale of {module} is {scale:g} by {first} and {other:g} by {name}"
                )
        found[module] = scale
    return found


def _read(record: Mapping[str, Any], name: str) -> Stated:
    kind, start, root = (record.get(k) for k in ("peft_type", "init_lora_weights", "use_rslora"))
    if kind not in (None, "LORA"):
        raise LoraNotApplied(f"{name} describes no LoRA but {str(kind)[:40]!a}")
    if record.get("use_dora"):
        raise LoraNotApplied(f"{name} describes DoRA, which is not served")
    if isinstance(start, str) and start.lower().startswith(CHANGED_BASES):
        raise LoraNotApplied(f"{name} describes {start[:40]!a}: it belongs to a changed base")
    if not (root is None or isinstance(root, bool)):
        raise _make_error(name, "use_rslora")
    ranks = _compile_patterns(record.get("rank_pattern"), name, "rank_pattern")
    alphas = _compile_patterns(record.get("alpha_pattern"), name, "alpha_pattern")
    return Stated(
        name=name,
        alpha=_parse_number(record.get(ALPHA_FIELD), name, ALPHA_FIELD),
        rank=_parse_rank(record["r"], name, "r") if "r" in record else None,
        root=bool(root),
        ranks=tuple(
            (pattern, _parse_rank(value, name, "rank_pattern")) for pattern, value in ranks
        ),
        alphas=tuple(
            (pattern, _parse_number(value, name, "alpha_pattern")) for pattern, value in alphas
        ),
    )


def _pick_own(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the transformer's entries of a record that may cover several components."""
    start = {
        k.removeprefix(COMPONENT_PREFIX): v
        for k, v in record.items()
        if k.startswith(COMPONENT_PREFIX)
    }
    return start or record


def _parse_object(text: str | bytes, name: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise LoraNotApplied(f"{name} is not JSON, so the scale is not known") from None
    if not isinstance(value, dict):
        raise LoraNotApplied(f"{name} is not a JSON object, so the scale is not known")
    return value


def _parse(text: str, name: str) -> Any:
    """Read an entry of a header's metadata, where every value is a string."""
    try:
        return WORDS[text] if text in WORDS else json.loads(text)
    except (ValueError, RecursionError):
        raise _make_error(name, ascii(text[:40])) from None


def _parse_number(value: Any, name: str, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _make_error(name, what)
    try:
        number = float(value)
    except OverflowError:
        raise _make_error(name, what) from None
    if not math.isfinite(number):
        raise _make_error(name, what)
    return number


def _parse_rank(value: Any, name: str, what: str) -> float:
    rank = _parse_number(value, name, what)
    if rank < 1 or rank != int(rank):
        raise _make_error(name, what)
    return rank


def _compile_patterns(value: Any, name: str, what: str) -> list[tuple[Any, Any]]:
    """Compile the patterns of a record as peft's get_pattern_key does; the first match counts."""
    if value is None:
        return []
    if not isinstance(value, dict) or any(len(key) > LONGEST_PATTERN for key in value):
        raise _make_error(name, what)
    try:
        return [(regex.compile(rf"(.*\.)?({key})$"), number) for key, number in value.items()]
    except (regex.error, ValueError, RecursionError, OverflowError):
        raise _make_error(name, what) from None


def _make_error(name: str, what: str) -> LoraNotApplied:
    return LoraNotApplied(f"{what} of {name} cannot be read, so the scale is not known")
