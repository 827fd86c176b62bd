"""What may represent a LoRA in an input, and which LoRAs a job may have."""

from collections.abc import Sequence
from typing import Any, Final

from worker.edge.fields import Listed, read_decimal, show
from worker.edge.reading import suggest
from worker.edge.verdict import Verdict
from worker.loras.allowed import find_place, list_names
from worker.loras.origin import (
    LoraSource,
    LoraWord,
    check_name,
    check_scheme,
    name_url,
    read_hub_file,
    read_word,
)
from worker.settings import Settings

PLACE_KEYS: Final = ("path", "url", "name")
SCALE_KEYS: Final = ("scale", "weight")
STRONGEST: Final = 2.0
MOST_LORAS: Final = 8  # of MAX_LORAS
LISTED: Final = Listed("LoRA", MOST_LORAS, {}, (*PLACE_KEYS, *SCALE_KEYS), is_mapping=True)
KINDS: Final = {
    "names": "the operator's by name",
    "hub": "org/repository/file",
    "urls": "an https URL",
}


def describe_loras() -> dict[str, Any]:
    """Return the JSON Schema of a list of LoRAs."""
    names = {key: {"type": "string"} for key in PLACE_KEYS}
    keyed = {**names, **{key: {"type": "number"} for key in SCALE_KEYS}}
    one = {"anyOf": [{"type": "string"}, {"type": "object", "properties": keyed}]}
    return {"type": "array", "items": one, "minItems": 1, "maxItems": MOST_LORAS}


def split_loras(value: Any) -> Any:
    """Return a list of LoRAs for one of them, and for an object of names with their scales."""
    if isinstance(value, dict) and not set(LISTED.keys).intersection(value):
        return [{"path": name, "scale": scale} for name, scale in value.items()]
    return value if isinstance(value, list) else [value]


def read_lora(value: Any) -> LoraWord:
    """Read one LoRA as the caller wrote it.

    Raises ValueError, with a message for the caller, for anything else than a string or an object.
    """
    if isinstance(value, str):
        return read_word(value)
    if not isinstance(value, dict):
        message = f'must be a string or {{"path"|"url"|"name", "scale"}} (got {show(value)})'
        raise ValueError(message)  # noqa: TRY004 - pydantic reports ValueErrors
    key = _find_one(value, PLACE_KEYS)
    if key is None:
        raise ValueError(f"an object must have one of {', '.join(PLACE_KEYS)}")
    text = value[key]
    if not isinstance(text, str):
        raise ValueError(f"{key} must be a string (got {show(text)})")  # noqa: TRY004 - as above
    factor = _find_one(value, SCALE_KEYS)
    scale = None if factor is None else _read_scale(value[factor], factor)
    if key == "url":
        return LoraWord("urls", check_scheme(text.strip()), scale)
    if key == "name":
        return LoraWord("names", check_name(text.strip()), scale)
    return read_word(text, scale)


def choose_loras(
    words: Sequence[LoraWord],
    scale: float | None,
    settings: Settings,
    verdict: Verdict,
    *,
    refusal: str | None,
) -> tuple[LoraSource, ...]:
    """Return where the LoRAs of a job are; what may not be requested is a fault.

    `scale` is for those without one of their own. `refusal` is why the model takes none.
    """
    if verdict.is_broken("loras", "lora_scale"):
        return ()
    if not words:
        if scale is not None:
            verdict.add_fault("lora_scale", "is for a LoRA, and there is none: give loras")
        return ()
    if refusal is not None:
        verdict.add_fault("loras", refusal)
        return ()
    if len(words) > settings.max_loras:
        verdict.add_fault(
            "loras", f"must be at most {settings.max_loras} (got {len(words)}); see MAX_LORAS"
        )
    if scale is not None and all(word.scale is not None for word in words):
        verdict.add_fault("lora_scale", "has no effect: each LoRA has a scale of its own")
    first: dict[tuple[str, str], int] = {}
    found = []
    for index, word in enumerate(words):
        other = first.setdefault((word.kind, word.text), index)
        if other != index:
            verdict.add_fault("loras", f"is the same as [{other}]; give it once", index=index)
        source = _find_source(word, scale, settings, verdict, index)
        if source is not None:
            found.append(source)
    return tuple(found)


def _find_one(value: dict[Any, Any], keys: Sequence[str]) -> str | None:
    """Return which of the keys an object has; raises ValueError for more than one."""
    given = [key for key in keys if value.get(key) is not None]
    if len(given) > 1:
        raise ValueError(f"an object must have only one of {', '.join(keys)}")
    return given[0] if given else None


def _read_scale(value: Any, key: str) -> float:
    number = read_decimal(value)
    is_number = isinstance(number, int | float) and not isinstance(number, bool)
    if not is_number or not abs(number) <= STRONGEST:  # NaN is not either
        raise ValueError(
            f"{key} must be a number from -{STRONGEST:g} to {STRONGEST:g} (got {show(value)})"
        )
    return float(number)


def _find_source(
    word: LoraWord, scale: float | None, settings: Settings, verdict: Verdict, index: int
) -> LoraSource | None:
    """Return where a LoRA is; None where a fault says why it may not be requested."""
    kinds = settings.lora_kinds
    chosen = next(one for one in (word.scale, scale, 1.0) if one is not None)
    if word.kind not in kinds:
        accepted = " or ".join(KINDS[kind] for kind in kinds) or "no LoRA at all"
        message = f"this worker takes {accepted} (LORA_SOURCES)"
        verdict.add_fault("loras", message, index=index)
        return None
    if word.kind == "urls":
        return LoraSource(name_url(word.text), word.text, chosen, is_callers=True)
    if word.kind == "hub":
        return LoraSource(word.text, read_hub_file(word.text), chosen, is_callers=True)
    place = find_place(word.text, settings)
    if place is None:
        names = list_names(settings)
        known = f"known are {', '.join(names)}" if names else "this worker has none by name"
        message = f"no LoRA is called {show(word.text)}; {known}{suggest(word.text, names)}"
        verdict.add_fault("loras", message, index=index)
        return None
    return LoraSource(word.text, place, chosen, is_callers=False)
