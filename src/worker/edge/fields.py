"""Kinds of field that an input may have, and the fields that all tasks have in common."""

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from worker.edge.blank import is_blank

MAX_SEED: Final = 2**63 - 1
MOST_PIECES: Final = 4

# Where the schema of a field names the words of its task that it accepts.
CHOICES: Final = "choices"

INTEGER: Final = re.compile(r"-?[0-9]{1,19}")
DECIMAL: Final = re.compile(r"-?[0-9]{1,19}(?:\.[0-9]{1,19})?")

# OpenAI's words for `quality`, which is also a name of output_quality: they ask for another amount
# of work, which here is the number of steps.
QUALITY_WORDS: Final = frozenset(
    {"auto", "low", "medium", "high", "standard", "hd", "xhigh", "max"}
)

# The place of a field in the documentation: what is requested, which task and model make it, how,
# and what all tasks have in common.
WHAT, WHO, HOW, ALWAYS = range(4)


@dataclass(frozen=True, slots=True)
class Listed:
    """How a field that accepts a list may be written.

    `item` is the word for one of at most `most`. `slots` maps an alias that names a position, from
    1, to it; `keys` are those of an item that is written as an object. With `is_mapping`, an object
    without any of them maps items to values.
    """

    item: str
    most: int
    slots: Mapping[str, int]
    keys: tuple[str, ...]
    is_mapping: bool = False


def show(value: Any) -> str:
    """Return a short, printable form of any JSON value, for a message."""
    if isinstance(value, str):
        short = value if len(value) <= 40 else value[:40] + "..."  # noqa: PLR2004 - a glance
        return ascii(short)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and abs(value) >= 10**20:
        return "a huge number"
    if value is None or isinstance(value, int | float):
        return "null" if value is None else str(value)
    return {"list": "a list", "dict": "an object"}.get(type(value).__name__, "no JSON value")


def join_words(words: Sequence[str]) -> str:
    """Return words as a sentence lists them: "a", "a and b", "a, b and c"."""
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def read_integer(value: Any) -> Any:
    """Return the whole number that a string writes; anything else unchanged."""
    return int(value) if isinstance(value, str) and INTEGER.fullmatch(value) else value


def read_decimal(value: Any) -> Any:
    """Return the number that a string writes exactly; anything else unchanged."""
    return float(value) if isinstance(value, str) and DECIMAL.fullmatch(value) else value


def _read_quality(value: Any) -> Any:
    return None if is_quality_word(value) else value


def is_quality_word(value: Any) -> bool:
    """Return whether this is one of OpenAI's words for a quality, which asks for no number."""
    return isinstance(value, str) and value.lower() in QUALITY_WORDS


def _read_carrier(value: Any) -> Any:
    word = _to_lower(value)
    return "base64" if word == "b64_json" else word


def _to_lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def _check_unicode(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("must not contain lone surrogates") from None
    return text


def _check_plain(text: str) -> str:
    if "\0" in text:
        raise ValueError("must not contain NUL")
    return text


def _check_visible(text: str) -> str:
    if is_blank(text):
        raise ValueError("must have a visible character (got blanks alone)")
    return text


def _check_seed(value: int) -> int:
    if not -1 <= value <= MAX_SEED:
        raise ValueError(f"must be 0 to 2^63-1, or -1 for a random one (got {show(value)})")
    return value


def limit_length(most: int) -> BeforeValidator:
    """Accept one item or a list; the length is checked first, so that a long list costs nothing."""

    def check_length(value: Any) -> Any:
        items = value if isinstance(value, list) else [value]
        if not 1 <= len(items) <= most:
            raise ValueError(f"must be 1 to {most} (got {len(items)}); leave it out for none")
        return items

    return BeforeValidator(check_length)


def _check_https(value: str) -> str:
    if not value.lower().startswith(("https://", "http://")):
        raise ValueError("must be an https URL")
    return value


def make_choice(choices: str) -> BeforeValidator:
    """Accept one of the words that the validation's context has under this name, in any case."""

    def choose(value: Any, info: ValidationInfo) -> Any:
        context: Any = info.context
        meanings: Mapping[str, str] = context[choices]
        if isinstance(value, str) and (word := _check_unicode(value).lower()) in meanings:
            return meanings[word]
        *others, last = map(repr, dict.fromkeys(meanings.values()))
        expected = f"{', '.join(others)} or {last}" if others else last
        raise PydanticCustomError("literal_error", "must be {expected}", {"expected": expected})

    return BeforeValidator(choose)


def show_choice(choices: str) -> WithJsonSchema:
    """Describe the words that the validation's context has under this name."""
    return WithJsonSchema({"type": "string", CHOICES: choices})


Plain: Final = AfterValidator(_check_plain)
Visible: Final = AfterValidator(_check_visible)
Whole: Final = BeforeValidator(read_integer)
Number: Final = BeforeValidator(read_decimal)
Word: Final = BeforeValidator(_to_lower)
Addresses = Annotated[
    list[Annotated[str, Field(max_length=8190), AfterValidator(_check_https)]],
    limit_length(MOST_PIECES),
]


def declare(
    description: str, default: str, *aliases: str, place: int = HOW, listed: Listed | None = None
) -> Any:
    """Declare a field that may be left out; `description` and `default` are for documentation.

    Each task fills in what is in braces: its {noun}, its {formats}, the {format} that is its
    default, those with a quality ({lossy}); and {tasks}, and which is {inferred} when none is
    named. A field whose default is "required" must be given.
    """
    return Field(
        None,
        validation_alias=AliasChoices(*aliases) if aliases else None,
        description=description,
        json_schema_extra={"default": default, "place": place, "listed": listed},  # type: ignore[dict-item] # no schema is made of it
    )


class CommonInput(BaseModel):
    """What a job's `input` may have for every task; None is what was left out or sent as null.

    A task's own input derives from it. Only each field on its own is checked here; worker.tasks
    checks them against each other and against the models served.
    """

    model_config = ConfigDict(strict=True, frozen=True, validate_by_name=True)

    task: Annotated[str, make_choice("tasks"), show_choice("tasks")] | None = declare(
        "{tasks}", "{inferred}", "mode", "workflow", place=WHO
    )
    model: Annotated[str, Field(min_length=1, max_length=200), Plain] | None = declare(
        "a model this worker serves, by its name or repository",
        "the first that can do the task",
        place=WHO,
    )
    seed: Annotated[int, Whole, AfterValidator(_check_seed)] | None = declare(
        "integer, 0 to 2^63-1; -1 or null: random; 0 is a seed",
        "random, always echoed",
        place=ALWAYS,
    )
    num_images: Annotated[int, Whole, Field(ge=1, le=MOST_PIECES)] | None = declare(
        "1-4; {noun} i has seed + i",
        "1",
        "n",
        "num_outputs",
        "num_images_per_prompt",
        place=ALWAYS,
    )
    batch: bool | None = declare(
        "boolean; false: no step is shared with other {noun}s (see [Batches](#batches))",
        "true",
        place=ALWAYS,
    )
    output_format: Annotated[str, make_choice("formats"), show_choice("formats")] | None = declare(
        "{formats}", "{format}", "image_format", place=ALWAYS
    )
    output_quality: Annotated[
        Annotated[int, Whole, Field(ge=1, le=100)] | None, BeforeValidator(_read_quality)
    ] = declare(
        "1-100, for {lossy}; OpenAI's words, such as high, are accepted without effect",
        "95",
        "quality",
        "output_compression",
        place=ALWAYS,
    )
    response_format: (
        Annotated[Literal["base64", "data_url", "url"], BeforeValidator(_read_carrier)] | None
    ) = declare(
        "`base64` (or `b64_json`), `data_url`, `url` (needs a bucket or `upload_url`)",
        "`url` with a bucket or `upload_url`, else `base64`",
        place=ALWAYS,
    )
    upload_url: Addresses | None = declare(
        "https presigned PUT, or a list with one for each {noun}", "none", place=ALWAYS
    )
    op: Annotated[Literal["generate", "capabilities", "health"], Word] | None = declare(
        "`generate`, `capabilities`, `health`", "generate", place=ALWAYS
    )


@dataclass(frozen=True, slots=True)
class FieldFacts:
    """One row of the table of fields; `tasks` are those that have it, empty when all have."""

    name: str
    aliases: tuple[str, ...]
    accepts: str
    default: str
    tasks: tuple[str, ...] = ()


@functools.cache
def list_rows(kind: type[CommonInput]) -> tuple[FieldFacts, ...]:
    """Return every field of an input, in the order of the documentation."""
    placed = sorted(kind.model_fields, key=lambda name: int(_read_extra(kind, name)["place"]))
    return tuple(
        FieldFacts(
            name,
            _list_aliases(kind, name),
            kind.model_fields[name].description or "",
            str(_read_extra(kind, name)["default"]),
        )
        for name in placed
    )


@functools.cache
def map_names(kind: type[CommonInput]) -> Mapping[str, str]:
    """Return the field that each word of an input means: its own name and its aliases."""
    return {word: row.name for row in list_rows(kind) for word in (row.name, *row.aliases)}


@functools.cache
def map_schemas(kind: type[CommonInput]) -> Mapping[str, Mapping[str, Any]]:
    """Return the JSON Schema of each field's value; null, which leaves it out, is not in it.

    Under CHOICES there may be the name of what the task chooses from, in place of the words.
    """
    properties = kind.model_json_schema(by_alias=False)["properties"]
    return {name: _simplify_schema(schema) for name, schema in properties.items()}


def _simplify_schema(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Leave out null, and with it what is documented elsewhere: it stands beside that choice."""
    if "anyOf" in schema:
        some = [one for one in schema["anyOf"] if one.get("type") != "null"]
        if len(some) == 1:
            return _simplify_schema(some[0])
        return schema if len(some) == len(schema["anyOf"]) else {"anyOf": some}
    words = {"ge": "minimum", "le": "maximum"}  # of a type behind a validator
    return {
        words.get(key, key): _simplify_schema(item) if key == "items" else item
        for key, item in schema.items()
    }


def list_required(kind: type[CommonInput]) -> tuple[str, ...]:
    """Name the fields that must be given."""
    return tuple(row.name for row in list_rows(kind) if row.default == "required")


def find_listed(kind: type[CommonInput], name: str) -> Listed | None:
    """Return how a field that accepts a list may be written; None for any other."""
    found: Listed | None = _read_extra(kind, name)["listed"]
    return found


def _list_aliases(kind: type[CommonInput], name: str) -> tuple[str, ...]:
    choices = kind.model_fields[name].validation_alias
    return tuple(map(str, choices.choices)) if isinstance(choices, AliasChoices) else ()


def _read_extra(kind: type[CommonInput], name: str) -> Mapping[str, Any]:
    extra: Any = kind.model_fields[name].json_schema_extra
    return dict(extra)
