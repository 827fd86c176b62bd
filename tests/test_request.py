"""A job's input becomes a Request that cannot be wrong, or every fault of it at once."""

import base64
import json
from collections.abc import Mapping
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from worlds.published import EDIT, IMAGE

from worker import settings
from worker.edge import fields
from worker.edge.request import Query, Request, parse
from worker.errors import InvalidInput, ModelNotServed, UnsupportedTask, WorkerError
from worker.families import Served
from worker.media.fetch import ImageSource

BOTH = (IMAGE, EDIT)
URL = "https://example.com/cat.png"
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(range(60))).decode()
JPEG = base64.b64encode(b"\xff\xd8\xff\xe0" + bytes(range(60))).decode()
BUCKET = {
    "BUCKET_ENDPOINT_URL": "https://bucket.example",
    "BUCKET_ACCESS_KEY_ID": "an-access-key",
    "BUCKET_SECRET_ACCESS_KEY": "a-secret-key",
}


def parsed(
    job_input: Any,
    served: tuple[Served, ...] = BOTH,
    environ: Mapping[str, str] | None = None,
    *,
    s3: bool = False,
) -> Request:
    request = parse(job_input, served, settings.read(environ or {}), callers_bucket=s3)
    assert isinstance(request, Request)
    return request


def faults(
    job_input: Any, served: tuple[Served, ...] = BOTH, environ: Mapping[str, str] | None = None
) -> list[tuple[str, str]]:
    """Return (field, message) of every fault of an input that must be refused."""
    with pytest.raises(WorkerError) as refused:
        parse(job_input, served, settings.read(environ or {}))
    assert refused.value.details
    for detail in refused.value.details:
        assert f"{detail.field}: {detail.message}" in refused.value.message
    return [(detail.field, detail.message) for detail in refused.value.details]


def test_a_prompt_alone_is_a_whole_request() -> None:
    request = parsed({"prompt": "a cat"})
    assert request.task == "text-to-image"
    assert request.model is IMAGE
    assert (request.prompt, request.negative_prompt) == ("a cat", None)
    assert (request.steps, request.true_cfg_scale, request.lightning) == (8, 1.0, True)
    assert (request.num_images, request.output_format, request.output_quality) == (1, "png", 95)
    assert (request.response_format, request.upload_urls) == ("base64", ())
    assert request.sources == ()
    assert request.warnings == ()
    with pytest.raises(FrozenInstanceError):
        request.steps = 9  # type: ignore[misc]


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
    "width": 512,
    "height": 512,
    "size": "512x512",
    "aspect_ratio": "16:9",
    "num_inference_steps": 4,
    "true_cfg_scale": 1.0,
    "lightning": True,
    "seed": 5,
    "num_images": 2,
    "output_format": "webp",
    "output_quality": 80,
    "response_format": "data_url",
    "upload_url": ["https://example.com/put"],
    "op": "generate",
}


def test_the_table_has_the_contracts_fields() -> None:
    assert [row.name for row in fields.table()] == list(VALUES)


@pytest.mark.parametrize(
    ("alias", "name"), [(a, row.name) for row in fields.table() for a in row.aliases]
)
def test_an_alias_means_its_field(alias: str, name: str) -> None:
    value = VALUES[name][0] if alias in fields.SLOTS else VALUES[name]
    others = {} if name == "prompt" else {"prompt": "a cat"}
    by_alias = parsed({**others, alias: value, "seed": 1} if name != "seed" else {alias: value})
    by_name = parsed({**others, name: value, "seed": 1})
    assert replace(by_alias, size=by_name.size, warnings=()) == replace(by_name, warnings=())
    assert replace(by_alias.size, field="") == replace(by_name.size, field="")


@pytest.mark.parametrize(
    ("alias", "name"),
    [(a, row.name) for row in fields.table() for a in row.aliases if a not in fields.SLOTS],
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
        "num_images": 3,
        "output_format": "png",
        "output_quality": 81,
    }
    message = next(
        message
        for field, message in faults({"prompt": "a cat", name: VALUES[name], alias: other[name]})
        if field == alias
    )
    assert f"differs from {name}" in message
    job_input = {"prompt": "a cat", name: VALUES[name], alias: VALUES[name]}
    assert "differs" not in str(parsed(job_input).warnings)


def test_all_faults_are_told_at_once_by_the_callers_own_names() -> None:
    told = dict(
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
    assert set(told) == {
        *("text", "n", "width", "cfg", "seed", "go_fast", "quality", "image", "model")
    }
    assert told["width"] == "must be at least 64 (got 3)"


def test_faults_against_the_model_come_with_the_others() -> None:
    told = dict(faults({"steps": 7, "size": "8000x8000", "num_images": 0}))
    assert set(told) == {"prompt", "steps", "size", "num_images"}


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
    told = faults({"prompt": "a", "true_cfg_scale": value, "lightning": False})
    assert [field for field, _ in told] == ["true_cfg_scale"]


@pytest.mark.parametrize(("value", "scale"), [("4.5", 4.5), (3, 3.0), (1, 1.0)])
def test_a_scale_may_be_an_integer_or_a_numeric_string(value: Any, scale: float) -> None:
    request = parsed({"prompt": "a", "cfg": value, "lightning": False})
    assert request.true_cfg_scale == scale
    assert isinstance(request.true_cfg_scale, float)


@pytest.mark.parametrize("value", [1, 0, "true", "yes"])
def test_only_true_and_false_are_booleans(value: Any) -> None:
    told = faults({"prompt": "a", "lightning": value})
    assert told[0][1].startswith("must be true or false")


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
def test_a_prompt_is_1_to_5000_characters_that_can_be_told_again(prompt: Any, message: str) -> None:
    assert faults({"prompt": prompt}) == [("prompt", message)]


def test_any_other_prompt_is_taken_as_it_is() -> None:
    for prompt in ("a" * 5000, " ", "<|image_pad|><|im_end|>", "\u4e2d\u6587 \U0001f600\n"):
        assert parsed({"prompt": prompt}).prompt == prompt


def test_a_negative_prompt_is_limited_to_2000_characters() -> None:
    assert faults({"prompt": "a", "negative": "b" * 2001})[0][0] == "negative"


@pytest.mark.parametrize("job_input", [None, [], "a cat", 5, True, float("nan")])
def test_the_input_must_be_an_object(job_input: Any) -> None:
    assert faults(job_input)[0][0] == "input"


def test_null_means_left_out() -> None:
    job_input: dict[str, Any] = dict.fromkeys(fields.NAMES)
    assert parsed({**job_input, "prompt": "a", "seed": 1}) == parsed({"prompt": "a", "seed": 1})


def test_unknown_fields_are_warned_about_with_a_guess() -> None:
    assert parsed({"prompt": "a", "widht": 5, "x": 1}).warnings == (
        "widht: is not a known field; did you mean width?",
        "x: is not a known field",
    )


def test_unknown_fields_are_refused_under_strict_input() -> None:
    told = faults(
        {"prompt": "a", "widht": 5, "image": {"url": URL, "alt": 1}}, environ={"STRICT_INPUT": "1"}
    )
    assert [field for field, _ in told] == ["widht", "image.alt"]


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


def test_a_query_is_judged_like_any_input() -> None:
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
        PNG.rstrip("="),  # cut at the end, or written without padding: nobody can tell
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


def test_extra_keys_of_a_picture_are_warned_about() -> None:
    request = parsed({"prompt": "a", "images": [{"name": "cat.png", "image": PNG}]})
    assert request.warnings == ("images.name: is not a known field",)


def test_at_most_as_many_pictures_as_model_and_settings_allow() -> None:
    three = {"prompt": "a", "images": [URL] * 3}
    assert len(parsed(three).sources) == 3
    assert faults(three, environ={"MAX_INPUT_IMAGES": "2"}) == [
        ("images", "must be at most 2 for qwen-image-edit-2511 (got 3)")
    ]
    one = replace(EDIT, max_references=1)
    assert faults({"prompt": "a", "images": [URL] * 2}, (one,))[0][0] == "images"


# Task and model


def test_a_task_and_its_pictures_must_agree() -> None:
    assert faults({"prompt": "a", "task": "edit"}) == [("images", "is required for edit")]
    told = faults({"prompt": "a", "mode": "text-to-image", "image": URL})
    assert told[0][0] == "image"


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


@pytest.mark.parametrize("task", ["img2img", "inpaint", "layered", "speech"])
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
    assert (request.steps, request.true_cfg_scale, request.negative_prompt) == (50, 4.0, " ")
    assert parsed({"prompt": "a", "lightning": False, "steps": 100}).steps == 100
    assert faults({"prompt": "a", "lightning": False, "steps": 1})[0][0] == "steps"


def test_lightning_follows_the_operators_setting() -> None:
    assert not parsed({"prompt": "a"}, environ={"USE_LIGHTNING_LORA": "false"}).lightning
    assert parsed(
        {"prompt": "a", "lightning": True}, environ={"USE_LIGHTNING_LORA": "false"}
    ).lightning


def test_a_model_without_lightning_runs_its_base_schedule_unless_lightning_is_asked() -> None:
    plain = (replace(IMAGE, lightning_steps=()),)
    assert not parsed({"prompt": "a"}, plain).lightning
    assert faults({"prompt": "a", "go_fast": True}, plain)[0][0] == "go_fast"


def test_a_fused_model_cannot_leave_lightning() -> None:
    fused = (replace(IMAGE, lightning_steps=(8,)),)
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
    assert parsed({**base, "negative_prompt": ""}).negative_prompt == " "
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
    assert warned.warnings == ("aspect_ratio: has no effect beside width and height",)


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
    put = "https://bucket.example/put?signature=x"
    request = parsed({"prompt": "a", "upload_url": put})
    assert (request.response_format, request.upload_urls) == ("url", (put,))
    assert parsed({"prompt": "a", "n": 2, "upload_url": [put, put]}).upload_urls == (put, put)
    assert faults({"prompt": "a", "n": 2, "upload_url": put})[0][0] == "upload_url"
    assert faults({"prompt": "a", "upload_url": "ftp://x"})[0][0] == "upload_url"
    told = faults({"prompt": "a", "upload_url": put, "response_format": "base64"})
    assert told[0][0] == "upload_url"


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
INPUTS = st.dictionaries(st.sampled_from(sorted(fields.NAMES)) | st.text(), JSON, max_size=8)
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
def test_any_json_is_a_right_request_or_a_told_fault(job_input: Any, *, strict: bool) -> None:
    """Nothing but a WorkerError leaves, and a Request holds all that the engine relies on."""
    told: list[WorkerError] = []
    try:
        request = parse(job_input, BOTH, settings.read({"STRICT_INPUT": str(strict)}))
    except WorkerError as error:
        told.append(error)
    if told:
        assert told[0].details
        json.dumps(told[0].message, ensure_ascii=False).encode()
        assert len(told[0].message) < 20_000
        return
    json.dumps(request.warnings, ensure_ascii=False).encode()
    if isinstance(request, Query):
        return
    assert request.task in request.model.tasks
    assert 1 <= len(request.prompt) <= 5000
    assert (request.task == "edit") == bool(request.sources)
    assert len(request.sources) <= request.model.max_references
    assert 0 <= request.seed <= request.seed + request.num_images - 1 <= 2**63 - 1
    assert 1 <= request.num_images <= 4
    assert 2 <= request.steps <= 100
    assert 1 <= request.true_cfg_scale <= 20
    assert (request.negative_prompt is not None) == (request.true_cfg_scale > 1)
    if request.lightning:
        assert request.steps in request.model.lightning_steps
        assert request.true_cfg_scale == 1
    assert request.response_format != "url"


@pytest.mark.parametrize("name", [*fields.NAMES, "unheard-of"])
def test_deep_nesting_is_refused_like_any_wrong_value(name: str) -> None:
    deep: Any = 5
    for _ in range(100_000):
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
