"""A job's input, read field by field: the values, or what is wrong in the caller's own words."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from worker.errors import Detail
from worker.fields import NAMES, SLOTS, JobInput, shown
from worker.media.fetch import ImageSource
from worker.pictures import KEYS

Entry = tuple[str, Any]  # the caller's name for a field, and its value

MAX_UNKNOWN: Final = 10
MANY_UNKNOWN: Final = Detail("input", f"has more than {MAX_UNKNOWN} unknown fields")


@dataclass(frozen=True, slots=True)
class Read:
    """What a job's input says, field by field.

    `words` maps a field to the name the caller used for it; `broken` are the fields whose value is
    wrong (their value here is None); `unknown` describes fields that are not in the table.
    """

    values: JobInput
    words: Mapping[str, str]
    broken: frozenset[str]
    faults: tuple[Detail, ...]
    unknown: tuple[Detail, ...]


def read(given: Mapping[Any, Any]) -> Read:
    """Judge every field of a job's input by itself, aliases against each other; never raises."""
    found: dict[str, list[Entry]] = {}
    faults: list[Detail] = []
    broken: set[str] = set()
    unknown: list[Detail] = []
    for word, value in given.items():
        name = NAMES.get(word) if isinstance(word, str) else None
        if name is None:
            unknown.append(_unknown(word) if len(unknown) < MAX_UNKNOWN else MANY_UNKNOWN)
        elif value is not None:
            parsed, wrong = _parsed(name, word, value)
            found.setdefault(name, []).append((word, parsed))
            faults += wrong
            unknown += _unknown_in(word, value) if name == "images" and not wrong else ()
            if wrong:
                broken.add(name)
    values: dict[str, Any] = {}
    for name, entries in found.items():
        if name not in broken:
            values[name], clashes = _agreed(entries)
            faults += clashes
            if clashes:
                broken.add(name)
                del values[name]
    return Read(
        values=JobInput.model_construct(**values),
        words={name: entries[0][0] for name, entries in found.items()},
        broken=frozenset(broken),
        faults=tuple(faults),
        unknown=tuple(dict.fromkeys(unknown)),
    )


def _parsed(name: str, word: str, value: Any) -> tuple[Any, list[Detail]]:
    """Let pydantic judge one value of one field."""
    try:
        return getattr(JobInput.model_validate({name: value}), name), []
    except ValidationError as error:
        listed = isinstance(value, list)
        return None, [_fault(word, listed, e) for e in error.errors(include_url=False)]


def _agreed(entries: Sequence[Entry]) -> tuple[Any, list[Detail]]:
    """Return the one value of a field that was given under one or more of its names."""
    whole = [entry for entry in entries if entry[0] not in SLOTS]
    slots = sorted(entry for entry in entries if entry[0] in SLOTS)
    clashes = [
        Detail(word, f"differs from {whole[0][0]}, which means the same")
        for word, parsed in whole[1:]
        if parsed != whole[0][1]
    ]
    value = whole[0][1] if whole else []
    if not slots:
        return value, clashes
    placed, wrong = _placed(value, slots)
    return placed, clashes + wrong


def _placed(
    pictures: list[ImageSource], slots: list[tuple[str, list[ImageSource]]]
) -> tuple[list[ImageSource], list[Detail]]:
    """Put image_2 and image_3 behind the pictures given otherwise, or tell where they clash."""
    placed, faults = list(pictures), []
    for word, given in slots:
        position = SLOTS[word]
        if len(given) != 1:
            faults.append(Detail(word, f"must be one picture (got {len(given)})"))
        elif len(placed) < position:
            placed += given
        elif placed[position - 1] != given[0]:
            faults.append(Detail(word, f"differs from picture {position}, which is given already"))
    return placed, faults


def _unknown(word: Any) -> Detail:
    if not isinstance(word, str):
        return Detail(shown(word), "is not a field name")
    name = word if word.isascii() and word.isprintable() and len(word) <= 60 else shown(word)  # noqa: PLR2004
    close = difflib.get_close_matches(word[:60], NAMES, n=1, cutoff=0.75)
    return Detail(
        name, f"is not a known field; did you mean {close[0]}?" if close else "is not a known field"
    )


def _unknown_in(word: str, value: Any) -> list[Detail]:
    """Name the extra keys of pictures that were given as objects."""
    return [
        Detail(f"{word}.{_unknown(key).field}", "is not a known field")
        for item in (value if isinstance(value, list) else [value])
        if isinstance(item, dict)
        for key in item
        if key not in KEYS
    ]


# pydantic's error types in our words; {ctx} names come from pydantic, {got} is the value.
MESSAGES: Final[Mapping[str, str]] = {
    "string_type": "must be a string (got {got})",
    "string_unicode": "must not contain lone surrogates",
    "string_too_short": "must have at least {min_length} character(s)",
    "string_too_long": "must have at most {max_length} characters (got {length})",
    "int_type": "must be a whole number (got {got})",
    "int_from_float": "must be a whole number (got {got})",
    "float_type": "must be a number (got {got})",
    "finite_number": "must be a finite number",
    "greater_than_equal": "must be at least {ge:g} (got {got})",
    "less_than_equal": "must be at most {le:g} (got {got})",
    "bool_type": "must be true or false (got {got})",
    "literal_error": "must be {expected} (got {got})",
    "value_error": "{error}",
}


def _fault(word: str, listed: bool, error: ErrorDetails) -> Detail:
    """Say what pydantic found, about the caller's own word for the field."""
    given = error["input"]
    indices = [part for part in error["loc"][1:] if isinstance(part, int)]
    message = MESSAGES.get(error["type"], "is not valid (got {got})").format(
        got=shown(given),
        length=len(given) if isinstance(given, str) else 0,
        **error.get("ctx", {}),
    )
    return Detail(f"{word}[{indices[0]}]" if listed and indices else word, message)
