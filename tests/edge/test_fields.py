"""What an input's fields are, as documentation and description read them."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import pytest
from pydantic import TypeAdapter, ValidationError

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


@pytest.mark.parametrize(
    ("choices", "text"),
    [("a", "must be 'a'"), ("ab", "must be 'a' or 'b'"), ("abc", "must be 'a', 'b' or 'c'")],
)
def test_who_gives_none_of_the_choices_is_told_them(choices: str, text: str) -> None:
    kind = TypeAdapter(Annotated[str, fields.make_choice("letters")])
    context = {"letters": {letter: letter for letter in choices}}
    assert kind.validate_python(choices[-1].upper(), context=context) == choices[-1]
    with pytest.raises(ValidationError) as caught:
        kind.validate_python("d", context=context)
    assert caught.value.errors()[0]["msg"] == text


COMMON_WORDS = {
    "task": {"mode", "workflow"},
    "num_images": {"n", "num_outputs"},
    "output_quality": {"quality", "output_compression"},
}


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (
            PictureInput,
            {
                **COMMON_WORDS,
                "prompt": {"text"},
                "negative_prompt": {"negative"},
                "images": {
                    *("image", "image_url", "image_urls", "image_base64", "init_image"),
                    *("input_image", "reference_images", "image[]"),
                    *("image_2", "image_3", "image_4"),
                },
                "size": {"image_size"},
                "num_inference_steps": {"steps"},
                "true_cfg_scale": {"cfg_scale", "guidance_scale", "guidance", "cfg"},
                "lightning": {"use_lightning", "go_fast"},
                "strength": {"prompt_strength", "denoise", "denoising_strength"},
                "mask": {"mask_image", "mask_url", "mask_base64"},
                "invert_mask": {"inpainting_mask_invert"},
                "loras": {"lora", "lora_weights", "lora_url"},
                "num_images": {*COMMON_WORDS["num_images"], "num_images_per_prompt"},
                "output_format": {"image_format"},
            },
        ),
        (
            SpeechInput,
            {
                **COMMON_WORDS,
                "prompt": {"text", "input"},
                "voice": {"voice_id", "speaker"},
                "max_tokens": {"max_new_tokens"},
                "output_format": {"format", "audio_format"},
            },
        ),
    ],
)
def test_a_field_goes_by_what_other_apis_call_it(
    kind: type[CommonInput], words: dict[str, set[str]]
) -> None:
    """Their callers change nothing but the address; RunPod's, fal's, OpenAI's and A1111's words."""
    found: dict[str, set[str]] = {}
    for word, name in fields.map_names(kind).items():
        if word != name:
            found.setdefault(name, set()).add(word)
    assert found == words


@pytest.mark.parametrize(
    ("kind", "defaults"),
    [
        (
            PictureInput,
            {
                **dict.fromkeys(("images", "preset", "mask", "outpaint", "loras"), "none"),
                "size": "auto",
                "lightning": "USE_LIGHTNING_LORA",
                "invert_mask": "false",
                "mask_blur": "8",
                "preserve_unmasked": "true",
                "lora_scale": "1",
            },
        ),
        (SpeechInput, {"speed": "1", "stream": "false"}),
    ],
)
def test_a_default_is_what_a_caller_gets_who_gives_nothing(
    kind: type[CommonInput], defaults: dict[str, str]
) -> None:
    """Those of one word; tests of the tasks hold that they are so."""
    common = {"num_images": "1", "batch": "true", "output_quality": "95", "op": "generate"}
    common |= {"prompt": "required", "upload_url": "none"}
    common |= {"task": "{inferred}", "output_format": "{format}"}
    found = {row.name: row.default for row in fields.list_rows(kind) if " " not in row.default}
    assert {name: word for name, word in found.items() if "#" not in word} == {**common, **defaults}
