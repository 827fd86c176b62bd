"""A job's input becomes a Request that cannot be wrong, or every fault of it at once."""

import base64
import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import FrozenInstanceError, dataclass, replace
from difflib import SequenceMatcher
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from worker import settings
from worker.edge.blank import is_blank
from worker.errors import Detail, InvalidInput, ModelNotServed, UnsupportedTask, WorkerError
from worker.families.qwen_image.models import NEGATIVE_2512
from worker.loras.origin import LoraSource
from worker.media.fetch import ImageSource
from worker.seam import Served
from worker.tasks import registry
from worker.tasks.picture import PictureAsked, offer_of
from worker.tasks.picture_input import REFERENCES
from worker.tasks.picture_tasks import TEXT_TO_IMAGE
from worker.tasks.request import Query, Request, parse
from worker.tasks.size import Size
from worlds.published import EDIT, IMAGE, addable, offering

BOTH = (IMAGE, EDIT)
URL = "https://example.com/cat.png"
PUT = "https://bucket.example/put?signature=x"
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(range(60))).decode()
JPEG = base64.b64encode(b"\xff\xd8\xff\xe0" + bytes(range(60))).decode()
BUCKET = {
    "BUCKET_ENDPOINT_URL": "https://bucket.example",
    "BUCKET_ACCESS_KEY_ID": "an-access-key",
    "BUCKET_SECRET_ACCESS_KEY": "a-secret-key",
}


@dataclass(frozen=True)
class Flat:
    """A request for pictures with all that it resolved, side by side."""

    task: str
    model: Served
    prompt: str
    negative_prompt: str | None
    sources: tuple[ImageSource, ...]
    size: Size
    steps: int
    true_cfg_scale: float
    lightning: bool
    loras: tuple[LoraSource, ...]
    seed: int
    num_images: int
    output_format: str
    output_quality: int
    response_format: str
    upload_urls: tuple[str, ...]
    warnings: tuple[str, ...]


def flat(request: Request) -> Flat:
    asked, delivery = request.asked, request.delivery
    assert isinstance(asked, PictureAsked)
    assert (asked.draft.task, asked.draft.prompt) == (request.task.name, asked.prompt)
    names = ("prompt", "negative_prompt", "steps", "true_cfg_scale", "lightning")
    return Flat(
        task=request.task.name,
        model=request.model,
        sources=asked.sources,
        loras=asked.loras,
        size=asked.size,
        seed=request.seed,
        num_images=request.count,
        output_format=delivery.form,
        output_quality=delivery.quality,
        response_format=delivery.response_format,
        upload_urls=delivery.upload_urls,
        warnings=request.warnings,
        **{name: getattr(asked.draft, name) for name in names},
    )


def parsed(
    job_input: Any,
    served: tuple[Served, ...] = BOTH,
    environ: Mapping[str, str] | None = None,
    *,
    s3: bool = False,
) -> Flat:
    given = settings.read(environ or {})
    request = parse(
        job_input,
        served,
        given,
        callers_bucket=s3,
        bucket_name="s3Config",
        addable=addable,
    )
    assert isinstance(request, Request)
    return flat(request)


def faults(
    job_input: Any, served: tuple[Served, ...] = BOTH, environ: Mapping[str, str] | None = None
) -> list[tuple[str, str]]:
    """Return (field, message) of every fault of an input that must be refused."""
    with pytest.raises(WorkerError) as refused:
        parse(job_input, served, settings.read(environ or {}), addable=addable)
    assert refused.value.details
    for detail in refused.value.details:
        assert f"{detail.field}: {detail.message}" in refused.value.message
    return [(detail.field, detail.message) for detail in refused.value.details]


def test_a_prompt_alone_is_a_complete_request() -> None:
    request = parsed({"prompt": "a cat"})
    assert request.task == "text-to-image"
    assert request.model is IMAGE
    assert (request.prompt, request.negative_prompt) == ("a cat", None)
    assert (request.steps, request.true_cfg_scale, request.lightning) == (8, 1.0, True)
    assert (request.num_images, request.output_format, request.output_quality) == (1, "png", 95)
    assert (request.response_format, request.upload_urls) == ("base64", ())
    assert request.sources == ()
    assert request.warnings == ()
    whole = parse({"prompt": "a cat"}, BOTH, settings.read({}))
    assert isinstance(whole, Request)
    with pytest.raises(FrozenInstanceError):
        whole.asked.draft.steps = 9
    with pytest.raises(FrozenInstanceError):
        whole.seed = 9  # type: ignore[misc]


def test_pictures_make_it_an_edit_by_the_first_model_that_can() -> None:
    request = parsed({"prompt": "a hat", "image": URL})
    assert (request.task, request.model) == ("edit", EDIT)


# A value that each field takes, by its name; images have tests of their own.
VALUES: dict[str, Any] = {
    "prompt": "a cat",
    "negative_prompt": "blurry",
    "images": [URL],
    "task": "text-to-image",
    "model": "qwen-image-2512",
    "reference_weights": [1],
    "width": 512,
    "height": 512,
    "size": "512x512",
    "aspect_ratio": "16:9",
    "num_inference_steps": 4,
    "true_cfg_scale": 1.0,
    "lightning": True,
    "preset": "balanced",
    "strength": 0.5,
    "mask": URL,
    "invert_mask": True,
    "mask_blur": 3,
    "preserve_unmasked": False,
    "outpaint": {"left": 64},
    "loras": "org/style",
    "lora_scale": 0.5,
    "seed": 5,
    "num_images": 2,
    "batch": False,
    "output_format": "webp",
    "output_quality": 80,
    "response_format": "data_url",
    "upload_url": ["https://example.com/put"],
    "op": "generate",
}

# The fields of a picture, of all tasks that make some.
ROWS = [row for row in registry.list_fields() if set(row.tasks) != {"speech"}]

# What a job must have besides a field that only some tasks have a use for.
NEEDS: dict[str, dict[str, Any]] = {
    "reference_weights": {"image": URL},
    "strength": {"image": URL},
    "mask": {"image": URL},
    "invert_mask": {"image": URL, "mask": URL},
}


def test_the_table_has_the_contracts_fields() -> None:
    assert [row.name for row in ROWS] == list(VALUES)


@pytest.mark.parametrize(("alias", "name"), [(a, row.name) for row in ROWS for a in row.aliases])
def test_an_alias_means_its_field(alias: str, name: str) -> None:
    value = VALUES[name][0] if alias in REFERENCES.slots else VALUES[name]
    others: dict[str, Any] = {} if name == "prompt" else {"prompt": "a cat", **NEEDS.get(name, {})}
    by_alias = parsed({**others, alias: value, "seed": 1} if name != "seed" else {alias: value})
    by_name = parsed({**others, name: value, "seed": 1})
    by_alias, by_name = (
        replace(one, sources=tuple(replace(source, field=None) for source in one.sources))
        for one in (by_alias, by_name)
    )
    assert replace(by_alias, size=by_name.size, warnings=()) == replace(by_name, warnings=())
    assert replace(by_alias.size, field="") == replace(by_name.size, field="")


@pytest.mark.parametrize(
    ("alias", "name"),
    [(a, row.name) for row in ROWS for a in row.aliases if a not in REFERENCES.slots],
)
def test_two_names_of_one_field_must_agree(alias: str, name: str) -> None:
    other: dict[str, Any] = {
        "prompt": "a dog",
        "negative_prompt": "dark",
        "images": ["https://example.com/dog.png"],
        "task": "edit",
        "size": "input",
        "num_inference_steps": 8,
        "true_cfg_scale": 2,
        "lightning": False,
        "loras": "org/other",
        "strength": 0.6,
        "mask": PNG,
        "invert_mask": False,
        "num_images": 3,
        "output_format": "png",
        "output_quality": 81,
    }
    needs = NEEDS.get(name, {})
    message = next(
        message
        for field, message in faults(
            {"prompt": "a cat", **needs, name: VALUES[name], alias: other[name]}
        )
        if field == alias
    )
    assert f"differs from {name}" in message
    job_input = {"prompt": "a cat", **needs, name: VALUES[name], alias: VALUES[name]}
    assert "differs" not in str(parsed(job_input).warnings)


def test_all_faults_are_reported_at_once_by_the_callers_own_names() -> None:
    reported = dict(
        faults(
            {
                "text": "",
                "n": 9,
                "width": 3,
                "cfg": "nan",
                "seed": True,
                "steps": 7,
                "go_fast": 1,
                "quality": "95%",
                "image": "/etc/passwd",
                "model": "flux",
            }
        )
    )
    assert set(reported) == {
        *("text", "n", "width", "cfg", "seed", "go_fast", "quality", "image", "model")
    }
    assert reported["width"] == "must be at least 64 (got 3)"


def test_faults_against_the_model_come_with_the_others() -> None:
    reported = dict(faults({"steps": 7, "size": "8000x8000", "num_images": 0}))
    assert set(reported) == {"prompt", "steps", "size", "num_images"}


@pytest.mark.parametrize(
    "value", [True, 512.0, "512.0", "5e2", " 512", "", "٥١٢", [512], {}, 1e400]
)
def test_what_is_no_whole_number_is_no_width(value: Any) -> None:
    assert [field for field, _ in faults({"prompt": "a", "width": value})] == ["width"]


@pytest.mark.parametrize("value", [512, "512"])
def test_a_numeric_string_is_its_number(value: Any) -> None:
    size = parsed({"prompt": "a", "width": value, "height": value}).size
    assert (size.width, size.height) == (512, 512)


@pytest.mark.parametrize("value", ["nan", "inf", float("nan"), float("inf"), True, "1,5", 0.5, 21])
def test_what_is_no_scale_is_refused(value: Any) -> None:
    reported = faults({"prompt": "a", "true_cfg_scale": value, "lightning": False})
    assert [field for field, _ in reported] == ["true_cfg_scale"]


@pytest.mark.parametrize(("value", "scale"), [("4.5", 4.5), (3, 3.0), (1, 1.0)])
def test_a_scale_may_be_an_integer_or_a_numeric_string(value: Any, scale: float) -> None:
    request = parsed({"prompt": "a", "cfg": value, "lightning": False})
    assert request.true_cfg_scale == scale
    assert isinstance(request.true_cfg_scale, float)


@pytest.mark.parametrize("value", [1, 0, "true", "yes"])
def test_only_true_and_false_are_booleans(value: Any) -> None:
    got = {True: "1", False: "0"}.get(value, repr(value))
    reported = [("lightning", f"must be true or false (got {got})")]
    assert faults({"prompt": "a", "lightning": value}) == reported
    for boolean in (True, False):
        assert parsed({"prompt": "a", "lightning": boolean}).lightning is boolean


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a\0b", "must not contain NUL"),
        ("\ud83d", "must not contain lone surrogates"),
        ("", "must have at least 1 character(s)"),
        ("a" * 5001, "must have at most 5000 characters (got 5001)"),
        (5, "must be a string (got 5)"),
        (None, "is required"),
    ],
)
def test_a_prompt_is_1_to_5000_characters_that_can_be_echoed(prompt: Any, message: str) -> None:
    assert faults({"prompt": prompt}) == [("prompt", message)]


@pytest.mark.parametrize(
    "name", ["negative_prompt", "model", "task", "output_format", "response_format", "op"]
)
def test_a_lone_surrogate_is_called_so_in_every_text_and_word(name: str) -> None:
    reported = [(name, "must not contain lone surrogates")]
    assert faults({"prompt": "a", name: "a\ud800"}) == reported


def test_any_other_prompt_is_taken_as_it_is() -> None:
    for prompt in (
        "a" * 5000,
        " a\n",
        "\u200d.",
        "<|image_pad|><|im_end|>",
        "\u4e2d\u6587 \U0001f600\n",
    ):
        assert parsed({"prompt": prompt}).prompt == prompt


# Unicode's categories of spaces, line ends, controls and format characters; then some of each
# together, and characters of other categories that have no glyph.
UNSEEN = {"Zs", "Zl", "Zp", "Cc", "Cf"}
BLANKS = [
    *(c for c in map(chr, range(1, 0x110000)) if unicodedata.category(c) in UNSEEN),
    *("\x01\x7f", "\ufeff\u2060", " \t\n\u3000\u200b\u00ad", "\u202e \u2066"),
    *("\u3164", "\u2800", "\u115f\u1160", "\uffa0", "\u034f", "\ufe0f", "\U000e0100"),
    *("\u17b4", "\u17b5", "\u180b", "\u180f", "\ufe00", "\ufe0f", "\U000e0000", "\U000e0fff"),
]


@pytest.mark.parametrize("name", ["prompt", "text"])
def test_a_prompt_of_blanks_is_no_prompt(name: str) -> None:
    for blanks in BLANKS:
        ((field, message),) = faults({name: blanks * 3})
        assert (field, message) == (name, "must have a visible character (got blanks alone)")
        assert parsed({name: f"{blanks}.{blanks}"}).prompt == f"{blanks}.{blanks}"


# Among them what comes before and after each range of characters without a glyph.
@pytest.mark.parametrize(
    "mark",
    [
        *("\u0301", "\ue000", "\U0001f3fb", "\u0e31", "\u00a8"),
        *("\u17b3", "\u17b6", "\u180a", "\u1810", "\ufdff", "\ufe10", "\U000dffff", "\U000e1000"),
    ],
)
def test_what_shows_anything_is_a_prompt(mark: str) -> None:
    assert parsed({"prompt": mark}).prompt == mark


def test_a_negative_prompt_of_blanks_keeps_its_meaning() -> None:
    base = {"prompt": "a", "lightning": False}
    for blanks in (" ", "  ", "\u200b", "\n"):
        assert parsed({**base, "negative_prompt": blanks}).negative_prompt == blanks
        assert parsed({"prompt": "a", "cfg": 1, "negative_prompt": blanks}).warnings == ()


# What each field takes at its bounds and refuses one beyond, as the table of fields says it.
BOUNDS: dict[str, tuple[str, list[Any], list[Any]]] = {
    "prompt": ("1-5000 characters", ["a", "a" * 5000], ["", "a" * 5001]),
    "negative_prompt": ("up to 2000 characters", ["", "a" * 2000], ["a" * 2001]),
    "images": ("1-4 of", [[URL], [URL] * 3], [[], [URL] * 5]),
    "reference_weights": ("0-4 for each", [[1]], [[-0.001], [4.001], []]),
    "width": ("pixels, 64", [64, 65536], [63, 65537]),
    "height": ("as `width`", [64, 65536], [63, 65537]),
    "size": (
        '"WxH"',
        ["64x64", "64x65536", "65536x64"],
        ["63x64", "64x63", "65537x64", "64x65537"],
    ),
    "num_inference_steps": ("2-100", [2, 100], [1, 101]),
    "lora_scale": ("-2 to 2", [-2, 2, 0.5], [-2.001, 2.001]),
    "true_cfg_scale": ("1-20", [1, 20, 20.0], [0.9999, 20.001, 0, 21]),
    "strength": ("0.01-1", [0.01, 1, 1.0], [0, 0.0099, 1.0001]),
    "invert_mask": ("0 and 1", [0, 1, True], [-1, 2, 1.0]),
    "mask_blur": ("0-64 pixels", [0, 64], [-1, 65]),
    "outpaint": (
        "0-4096 each",
        [{"left": 1}, {"bottom": 4096, "top": 0}],
        [{"left": 0}, {"top": 4097}, {"right": -1}],
    ),
    "seed": ("0 to 2^63-1; -1", [-1, 0, 2**63 - 1], [-2, 2**63]),
    "num_images": ("1-4", [1, 4], [0, 5]),
    "output_quality": ("1-100", [1, 100], [0, 101]),
    "upload_url": ("one for each picture", [[PUT], [PUT] * 4], [[], [PUT] * 5]),
    "model": ("by its name", ["m" * 200], ["", "m" * 201]),
}


def test_every_field_with_a_bound_is_in_the_table_of_bounds() -> None:
    accepts = {row.name: row.accepts for row in ROWS}
    assert {name for name, text in accepts.items() if re.search(r"\b\d+( |-)", text)} - {
        "aspect_ratio"
    } <= set(BOUNDS)
    for name, (words, _, _) in BOUNDS.items():
        assert words in accepts[name], name


def refused(name: str, value: Any) -> list[str]:
    """Return what is wrong with a field alone, as the reader of fields finds it."""
    return [fault.message for fault in registry.read_input({name: value}, TEXT_TO_IMAGE).faults]


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, (_, good, _) in BOUNDS.items() for value in good]
)
def test_a_value_at_a_bound_is_taken(name: str, value: Any) -> None:
    assert refused(name, value) == []


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, (_, _, bad) in BOUNDS.items() for value in bad]
)
def test_a_value_one_beyond_a_bound_is_refused(name: str, value: Any) -> None:
    (message,) = refused(name, value)
    assert message.removeprefix("each side ").startswith("must "), message


@pytest.mark.parametrize("name", ["width", "height", "num_inference_steps", "seed", "num_images"])
def test_a_bound_written_as_a_string_is_the_same_bound(name: str) -> None:
    _, good, bad = BOUNDS[name]
    assert not any(refused(name, str(value)) for value in good)
    assert all(refused(name, str(value)) for value in bad)


@pytest.mark.parametrize(
    "text", ["65537x64", "64x65537", "65536x65537", "65537*65537", "999999x64", "64X999999"]
)
def test_a_side_of_a_size_is_limited_like_width_and_height(text: str) -> None:
    reported = f"each side must be 64 to 65536 (got '{text}')"
    assert faults({"prompt": "a", "size": text}) == [("size", reported)]


@pytest.mark.parametrize("job_input", [None, "a cat", 5, True, float("nan"), "{", "{a", "a}"])
def test_the_input_must_be_an_object(job_input: Any) -> None:
    ((field, message),) = faults(job_input)
    assert field == "input"
    assert message.startswith('must be an object, as in {"input": {"prompt": "a cat"}} (got')


@pytest.mark.parametrize("job_input", [[], [{"prompt": "a"}], ["{}"]])
def test_a_list_gets_the_advice_to_send_one_job_each(job_input: Any) -> None:
    ((field, message),) = faults(job_input)
    assert (field, message[:42]) == ("input", "must be an object, not a list; send one jo")


@pytest.mark.parametrize("text", ['{"prompt": "a cat"}', ' {"input": {"prompt": "a"}}\n', "{}"])
def test_a_body_pasted_as_a_string_is_named_as_that(text: str) -> None:
    ((field, message),) = faults(text)
    assert (field, message[:49]) == ("input", "must be an object, and is one written as a string")


@pytest.mark.parametrize(
    "inner",
    [
        {"prompt": "a cat"},
        {"input": {"input": {"prompt": "a cat"}}},
        {},
        [{"prompt": "a cat"}],
        '{"prompt": "a cat"}',
        {"op": "health"},
    ],
    ids=repr,
)
@pytest.mark.parametrize(
    "beside", [{}, {"seed": 5}, {"id": "1", "s3Config": {}}, {"prompt": None}], ids=repr
)
@pytest.mark.parametrize("strict", ["0", "1"])
def test_a_doubled_input_is_reported_as_that_alone(inner: Any, beside: Any, strict: str) -> None:
    ((field, message),) = faults({"input": inner, **beside}, environ={"STRICT_INPUT": strict})
    assert field == "input"
    assert message.startswith("is doubled: the job's input contains another `input`; send ")


@pytest.mark.parametrize(
    ("job_input", "warnings"),
    [
        ({"prompt": "a", "input": {"seed": 3}}, ("input: is not a known field; speech has it",)),
        ({"text": "a", "input": "b"}, ("input: is not a known field; speech has it",)),
    ],
)
def test_an_input_next_to_a_prompt_is_an_unknown_field(
    job_input: Any, warnings: tuple[str, ...]
) -> None:
    assert parsed(job_input).warnings == warnings


def test_a_text_as_input_is_an_unknown_field_too() -> None:
    assert faults({"input": "a cat"}) == [("prompt", "is required")]


FOREIGN = registry.map_foreign(registry.find_usual_task())


@pytest.mark.parametrize(
    "name", [row.name for row in registry.list_fields() if row.name not in FOREIGN]
)
def test_no_other_empty_value_means_left_out(name: str) -> None:
    """In no field of a picture, but for an empty negative prompt: it is the model's own."""
    rest = {"prompt": "a fox"} if name != "prompt" else {}
    values: list[Any] = ["", [], {}]
    for value in values[1:] if name == "negative_prompt" else values:
        found = faults({**rest, name: value})
        assert found[0][0] == name


def test_null_means_left_out() -> None:
    job_input: dict[str, Any] = dict.fromkeys(registry.map_words())
    assert parsed({**job_input, "prompt": "a", "seed": 1}) == parsed({"prompt": "a", "seed": 1})


def test_unknown_fields_are_warned_about_with_a_guess() -> None:
    assert parsed({"prompt": "a", "widht": 5, "x": 1}).warnings == (
        "widht: is not a known field; did you mean width?",
        "x: is not a known field",
    )


def test_unknown_fields_are_refused_under_strict_input() -> None:
    reported = faults(
        {"prompt": "a", "widht": 5, "image": {"url": URL, "alt": 1}}, environ={"STRICT_INPUT": "1"}
    )
    assert [field for field, _ in reported] == ["widht", "image.alt"]


GUESSES = {
    "prompt": [
        *("promt", "Prompt", "PROMPT", " prompt ", "pormpt", "pr\u00f6mpt", "prompt:"),
        "_" * 54 + "prompt",
    ],
    "seed": ["Seed", "sed", "seeed", "sede"],
    "width": ["widht", "iwdth", "wdith", "WIDTH_"],
    "op": ["Op", "OP"],
    "n": ["N"],
    "text": ["Text", "texts", "te-xt"],
    "num_inference_steps": [
        *("numInferenceSteps", "num-inference-steps", "NumInferenceSteps", "num_inference_step"),
        *("NUM INFERENCE STEPS", "num.inference.steps", "numinferencesteps", "num_inferense_steps"),
    ],
    "negative_prompt": ["negativePrompt", "negative-prompt", "negativ_prompt", "Negative Prompt"],
    "image_url": ["imageUrl", "imageURL", "image-url", "imge_url"],
    "images": ["imags", "Images", "imgs"],
    "image": ["imgae", "imag", "Image"],
    "go_fast": ["goFast", "gofast"],
    "cfg_scale": ["cfgScale", "CFG Scale", "cfg_scal"],
}


@pytest.mark.parametrize(
    ("word", "meant"), [(word, name) for name, words in GUESSES.items() for word in words]
)
def test_an_unknown_field_is_reported_with_what_it_was_meant_to_be(word: str, meant: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        parsed({word: 1})
    (warning,) = refused.value.warnings
    assert warning.endswith(f": is not a known field; did you mean {meant}?")
    assert refused.value.message == f"prompt: is required; {warning}"
    assert refused.value.details == (Detail("prompt", "is required"),)


@pytest.mark.parametrize(
    "word",
    [
        *("x", "lorries", "voicing", "", "___", "\ud800", "\u732b"),
        *("idwht", "diwth", "prompt" + "_" * 55, "_" * 1_000_000 + "prompt"),
    ],
)
def test_a_word_that_is_near_to_none_gets_no_guess(word: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        parsed({word: 1})
    assert "did you mean" not in refused.value.message
    assert len(refused.value.warnings) == 1


def test_a_key_of_a_picture_is_reported_with_what_it_was_meant_to_be() -> None:
    for picture in ({"URL": URL}, {"image": PNG, "url": URL, "Url": 5}):
        with pytest.raises(InvalidInput) as refused:
            parsed({"prompt": "a", "images": [picture]})
        assert "is not a known field; did you mean url?" in refused.value.warnings[0]
        assert refused.value.warnings[0].startswith("images.")
        assert [detail.field for detail in refused.value.details] == ["images[0]"]


@pytest.mark.parametrize(
    ("name", "word", "meant"),
    [
        ("task", "edti", "edit"),
        ("mode", "Text to image", "text-to-image"),
        ("task", "text_to_image", "text-to-image"),
        ("task", "textToImage", "text-to-image"),
        ("output_format", "pgn", "png"),
        ("image_format", "jpge", "jpeg"),
        ("output_format", ".webp", "webp"),
        ("response_format", "base-64", "base64"),
        ("response_format", "dataUrl", "data_url"),
        ("aspect_ratio", "16/9", "16:9"),
        ("aspect_ratio", "9 x 16", "9:16"),
        ("aspect_ratio", "Match_Input_Image", "match_input_image"),
        ("op", "helth", "health"),
    ],
)
def test_a_wrong_word_of_a_field_is_reported_with_what_was_meant(
    name: str, word: str, meant: str
) -> None:
    ((field, message),) = faults({"prompt": "a", name: word})
    assert field == name
    assert message.endswith(f"(got '{word}'); did you mean {meant}?")


@pytest.mark.parametrize("word", ["video", "x", 5, True, None, [], "e" * 1000, "", "\ud800"])
def test_a_word_that_is_near_to_no_task_gets_no_guess(word: Any) -> None:
    messages = [m for _, m in faults({"prompt": "a", "width": 3, "task": word})]
    assert "did you mean" not in str(messages)


def test_the_warnings_of_an_error_are_all_that_were_found() -> None:
    with pytest.raises(InvalidInput) as refused:
        parsed({"prompt": "a", "widht": 5, "cfg": 4, "seed": "x"})
    assert refused.value.warnings == (
        "widht: is not a known field; did you mean width?",
        "cfg: set to 1.0, since Lightning runs without CFG (got 4)",
    )
    assert refused.value.message.endswith("; widht: is not a known field; did you mean width?")


def test_errors_of_every_kind_carry_the_warnings() -> None:
    for kind, job_input in (
        (UnsupportedTask, {"prompt": "a", "task": "layered", "widht": 1}),
        (ModelNotServed, {"prompt": "a", "model": "flux", "widht": 1}),
    ):
        with pytest.raises(kind) as refused:
            parsed(job_input)
        assert "did you mean width?" in refused.value.warnings[0]


def test_guessing_costs_the_same_however_much_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten words are compared at most, and none that is longer than any slip of ours."""
    compared: list[str] = []
    ratio = SequenceMatcher.ratio

    def counted(self: SequenceMatcher[str]) -> float:
        compared.append(str(vars(self)["b"]))
        return ratio(self)

    monkeypatch.setattr(SequenceMatcher, "ratio", counted)
    many = {f"promt{i:05}": i for i in range(20_000)}
    for job_input in (
        many,
        {"promt" * 200_000: 1},
        {"\ufdfa" * 60: 1},
        {"task": "edti" * 1_000_000},
    ):
        compared.clear()
        with pytest.raises(InvalidInput) as refused:
            parsed(job_input)
        assert len(refused.value.message) < 3000
        assert len(set(compared)) <= 10
        assert len(compared) <= 10 * len(registry.map_words())
        assert all(len(word) <= 60 for word in compared)


def test_a_quality_that_no_png_has_is_reported() -> None:
    reported = ("output_quality: has no effect on a png",)
    assert parsed({"prompt": "a", "output_quality": 80}).warnings == reported
    assert (
        parsed({"prompt": "a", "output_quality": 80, "output_format": "PNG"}).warnings == reported
    )
    assert parsed({"prompt": "a", "quality": 80, "output_format": "jpg"}).warnings == ()
    assert parsed({"prompt": "a", "output_format": "png"}).warnings == ()


def test_very_many_unknown_fields_are_counted_instead_of_named() -> None:
    warnings = parsed({"prompt": "a", **{f"x{i}": i for i in range(1000)}}).warnings
    assert len(warnings) == 11
    assert warnings[-1] == "input: has 990 more unknown fields"
    picture = {"url": URL, **{f"x{i}": i for i in range(1000)}}
    assert parsed({"prompt": "a", "image": picture}).warnings[-1].startswith("input: has 990 more")


@pytest.mark.parametrize("op", ["capabilities", "health"])
def test_a_query_needs_no_prompt(op: str) -> None:
    query = parse({"op": op, "x": 1}, BOTH, settings.read({}))
    assert query == Query(op, ("x: is not a known field",))  # type: ignore[arg-type]


def test_a_query_is_checked_like_any_input() -> None:
    assert faults({"op": "health", "width": 3})[0][0] == "width"


# Pictures


@pytest.mark.parametrize(
    ("value", "source"),
    [
        (URL, ImageSource("url", URL)),
        ("http://example.com/x", ImageSource("url", "http://example.com/x")),
        (
            "file:///etc/passwd",
            ImageSource("url", "file:///etc/passwd"),
        ),  # for media.fetch to refuse
        (PNG, ImageSource("base64", PNG)),
        (JPEG, ImageSource("base64", JPEG)),  # begins with a slash, and is no path
        ("\n".join((PNG[:20], PNG[20:])), ImageSource("base64", PNG)),
        (f"data:image/png;base64,{PNG}", ImageSource("base64", PNG)),
        (f"DATA:;base64,{PNG}", ImageSource("base64", PNG)),
        (PNG.rstrip("="), ImageSource("base64", PNG.rstrip("="))),
        ({"image": PNG}, ImageSource("base64", PNG)),
        ({"url": URL}, ImageSource("url", URL)),
        ({"data": f"data:image/png;base64,{PNG}"}, ImageSource("base64", PNG)),
        ({"base64": PNG, "url": None}, ImageSource("base64", PNG)),
    ],
)
def test_a_picture_may_be_written_in_every_listed_form(value: Any, source: ImageSource) -> None:
    assert parsed({"prompt": "a", "image": value}).sources == (source,)
    assert parsed({"prompt": "a", "images": [value, value]}).sources == (source, source)


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "/runpod-volume/pictures/somebody/else/cat",
        "/workspace/inputs/pictures/aLongNameOfOnlyLettersAndSlashes/",
        "./cat.png",
        "../../etc/hostname",
        "~/cat",
        "C:\\cat.png",
        "c:/cat",
        "\\\\server\\share",
        "inputs/cat.jpeg",
        "cat",
    ],
)
def test_a_file_path_is_never_accepted(path: str) -> None:
    for job_input in ({"image": path}, {"images": [{"image": path}]}):
        with pytest.raises(InvalidInput) as refused:
            parsed({"prompt": "a", **job_input})
        (detail,) = refused.value.details
        assert detail.field in ("image", "images[0]")


@pytest.mark.parametrize(
    "value",
    [
        "",
        " ",
        PNG + "!",
        PNG[:-3] + "=" * 3,
        PNG[:41],
        PNG[:-2] + PNG[-1],
        "iVBOR",
        f"data:image/png,{PNG}",
        "data:image/png;base64",
        f"data:{'x' * 300};base64,{PNG}",
        "caf\u00e9" * 20,
        "\ud800" * 40,
        5,
        True,
        [],
        [None],
        [[PNG]],
        {},
        {"url": 5},
        {"url": URL, "data": PNG},
        {"url": {"url": URL}},
        [URL] * 4,
    ],
)
def test_what_is_no_picture_is_refused(value: Any) -> None:
    with pytest.raises(InvalidInput) as refused:
        parsed({"prompt": "a", "image": value})
    assert {detail.field.partition("[")[0] for detail in refused.value.details} == {"image"}


def test_a_wrong_picture_is_named_by_its_place() -> None:
    assert [field for field, _ in faults({"prompt": "a", "image_urls": [URL, 5, ""]})] == [
        "image_urls[1]",
        "image_urls[2]",
    ]


def test_numbered_pictures_follow_in_their_order() -> None:
    a, b, c = (f"https://example.com/{name}" for name in "abc")
    for job_input in (
        {"image_3": c, "image_2": b, "image": a},
        {"images": [a, b], "image_3": c},
        {"images": [a, b, c], "image_2": b},
        {"image_url": a, "image_2": [b], "image_3": {"url": c}},
    ):
        request = parsed({"prompt": "a", **job_input})
        assert [source.value for source in request.sources] == [a, b, c]


def test_numbered_pictures_must_not_contradict_a_list() -> None:
    a, b, c = (f"https://example.com/{name}" for name in "abc")
    assert [f for f, _ in faults({"prompt": "a", "images": [a, b], "image_2": c})] == ["image_2"]
    assert [f for f, _ in faults({"prompt": "a", "image": a, "image_2": [b, c]})] == ["image_2"]


def test_a_picture_s_object_maps_nothing_to_pictures() -> None:
    """Other than that of LoRAs, whose keys may be their names."""
    with pytest.raises(InvalidInput) as refused:
        parsed({"prompt": "a", "image": {"URL": URL}})
    assert refused.value.warnings == ("image.URL: is not a known field; did you mean url?",)


def test_extra_keys_of_a_picture_are_warned_about() -> None:
    request = parsed({"prompt": "a", "images": [{"name": "cat.png", "image": PNG}]})
    assert request.warnings == ("images.name: is not a known field",)


def test_at_most_as_many_pictures_as_model_and_settings_allow() -> None:
    three = {"prompt": "a", "images": [URL] * 3}
    assert len(parsed(three).sources) == 3
    assert faults(three, environ={"MAX_INPUT_IMAGES": "2"}) == [
        ("images", "must be at most 2 for qwen-image-edit-2511 (got 3)")
    ]
    one = offering(EDIT, max_references=1)
    assert faults({"prompt": "a", "images": [URL] * 2}, (one,))[0][0] == "images"


# Task and model


def test_a_task_and_its_pictures_must_agree() -> None:
    assert faults({"prompt": "a", "task": "edit"}) == [("images", "is required for edit")]
    reported = faults({"prompt": "a", "mode": "text-to-image", "image": URL})
    assert reported[0][0] == "image"


def test_a_model_is_named_by_id_or_repository() -> None:
    for name in ("qwen-image-edit-2511", "Qwen/Qwen-Image-Edit-2511", "QWEN-IMAGE-EDIT-2511"):
        assert parsed({"prompt": "a", "image": URL, "model": name}).model is EDIT


def test_an_id_goes_before_a_repository() -> None:
    """Two revisions of one repository: the one that is called like the repository is meant."""
    older = replace(EDIT, id="alice/foo@v1", repository="Alice/Foo")
    newest = replace(EDIT, id="alice/foo", repository="Alice/Foo")
    for served in ((older, newest), (newest, older)):
        for name, meant in (("alice/foo", newest), ("Alice/Foo@v1", older)):
            job = {"prompt": "a", "image": URL, "model": name}
            assert parsed(job, served).model is meant


def test_a_model_that_is_not_served_is_refused_with_those_that_are() -> None:
    with pytest.raises(ModelNotServed, match="qwen-image-2512, qwen-image-edit-2511"):
        parsed({"prompt": "a", "model": "flux"})


def test_a_task_that_no_model_can_do_says_what_to_add() -> None:
    with pytest.raises(UnsupportedTask, match=r"add one of .*qwen-image-edit-2511.* to MODEL"):
        parsed({"prompt": "a", "image": URL}, (IMAGE,))
    with pytest.raises(UnsupportedTask, match=r"add one of .*qwen-image-2512.* to MODEL"):
        parsed({"prompt": "a"}, (EDIT,))


@pytest.mark.parametrize("task", ["layered"])
def test_a_task_of_later_versions_is_unsupported(task: str) -> None:
    with pytest.raises(UnsupportedTask, match="this version has no model for it"):
        parsed({"prompt": "a", "task": task})


def test_a_model_that_cannot_do_the_task_names_one_that_can() -> None:
    with pytest.raises(UnsupportedTask, match="not edit; qwen-image-edit-2511 does"):
        parsed({"prompt": "a", "model": "qwen-image-2512", "image": URL})
    with pytest.raises(UnsupportedTask, match="give images to edit"):
        parsed({"prompt": "a", "model": "qwen-image-edit-2511"})


def test_an_unknown_task_is_invalid_and_lists_the_known() -> None:
    ((field, message),) = faults({"prompt": "a", "workflow": "video"})
    assert field == "workflow"
    assert "'text-to-image', 'edit'" in message


# Lightning, steps and CFG


def test_lightning_takes_only_the_counts_it_holds_and_names_them() -> None:
    assert parsed({"prompt": "a", "steps": 4}).steps == 4
    ((_, message),) = faults({"prompt": "a", "num_inference_steps": 20})
    assert message.startswith("must be 8 or 4 with Lightning")


def test_without_lightning_the_models_own_schedule_serves_any_count() -> None:
    request = parsed({"prompt": "a", "lightning": False})
    assert (request.steps, request.true_cfg_scale) == (50, 4.0)
    assert parsed({"prompt": "a", "lightning": False, "steps": 100}).steps == 100
    assert faults({"prompt": "a", "lightning": False, "steps": 1})[0][0] == "steps"


def test_lightning_follows_the_operators_setting() -> None:
    assert not parsed({"prompt": "a"}, environ={"USE_LIGHTNING_LORA": "false"}).lightning
    assert parsed(
        {"prompt": "a", "lightning": True}, environ={"USE_LIGHTNING_LORA": "false"}
    ).lightning


def test_a_model_without_lightning_runs_its_base_schedule_unless_lightning_is_asked() -> None:
    plain = (offering(IMAGE, lightning_steps=()),)
    assert not parsed({"prompt": "a"}, plain).lightning
    assert faults({"prompt": "a", "go_fast": True}, plain)[0][0] == "go_fast"


def test_a_fused_model_cannot_leave_lightning() -> None:
    fused = (offering(IMAGE, lightning_steps=(8,)),)
    environ = {"LIGHTNING_FUSED": "true", "LIGHTNING_STEPS": "8"}
    assert parsed({"prompt": "a"}, fused, environ).lightning
    assert faults({"prompt": "a", "lightning": False}, fused, environ)[0][0] == "lightning"


def test_cfg_is_set_to_1_under_lightning_and_said() -> None:
    request = parsed({"prompt": "a", "guidance_scale": 4, "negative_prompt": "blurry"})
    assert (request.true_cfg_scale, request.negative_prompt) == (1.0, None)
    assert [warning.partition(":")[0] for warning in request.warnings] == [
        "guidance_scale",
        "negative_prompt",
    ]
    assert parsed({"prompt": "a", "cfg": 1}).warnings == ()


def test_the_negative_prompt_is_the_models_where_cfg_runs_without_one() -> None:
    base = {"prompt": "a", "lightning": False}
    assert parsed({**base, "negative_prompt": "blurry"}).negative_prompt == "blurry"
    for none in ({}, {"negative": ""}, {"negative_prompt": None}):
        assert parsed({**base, **none}).negative_prompt == NEGATIVE_2512
        assert parsed({**base, **none, "image": URL}).negative_prompt == " "
    assert parsed({**base, "cfg": 1}).negative_prompt is None


# Seeds, sizes, delivery


@pytest.mark.parametrize("seed", [0, 42, "42", 2**63 - 1])
def test_a_seed_is_kept_as_it_is(seed: Any) -> None:
    assert parsed({"prompt": "a", "seed": seed}).seed == int(seed)


@pytest.mark.parametrize("seed", [-1, None, "-1"])
def test_a_random_seed_is_exact_for_every_reader(seed: Any) -> None:
    drawn = {parsed({"prompt": "a", "seed": seed}).seed for _ in range(20)}
    assert len(drawn) == 20
    assert all(0 <= one < 2**53 for one in drawn)


@pytest.mark.parametrize("seed", [-2, 2**63, 10**400, 1.0, True, "x", [1]])
def test_what_is_no_seed_is_refused(seed: Any) -> None:
    assert faults({"prompt": "a", "seed": seed})[0][0] == "seed"


def test_every_pictures_seed_stays_in_range() -> None:
    assert parsed({"prompt": "a", "seed": 2**63 - 4, "n": 4}).num_images == 4
    assert faults({"prompt": "a", "seed": 2**63 - 3, "n": 4})[0][0] == "seed"


def test_the_operator_may_allow_fewer_pictures() -> None:
    assert faults({"prompt": "a", "num_outputs": 2}, environ={"MAX_IMAGES_PER_REQUEST": "1"})[
        0
    ] == (
        "num_outputs",
        "must be at most 1 (got 2)",
    )


@pytest.mark.parametrize("text", ["1024x768", "1024*768", "1024X768"])
def test_a_size_is_width_by_height(text: str) -> None:
    size = parsed({"prompt": "a", "image_size": text}).size
    assert (size.width, size.height, size.field) == (1024, 768, "image_size")


@pytest.mark.parametrize(
    "text", ["1024", "1024x", "x", "-64x64", "63x64", "1e3x64", "9999999x64", 5]
)
def test_what_is_no_size_is_refused(text: Any) -> None:
    assert faults({"prompt": "a", "size": text})[0][0] == "size"


def test_auto_is_the_default() -> None:
    auto = parsed({"prompt": "a", "size": "auto", "seed": 1}).size
    assert replace(auto, field="") == replace(parsed({"prompt": "a"}).size, field="")


def test_input_and_match_input_image_are_for_edits() -> None:
    assert parsed({"prompt": "a", "image": URL, "size": "input"}).size.as_input
    matched = parsed({"prompt": "a", "image": URL, "aspect_ratio": "match_input_image"})
    assert matched.size.aspect_ratio is None
    assert faults({"prompt": "a", "size": "input"})[0][0] == "size"
    assert faults({"prompt": "a", "aspect_ratio": "match_input_image"})[0][0] == "aspect_ratio"


def test_sizes_that_contradict_each_other_are_refused() -> None:
    assert faults({"prompt": "a", "size": "512x512", "width": 640})[0] == (
        "size",
        "differs from width",
    )
    edit = {"prompt": "a", "image": URL, "size": "input"}
    assert faults({**edit, "height": 640})[0][0] == "size"
    assert faults({**edit, "aspect_ratio": "1:1"})[0][0] == "aspect_ratio"
    assert parsed({"prompt": "a", "size": "512x512", "width": 512}).warnings == ()
    warned = parsed({"prompt": "a", "size": "512x512", "aspect_ratio": "16:9"})
    assert warned.warnings == ("aspect_ratio: has no effect with width and height",)
    as_given = {"prompt": "a", "image": URL, "aspect_ratio": "match_input_image"}
    assert parsed({**as_given, "width": 512, "height": 512}).warnings == warned.warnings
    assert parsed({**as_given, "width": 512}).warnings == ()
    assert parsed({**as_given, "size": "input"}).warnings == ()


def test_a_size_over_the_limit_is_refused_before_anything_is_fetched() -> None:
    for job_input in (
        {"width": 4096, "height": 4096},
        {"size": "4096x4096", "image": URL},
        {"width": 8192},
        {"height": 8192, "aspect_ratio": "16:9", "image": URL},
    ):
        ((_, message),) = faults({"prompt": "a", **job_input})
        assert "at most 4194304 pixels" in message


@pytest.mark.parametrize(("word", "named"), [("jpg", "jpeg"), ("JPEG", "jpeg"), ("WebP", "webp")])
def test_a_format_goes_by_its_usual_names(word: str, named: str) -> None:
    assert parsed({"prompt": "a", "output_format": word}).output_format == named


def test_pictures_go_to_the_bucket_where_there_is_one() -> None:
    assert parsed({"prompt": "a"}, environ=BUCKET).response_format == "url"
    assert parsed({"prompt": "a"}, s3=True).response_format == "url"
    assert (
        parsed({"prompt": "a", "response_format": "base64"}, environ=BUCKET).response_format
        == "base64"
    )
    assert faults({"prompt": "a", "response_format": "url"})[0][0] == "response_format"


def test_an_upload_url_is_needed_for_each_picture() -> None:
    put = PUT
    request = parsed({"prompt": "a", "upload_url": put})
    assert (request.response_format, request.upload_urls) == ("url", (put,))
    assert parsed({"prompt": "a", "n": 2, "upload_url": [put, put]}).upload_urls == (put, put)
    assert faults({"prompt": "a", "n": 2, "upload_url": put})[0][0] == "upload_url"
    assert faults({"prompt": "a", "upload_url": "ftp://x"})[0][0] == "upload_url"
    reported = faults({"prompt": "a", "upload_url": put, "response_format": "base64"})
    assert reported[0][0] == "upload_url"


# What one field says


@pytest.mark.parametrize(
    ("value", "got"),
    [
        ("x" * 40, f"'{'x' * 40}'"),
        ("x" * 41, f"'{'x' * 40}...'"),
        ("caf\u00e9\n", r"'caf\xe9\n'"),
        (True, "true"),
        (False, "false"),
        (1.5, "1.5"),
        ([512], "a list"),
        ({}, "an object"),
        ((512,), "no JSON value"),
    ],
)
def test_a_fault_shows_what_was_given_in_short(value: Any, got: str) -> None:
    reported = [("width", f"must be a whole number (got {got})")]
    assert faults({"prompt": "a", "width": value}) == reported


@pytest.mark.parametrize("sign", [1, -1])
def test_a_number_is_shown_up_to_20_digits(sign: int) -> None:
    bound = "must be at most 65536" if sign > 0 else "must be at least 64"
    for number, got in ((10**20, "a huge number"), (10**20 - 1, str(sign * (10**20 - 1)))):
        reported = [("width", f"{bound} (got {got})")]
        assert faults({"prompt": "a", "width": sign * number}) == reported


def test_an_input_that_is_null_is_shown_as_null() -> None:
    assert faults(None)[0][1].endswith("(got null)")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("width", "9" * 19, f"must be at most 65536 (got '{'9' * 19}')"),
        ("width", "9" * 20, f"must be a whole number (got '{'9' * 20}')"),
        ("cfg", f"{'9' * 19}.{'1' * 19}", f"must be at most 20 (got '{'9' * 19}.{'1' * 19}')"),
        ("cfg", "9" * 20, f"must be a number (got '{'9' * 20}')"),
        ("cfg", f"9.{'9' * 20}", f"must be a number (got '9.{'9' * 20}')"),
        ("cfg", "-3", "must be at least 1 (got '-3')"),
        ("cfg", "3.", "must be a number (got '3.')"),
        ("cfg", ".5", "must be a number (got '.5')"),
        ("seed", "-2", "must be 0 to 2^63-1, or -1 for a random one (got -2)"),
    ],
)
def test_a_number_may_be_written_with_up_to_19_digits(name: str, text: str, message: str) -> None:
    assert faults({"prompt": "a", "lightning": False, name: text}) == [(name, message)]


def test_a_lone_surrogate_shows_nothing() -> None:
    assert is_blank("\ud800\udfff")
    assert not is_blank("\ud800a")


@pytest.mark.parametrize("word", ["jpg", "JPG", "Jpg", "Jpeg"])
def test_jpg_is_jpeg_in_any_case(word: str) -> None:
    assert parsed({"prompt": "a", "output_format": word}).output_format == "jpeg"


def test_words_are_read_in_any_case() -> None:
    edit = {"prompt": "a", "image": URL}
    assert parsed({**edit, "size": "INPUT"}).size.as_input
    assert parsed({"prompt": "a", "size": "Auto"}).size == Size()
    assert parsed({**edit, "task": "Edit"}).task == "edit"
    assert parsed({"prompt": "a", "response_format": "DATA_URL"}).response_format == "data_url"
    assert parse({"op": "Health"}, BOTH, settings.read({})) == Query("health")


@pytest.mark.parametrize("ratio", ["1:1", "16:9", "9:16", "4:3", "3:4", "3:2", "2:3"])
def test_every_ratio_of_the_table_is_taken(ratio: str) -> None:
    assert ratio in next(
        row.accepts for row in registry.list_fields() if row.name == "aspect_ratio"
    )
    assert parsed({"prompt": "a", "aspect_ratio": ratio}).size.aspect_ratio == ratio


def test_an_upload_url_has_a_scheme_in_any_case_and_8190_characters_at_most() -> None:
    for start in ("HTTPS://", "http://"):
        assert refused("upload_url", start + "b.example/x") == []
    assert refused("upload_url", "https://x".ljust(8190, "y")) == []
    assert refused("upload_url", "https://x".ljust(8191, "y")) == [
        "must have at most 8190 characters (got 8191)"
    ]
    assert refused("upload_url", "xhttps://b.example") == ["must be an https URL"]


def test_a_list_of_the_wrong_length_is_reported_with_both_numbers() -> None:
    assert refused("images", [URL] * 5) == ["must be 1 to 4 (got 5); leave it out for none"]
    assert refused("upload_url", [PUT] * 5) == ["must be 1 to 4 (got 5); leave it out for none"]


def test_the_names_of_a_field_are_compared_with_the_first_that_was_given() -> None:
    given = {"prompt": "a", "n": 2, "num_images": 2, "num_outputs": 3, "num_images_per_prompt": 2}
    assert faults(given) == [("num_outputs", "differs from n, which means the same")]


def test_a_field_goes_by_the_first_of_its_names_that_was_given() -> None:
    warnings = parsed({"prompt": "a", "cfg": 4, "guidance": 4, "true_cfg_scale": 4}).warnings
    assert warnings == ("cfg: set to 1.0, since Lightning runs without CFG (got 4)",)


def test_what_follows_a_word_without_effect_is_read() -> None:
    assert parsed({"quality": "high", "prompt": "a", "seed": 7}).seed == 7


@pytest.mark.parametrize("start", ["images", "image_url"])
def test_a_third_picture_needs_no_second(start: str) -> None:
    a, c = "https://example.com/a", "https://example.com/c"
    sources = parsed({"prompt": "a", start: a, "image_3": c}).sources
    assert [source.value for source in sources] == [a, c]
    assert [source.value for source in parsed({"prompt": "a", "image_2": c}).sources] == [c]


def test_a_clash_of_numbered_pictures_says_which() -> None:
    a, b, c = (f"https://example.com/{name}" for name in "abc")
    assert faults({"prompt": "a", "images": [a, b, c], "image_3": b}) == [
        ("image_3", "differs from picture 3, which is given already")
    ]
    assert faults({"prompt": "a", "images": a, "image_2": [b, c]}) == [
        ("image_2", "must be one picture (got 2)")
    ]


def test_keys_are_looked_at_in_the_pictures_that_count() -> None:
    many = [{"url": URL, f"k{n}": 1} for n in range(5)]
    with pytest.raises(InvalidInput) as reported:
        parsed({"prompt": "a", "images": many})
    assert [text.partition(":")[0] for text in reported.value.warnings] == [
        "images.k0",
        "images.k1",
        "images.k2",
        "images.k3",
    ]


def test_a_mask_is_one_and_known_by_the_name_that_it_was_given() -> None:
    masks = [{"url": URL, f"k{n}": 1} for n in range(2)]
    with pytest.raises(InvalidInput) as reported:
        parsed({"prompt": "a", "image": URL, "mask": masks})
    assert reported.value.warnings == ("mask.k0: is not a known field",)
    job = {"prompt": "a", "image": URL, "mask_url": "https://example.com/mask.png"}
    request = parse(job, BOTH, settings.read({}))
    assert isinstance(request, Request)
    asked = request.asked
    assert isinstance(asked, PictureAsked)
    assert [source.field for source in asked.sources] == [None, "mask_url"]
    assert asked.repaint is not None
    assert asked.repaint.field == "mask_url"


def test_an_unknown_field_is_named_up_to_60_plain_characters() -> None:
    for word, name in (
        ("k" * 60, "k" * 60),
        ("k" * 61, f"'{'k' * 40}...'"),
        ("k\n", r"'k\n'"),
        ("\u00e9", r"'\xe9'"),
    ):
        assert parsed({"prompt": "a", word: 1}).warnings == (f"{name}: is not a known field",)


def test_ten_unknown_fields_are_all_named() -> None:
    warnings = parsed({"prompt": "a", **{f"x{n}": 1 for n in range(10)}}).warnings
    assert [text.partition(":")[0] for text in warnings] == [f"x{n}" for n in range(10)]


def test_an_input_next_to_an_op_is_an_unknown_field() -> None:
    query = parse({"op": "health", "input": {"prompt": "a"}}, BOTH, settings.read({}))
    assert query == Query("health", ("input: is not a known field; speech has it",))


# What a picture may be


NO_PATH = "a file path is never read; send an https URL, a data URI or base64"


@pytest.mark.parametrize(
    "path",
    [
        *("/x", "~x", "\\x", "./x", "../x", ".\\x", "..\\x", "c:/x", "Z:\\x"),
        *(
            f"cat.{end}"
            for end in [
                "png",
                "jpg",
                "jpeg",
                "webp",
                "gif",
                "bmp",
                "avif",
                "heic",
                "heif",
                "tif",
                "tiff",
                "PNG",
                "Jpg",
            ]
        ),
        f"{'a' * 4096}.png",
    ],
)
def test_a_path_is_reported_as_that(path: str) -> None:
    assert faults({"prompt": "a", "image": path}) == [("image", NO_PATH)]


@pytest.mark.parametrize(
    "text", ["cat", ".cat", "cat.pn", "cat.pngx", "1:/cat", "...", "\ud800" * 40]
)
def test_what_is_no_path_is_answered_with_what_it_may_be(text: str) -> None:
    ((_, message),) = faults({"prompt": "a", "image": text})
    assert message.startswith('must be an https URL, a data URI, base64, or {"image"|"url"')


@pytest.mark.parametrize(
    ("scheme", "is_url"),
    [("ftp", True), ("x-1.y+z", True), ("a" * 32, True), ("a" * 33, False), ("1a", False)],
)
def test_a_url_is_known_by_its_scheme(scheme: str, is_url: bool) -> None:
    value = f"{scheme}://example.com/x"
    if is_url:
        assert parsed({"prompt": "a", "image": value}).sources == (ImageSource("url", value),)
    else:
        assert faults({"prompt": "a", "image": value})[0][0] == "image"


def test_32_characters_of_base64_may_be_a_picture() -> None:
    for count, message in ((24, None), (23, None), (22, "too short"), (21, "too short")):
        text = base64.b64encode(bytes(range(1, 1 + count))).decode()
        reported = refused("images", text.rstrip("=") if count == 22 else text)
        assert bool(reported) == (message is not None), count
        assert not message or message in reported[0]


def test_the_header_of_a_data_uri_ends_in_256_characters() -> None:
    for length, fits in ((256, True), (257, False)):
        header = "data:image/png".ljust(length - len(";base64,"), "x") + ";base64,"
        assert len(header) == length
        assert (refused("images", header + PNG) == []) is fits


def test_an_object_names_one_picture() -> None:
    for value in ({}, {"url": URL, "data": PNG}, {"url": None}):
        assert refused("images", value) == [
            "an object must have exactly one of image, url, data, base64, image_url, b64_json"
        ]


# What fields say together


def test_faults_of_several_kinds_are_an_invalid_input() -> None:
    with pytest.raises(WorkerError) as reported:
        parsed({"prompt": "a", "model": "flux", "width": 3})
    assert type(reported.value) is InvalidInput
    assert {detail.field for detail in reported.value.details} == {"model", "width"}


def test_the_first_model_that_can_is_taken() -> None:
    second = replace(EDIT, id="second")
    for served in ((IMAGE, EDIT, second), (second, EDIT)):
        able = next(model for model in served if "edit" in model.tasks)
        assert parsed({"prompt": "a", "image": URL}, served).model is able


def test_of_two_models_of_one_repository_the_one_that_can_is_meant() -> None:
    pair = (replace(IMAGE, repository="a/b"), replace(EDIT, repository="a/b"))
    assert parsed({"prompt": "a", "model": "A/B"}, pair).model is pair[0]
    assert parsed({"prompt": "a", "model": "A/B", "image": URL}, pair).model is pair[1]


@pytest.mark.parametrize("model", [5, "flux", "qwen-image-2512"])
def test_without_a_model_the_size_is_checked_for_the_task_that_was_meant(model: Any) -> None:
    job = {"prompt": "a", "model": model, "size": "input"}
    assert [field for field, _ in faults({**job, "image": URL}, (IMAGE,))] == ["model"]
    assert faults({**job, "task": "edit"}, (IMAGE,))[0][0] == "model"
    text = faults(job, (EDIT,))
    assert [field for field, _ in text] == ["model", "size"]
    assert text[1] == ("size", "input is for edit: there is no input picture")


def test_a_wrong_picture_still_means_an_edit() -> None:
    assert faults({"prompt": "a", "image": 5, "size": "input"})[0][0] == "image"
    assert len(faults({"prompt": "a", "image": 5, "size": "input"})) == 1
    reported = faults({"prompt": "a", "image": 5}, (IMAGE,))
    assert [field for field, _ in reported] == ["image", "task"]
    assert len(faults({"prompt": "a", "image": 5, "task": 7, "size": "input"})) == 2


def test_what_a_model_cannot_do_says_what_it_does_and_who_can() -> None:
    both = replace(EDIT, id="both", offers=dict.fromkeys(("text-to-image", "edit"), offer_of(EDIT)))
    ((_, message),) = faults({"prompt": "a", "task": "layered", "model": "both"}, (both,))
    reported = "both does text-to-image and edit, not layered; this version has no model for it"
    assert message == reported
    ((_, message),) = faults({"prompt": "a", "model": EDIT.id, "task": "text-to-image"})
    assert (
        message == f"{EDIT.id} does edit, inpaint and outpaint, not text-to-image; {IMAGE.id} does"
    )
    ((_, message),) = faults({"prompt": "a", "model": EDIT.id})
    assert message.startswith(
        f"{EDIT.id} does edit, inpaint and outpaint, not text-to-image; give images to edit; "
    )
    ((_, message),) = faults({"prompt": "a", "model": IMAGE.id, "image": URL}, (IMAGE,))
    assert "give images" not in message
    assert "; add one of " in message
    assert "tiny" not in message


def test_the_first_of_several_models_is_named_where_none_of_them_can() -> None:
    alike = tuple(replace(IMAGE, id=name, repository="a/b") for name in ("one", "two"))
    second = replace(EDIT, id="second")
    ((_, message),) = faults({"prompt": "a", "model": "A/B", "image": URL}, (*alike, EDIT, second))
    assert message.startswith("one does text-to-image, ")
    assert message.endswith(f", not edit; {EDIT.id} does")


def test_every_fault_of_lightning_has_its_words() -> None:
    plain = (offering(IMAGE, lightning_steps=()),)
    fused = {"LIGHTNING_FUSED": "true", "LIGHTNING_STEPS": "8"}
    models = (offering(IMAGE, lightning_steps=(8,)),)
    base = {"prompt": "a"}
    assert faults({**base, "lightning": True}, plain) == [
        ("lightning", "no Lightning LoRA is loaded for qwen-image-2512")
    ]
    assert faults({**base, "steps": 20}) == [
        ("steps", "must be 8 or 4 with Lightning, or lightning must be false (got 20)")
    ]
    assert faults({**base, "steps": 4}, models, fused) == [
        ("steps", "must be 8 with Lightning (got 4)")
    ]
    assert faults({**base, "lightning": False}, models, fused) == [
        ("lightning", "cannot be turned off: qwen-image-2512 has it baked in here")
    ]
    assert faults({**base, "lightning": False, "steps": 4}, models, fused)[1][0] == "steps"


def test_a_model_without_lightning_is_free_of_it_on_a_fused_worker_too() -> None:
    fused = {"LIGHTNING_FUSED": "true", "LIGHTNING_STEPS": "8"}
    plain = (offering(IMAGE, lightning_steps=()),)
    request = parsed({"prompt": "a", "steps": 7}, plain, fused)
    assert (request.lightning, request.steps, request.true_cfg_scale) == (False, 7, 4.0)


def test_cfg_runs_from_just_above_1() -> None:
    base = {"prompt": "a", "lightning": False}
    assert parsed({**base, "cfg": 1.0001}).negative_prompt == NEGATIVE_2512
    request = parsed({**base, "cfg": 1, "negative": "dark"})
    assert request.negative_prompt is None
    assert request.warnings == ("negative: has no effect at a true_cfg_scale of 1.0",)
    reported = "cfg: set to 1.0, since Lightning runs without CFG (got 1.5)"
    assert parsed({"prompt": "a", "cfg": 1.5}).warnings == (reported,)


def test_a_random_seed_leaves_room_for_four_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last seed of the last picture is the largest whole number that every reader has."""
    monkeypatch.setattr("secrets.randbelow", lambda below: below - 1)
    request = parsed({"prompt": "a", "n": 4})
    assert request.seed + 3 < 2**53 - 1
    assert request.seed == 2**53 - 5


def test_the_number_of_pictures_and_the_last_seed_are_checked_at_their_bounds() -> None:
    two = {"MAX_IMAGES_PER_REQUEST": "2"}
    assert parsed({"prompt": "a", "n": 2}, environ=two).num_images == 2
    assert faults({"prompt": "a", "n": 3}, environ=two) == [("n", "must be at most 2 (got 3)")]
    assert faults({"prompt": "a", "n": 2, "seed": 2**63 - 1}) == [
        ("seed", "seed + 1 must be at most 2^63-1")
    ]


def test_what_is_wrong_with_delivery_is_reported_once() -> None:
    base = {"prompt": "a"}
    assert [f for f, _ in faults({**base, "n": 9, "upload_url": PUT})] == ["n"]
    assert faults({**base, "n": 2, "upload_url": PUT}) == [
        ("upload_url", "must be one for each of 2 (got 1)")
    ]
    wrong = {**base, "upload_url": "x", "response_format": "url"}
    assert [f for f, _ in faults(wrong)] == ["upload_url"]
    for asked in ("base64", "data_url"):
        assert faults({**base, "upload_url": PUT, "response_format": asked}) == [
            ("upload_url", f"needs response_format url, not {asked}")
        ]
    assert parsed({**base, "upload_url": PUT, "response_format": "url"}).upload_urls == (PUT,)
    for s3, environ in ((True, {}), (False, BUCKET)):
        request = parsed({**base, "response_format": "url"}, environ=environ, s3=s3)
        assert request.response_format == "url"


@pytest.mark.parametrize(
    ("given", "size"),
    [
        ({}, Size(field="aspect_ratio")),
        ({"aspect_ratio": "4:3"}, Size(aspect_ratio="4:3", field="aspect_ratio")),
        ({"width": 512}, Size(width=512, field="width")),
        ({"height": 512}, Size(height=512, field="height")),
        ({"width": 512, "height": 640}, Size(512, 640, field="width")),
        ({"width": 512, "aspect_ratio": "4:3"}, Size(512, None, "4:3", field="width")),
        ({"height": 512, "aspect_ratio": "4:3"}, Size(None, 512, "4:3", field="height")),
        ({"size": "512x640", "height": 640}, Size(512, 640, field="size")),
        ({"image_size": "512x640"}, Size(512, 640, field="image_size")),
        ({"size": "input", "image": URL}, Size(as_input=True, field="size")),
    ],
)
def test_a_size_is_what_was_given_by_the_name_it_was_given(given: Any, size: Size) -> None:
    assert parsed({"prompt": "a", **given}).size == size


def test_a_clash_of_sizes_names_both() -> None:
    for name in ("width", "height"):
        assert faults({"prompt": "a", "image_size": "512x512", name: 640}) == [
            ("image_size", f"differs from {name}")
        ]
        assert faults({"prompt": "a", "image": URL, "size": "input", name: 640}) == [
            ("size", f"input cannot be combined with {name}")
        ]
    assert faults({"prompt": "a", "image": URL, "size": "input", "aspect_ratio": "1:1"}) == [
        ("aspect_ratio", "differs from size input")
    ]
    assert faults({"prompt": "a", "size": "input"}) == [
        ("size", "input is for edit: there is no input picture")
    ]
    assert faults({"prompt": "a", "aspect_ratio": "match_input_image"}) == [
        ("aspect_ratio", "match_input_image is for edit")
    ]


def test_a_side_whose_other_waits_for_the_picture_is_checked_with_it() -> None:
    assert parsed({"prompt": "a", "image": URL, "width": 8192}).size.width == 8192
    assert parsed({"prompt": "a", "image": URL, "height": 8192}).size.height == 8192
    for sides in ({"width": 8192}, {"height": 8192}, {"width": 4096, "height": 4096}):
        ((field, _),) = faults({"prompt": "a", **sides})
        assert field == next(iter(sides))
        ((field, _),) = faults({"prompt": "a", "image": URL, "aspect_ratio": "1:1", **sides})
        assert field == next(iter(sides))


@pytest.mark.parametrize("name", ["width", "height", "size", "aspect_ratio"])
def test_a_size_of_which_a_part_is_wrong_is_not_checked_as_one(name: str) -> None:
    given: dict[str, Any] = {"width": 60000, "height": 60000, name: "wrong"}
    assert [field for field, _ in faults({"prompt": "a", **given})] == [name]


# Whatever comes


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["nan", "-1", "512", "9" * 400, URL, PNG, "\ud800", "\0", "input", "auto"])
    | st.sampled_from([10**400, -(10**400), 2**63, True, 1e308, float("nan"), float("-inf")]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
INPUTS = st.dictionaries(
    st.sampled_from(sorted(registry.map_words())) | st.text(), JSON, max_size=8
)
PLAUSIBLE = st.fixed_dictionaries(
    {"prompt": st.text(min_size=1, max_size=20)},
    optional={
        "images": st.lists(st.sampled_from([URL, PNG]), min_size=1, max_size=3),
        "task": st.sampled_from(["edit", "text-to-image"]),
        "width": st.integers(60, 3000),
        "height": st.integers(60, 3000),
        "size": st.sampled_from(["auto", "input", "512x512", "8000x8000"]),
        "aspect_ratio": st.sampled_from(["1:1", "16:9", "match_input_image"]),
        "steps": st.integers(1, 101),
        "cfg": st.floats(0, 21),
        "lightning": st.booleans(),
        "seed": st.integers(-2, 2**63),
        "n": st.integers(0, 5),
    },
)


@examples(max_examples=1000)
@given(job_input=JSON | INPUTS | PLAUSIBLE, strict=st.booleans())
def test_any_json_is_a_right_request_or_a_reported_fault(job_input: Any, *, strict: bool) -> None:
    """Nothing but a WorkerError leaves, and a Request holds all that the engine relies on."""
    reported: list[WorkerError] = []
    try:
        answer = parse(job_input, BOTH, settings.read({"STRICT_INPUT": str(strict)}))
    except WorkerError as error:
        reported.append(error)
    if reported:
        assert reported[0].details
        json.dumps([reported[0].message, reported[0].warnings], ensure_ascii=False).encode()
        assert len(reported[0].message) < 20_000
        return
    json.dumps(answer.warnings, ensure_ascii=False).encode()
    if isinstance(answer, Query):
        return
    request = flat(answer)
    assert request.task in request.model.tasks
    assert 1 <= len(request.prompt) <= 5000
    assert not request.prompt.isspace()
    assert (request.task == "edit") == bool(request.sources)
    assert len(request.sources) <= offer_of(request.model).max_references
    assert 0 <= request.seed <= request.seed + request.num_images - 1 <= 2**63 - 1
    assert 1 <= request.num_images <= 4
    assert 2 <= request.steps <= 100
    assert 1 <= request.true_cfg_scale <= 20
    assert (request.negative_prompt is not None) == (request.true_cfg_scale > 1)
    if request.lightning:
        assert request.steps in offer_of(request.model).lightning_steps
        assert request.true_cfg_scale == 1
    assert request.response_format != "url"


@pytest.mark.parametrize("name", [*registry.map_words(), "unheard-of"])
def test_deep_nesting_is_refused_like_any_wrong_value(name: str) -> None:
    deep: Any = 5
    for _ in range(20_000):
        deep = [deep]
    wide = {"url": deep, "x": deep}
    for value in (deep, wide, [wide]):
        with pytest.raises(InvalidInput) as refused:
            parse({"prompt": "a", name: value}, BOTH, settings.read({"STRICT_INPUT": "1"}))
        assert refused.value.details[0].field.startswith(name)


def test_an_integer_too_long_to_print_is_refused_like_any_wrong_value() -> None:
    numbers = {"width": 10**5000, "seed": -(10**5000), "cfg": 10**5000, "prompt": 10**5000}
    assert {field for field, _ in faults(numbers)} == set(numbers)


def test_keys_that_are_no_strings_are_unknown_fields() -> None:
    assert len(parsed({"prompt": "a", 5: 1, None: 2, (1, 2): 3}).warnings) == 3
