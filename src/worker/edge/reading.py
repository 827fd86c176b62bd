"""A job's input, read field by field: the values, or what is wrong in the caller's own words."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from worker.edge import fields
from worker.edge.fields import CommonInput, Listed, show
from worker.edge.guess import LONGEST_GUESS, guess
from worker.errors import Detail

Entry = tuple[str, Any]  # the caller's name for a field, and its value

MAX_UNKNOWN: Final = 10
# The words of a Literal as pydantic lists them: 'png', 'jpeg' or 'webp'.
QUOTED: Final = re.compile(r"'([^']*)'")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The words of a task that are not in its own fields.

    `choices` maps what is chosen ("tasks", "formats") to the meaning of each word. `elsewhere`
    maps the words of fields that only other tasks have to what a message adds about them.
    """

    choices: Mapping[str, Mapping[str, str]]
    elsewhere: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Read:
    """What a job's input says, field by field.

    `words` maps a field to the name the caller used for it; `broken` are the fields whose value is
    wrong (their value here is None); `unknown` describes fields that the task does not have.
    """

    values: CommonInput
    words: Mapping[str, str]
    broken: frozenset[str]
    faults: tuple[Detail, ...]
    unknown: tuple[Detail, ...]


def read(given: Mapping[Any, Any], kind: type[CommonInput], vocabulary: Vocabulary) -> Read:
    """Read every field of a job's input on its own, then its aliases together; never raises."""
    names = fields.map_names(kind)
    found: dict[str, list[Entry]] = {}
    faults: list[Detail] = []
    broken: set[str] = set()
    unknown: list[tuple[str, Any, Mapping[str, str]]] = []
    elsewhere = vocabulary.elsewhere
    for word, value in [(w, v) for w, v in given.items() if v is not None or w not in elsewhere]:
        name = names.get(word) if isinstance(word, str) else None
        if name is None:
            unknown.append(("", word, names))
        elif value is not None:
            parsed, wrong = _parse(kind, name, word, value, vocabulary)
            if parsed is None and not wrong:
                continue  # a word that stands for leaving the field out
            found.setdefault(name, []).append((word, parsed))
            faults += wrong
            if wrong:
                broken.add(name)
            if (listed := fields.find_listed(kind, name)) is not None:
                unknown += _list_extra_keys(word, value, listed)
    values: dict[str, Any] = {}
    for name, entries in found.items():
        if name not in broken:
            values[name], clashes = _agree(entries, fields.find_listed(kind, name))
            faults += clashes
            if clashes:
                broken.add(name)
                del values[name]
    return Read(
        values=kind.model_construct(**values),
        words={name: entries[0][0] for name, entries in found.items()},
        broken=frozenset(broken),
        faults=tuple(faults),
        unknown=_describe_unknown(unknown, vocabulary.elsewhere),
    )


def _parse(
    kind: type[CommonInput], name: str, word: str, value: Any, vocabulary: Vocabulary
) -> tuple[Any, list[Detail]]:
    """Parse one value of one field with pydantic."""
    try:
        read = kind.model_validate({name: value}, context=vocabulary.choices)
    except ValidationError as error:
        return None, [_make_fault(word, value, e) for e in error.errors()]
    return getattr(read, name), []


def _agree(entries: Sequence[Entry], listed: Listed | None) -> tuple[Any, list[Detail]]:
    """Return the one value of a field that was given under one or more of its names."""
    places: Mapping[str, int] = listed.slots if listed is not None else {}
    lists = [entry for entry in entries if entry[0] not in places]
    slots = sorted(entry for entry in entries if entry[0] in places)
    clashes = [
        Detail(word, f"differs from {lists[0][0]}, which means the same")
        for word, parsed in lists[1:]
        if parsed != lists[0][1]
    ]
    value = lists[0][1] if lists else []
    if listed is None or not slots:
        return value, clashes
    placed, wrong = _place(value, slots, listed)
    return placed, clashes + wrong


def _place(
    items: list[Any], slots: list[tuple[str, list[Any]]], listed: Listed
) -> tuple[list[Any], list[Detail]]:
    """Put the items of aliases that name a position after the others, or report clashes."""
    placed, faults = list(items), []
    for word, given in slots:
        position = listed.slots[word]
        if len(given) != 1:
            faults.append(Detail(word, f"must be one {listed.item} (got {len(given)})"))
        elif len(placed) < position:
            placed += given
        elif placed[position - 1] != given[0]:
            message = f"differs from {listed.item} {position}, which is given already"
            faults.append(Detail(word, message))
    return placed, faults


def _list_extra_keys(
    word: str, value: Any, listed: Listed
) -> list[tuple[str, Any, Mapping[str, str]]]:
    """Return the unknown keys of items that were given as objects, with their field."""
    items = value[: listed.most] if isinstance(value, list) else [value]
    objects = [item for item in items if isinstance(item, dict)]
    if listed.is_mapping and value in objects and not set(listed.keys).intersection(value):
        return []
    keys = dict.fromkeys(listed.keys, "")
    return [(f"{word}.", key, keys) for item in objects for key in item if key not in keys]


def _describe_unknown(
    found: Sequence[tuple[str, Any, Mapping[str, str]]], elsewhere: Mapping[str, str]
) -> tuple[Detail, ...]:
    """Name the first unknown fields and guess what they were meant to be; the rest are counted."""
    named = [_describe(*entry, elsewhere) for entry in found[:MAX_UNKNOWN]]
    more = len(found) - len(named)
    return (*named, Detail("input", f"has {more} more unknown fields")) if more else tuple(named)


def _describe(
    where: str, word: Any, known: Mapping[str, str], elsewhere: Mapping[str, str]
) -> Detail:
    plain = isinstance(word, str) and word.isascii() and word.isprintable()
    name = where + (word if plain and len(word) <= LONGEST_GUESS else show(word))
    hint = f"; {elsewhere[word]}" if not where and word in elsewhere else suggest(word, known)
    return Detail(name, "is not a known field" + hint)


def suggest(word: Any, known: Iterable[str]) -> str:
    """Return the part of a message that names the known word that is near, empty when none is."""
    near = guess(word, known)
    return f"; did you mean {near}?" if near else ""


# pydantic's error types in our words; {ctx} names come from pydantic, {got} is the value.
MESSAGES: Final[Mapping[str, str]] = {
    "string_type": "must be a string (got {got})",
    "string_unicode": "must not contain lone surrogates",
    "string_too_short": "must have at least {min_length} character(s)",
    "string_too_long": "must have at most {max_length} characters (got {length})",
    "int_type": "must be a whole number (got {got})",
    "float_type": "must be a number (got {got})",
    "greater_than_equal": "must be at least {ge:g} (got {got})",
    "less_than_equal": "must be at most {le:g} (got {got})",
    "bool_type": "must be true or false (got {got})",
    "literal_error": "must be {expected} (got {got})",
    "value_error": "{error}",
}


def _make_fault(word: str, value: Any, error: ErrorDetails) -> Detail:
    """Report what pydantic found, by the caller's own word for the field and their own value."""
    is_word = error["type"] == "literal_error"  # pydantic saw it in lower case
    given = value if is_word else error["input"]
    indices = [part for part in error["loc"][1:] if isinstance(part, int)]
    message = MESSAGES.get(error["type"], "is not valid (got {got})").format(
        got=show(given),
        length=len(given) if isinstance(given, str) else 0,
        **error.get("ctx", {}),
    )
    if is_word:
        message += suggest(given, QUOTED.findall(str(error.get("ctx", {}).get("expected"))))
    return Detail(f"{word}[{indices[0]}]" if isinstance(value, list) and indices else word, message)
