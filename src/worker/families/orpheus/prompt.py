"""A passage as the ids of a prompt: ids in, never strings, and no special token from its text."""

from collections.abc import Sequence
from typing import Any

from worker.families.orpheus.models import TokenIds


def tokenise_text(tokenizer: Any, text: str) -> list[int]:
    """Return the ids of a text in which nothing is a special token."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=True)[
        "input_ids"
    ]
    return ids


def make_prompt(tokenizer: Any, ids: TokenIds, voice: str | None, text: str) -> list[int]:
    """Return the ids that the published models were trained on: "voice: text" between their own.

    A model of one voice has no name before the text.
    """
    spoken = text if voice is None else f"{voice}: {text}"
    return [*ids.before, *tokenise_text(tokenizer, spoken), *ids.after]


def find_unknown(tokenizer: Any, ids: TokenIds) -> Sequence[str]:
    """Say what does not fit between a tokenizer and a model's ids: its text is below the audio."""
    found = []
    highest = max(tokenise_text(tokenizer, "0 tara: A <laugh> \N{SNOWMAN}"), default=ids.first)
    if highest >= ids.first:
        found.append(f"a text has the id {highest}, and the audio begins at {ids.first}")
    if set(tokenise_text(tokenizer, "<custom_token_2>")) & {ids.stop}:
        found.append("a text can have the id that ends speech")
    return found
