"""What an input's fields are, as documentation and description read them."""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from worker.edge import fields
from worker.edge.fields import CommonInput
from worker.tasks.picture_input import PictureInput
from worker.tasks.speech import SpeechInput

KINDS = (PictureInput, SpeechInput)
# Of JSON Schema 2020-12, and ours for what a task chooses from.
KEYWORDS = {
    *("anyOf", "enum", "type", "pattern", "properties", "additionalProperties"),
    *("items", "minItems", "maxItems", "minLength", "maxLength", "minimum", "maximum"),
    *("minProperties", "contentMediaType", "required", fields.CHOICES),
}


def walk(schema: Any) -> Iterator[Mapping[str, Any]]:
    """Yield a schema and those inside it."""
    yield schema
    for one in (*schema.get("anyOf", ()), *schema.get("properties", {}).values()):
        yield from walk(one)
    if "items" in schema:
        yield from walk(schema["items"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_schema_says_what_a_value_is_and_no_more(kind: type[CommonInput]) -> None:
    for schema in fields.map_schemas(kind).values():
        for one in walk(schema):
            assert set(one) <= KEYWORDS
            assert one.get("type") != "null"


def test_a_schema_has_the_bounds_of_its_field() -> None:
    schemas = fields.map_schemas(PictureInput)
    assert schemas["num_images"] == {"type": "integer", "minimum": 1, "maximum": 4}
    assert schemas["output_quality"] == {"type": "integer", "minimum": 1, "maximum": 100}
    assert schemas["reference_weights"] == {
        "type": "array",
        "items": {"type": "number", "minimum": 0, "maximum": 4},
    }
    assert schemas["output_format"] == {"type": "string", fields.CHOICES: "formats"}
    assert [len(schemas[name]["anyOf"]) for name in ("images", "size", "mask")] == [2, 3, 2]


@pytest.mark.parametrize("kind", KINDS)
def test_fields_are_listed_by_their_place(kind: type[CommonInput]) -> None:
    names = [row.name for row in fields.list_rows(kind)]
    assert set(names) == set(kind.model_fields)
    assert names[0] == "prompt"
    ours = ["batch", "num_images", "op", "output_format", "output_quality", "response_format"]
    assert sorted({*names[-8:]} - {"seed", "stream", "upload_url"}) == ours
    assert fields.list_required(kind) == ("prompt",)


@pytest.mark.parametrize(
    ("words", "text"),
    [([], ""), (["a"], "a"), (["a", "b"], "a and b"), (["a", "b", "c"], "a, b and c")],
)
def test_words_are_joined_as_a_sentence_lists_them(words: list[str], text: str) -> None:
    assert fields.join_words(words) == text
