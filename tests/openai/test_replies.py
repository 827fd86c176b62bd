"""OpenAI's replies, events, errors and list of models: by themselves, without a door."""

from typing import Any

import pytest

from worker.edge.reply import Failure
from worker.errors import Detail, ErrorType, UnsupportedTask
from worker.openai import replies

FIRST = {"index": 0, "base64": "Zmlyc3Q=", "mime_type": "image/png", "width": 64, "height": 96}
SECOND = {"index": 1, "base64": "c2Vjb25k", "mime_type": "image/png", "width": 64, "height": 96}
OUTPUT = {
    "images": [{**FIRST, "seed": 7}, {**SECOND, "seed": 8}],
    "seed": 7,
    "task": "text-to-image",
}
LOOKS = {"background": "opaque", "output_format": "png", "size": "64x96"}
MAKING = {"seed": 7, "task": "text-to-image", "seeds": [7, 8]}


def test_a_reply_has_each_picture_and_what_makes_it_again() -> None:
    assert replies.format_pictures(OUTPUT, 123) == {
        "created": 123,
        "data": [{"b64_json": "Zmlyc3Q="}, {"b64_json": "c2Vjb25k"}],
        **LOOKS,
        "worker": MAKING,
    }


def test_a_reply_looks_as_its_first_picture() -> None:
    other = {**SECOND, "seed": 8, "width": 32, "mime_type": "image/webp"}
    reply = replies.format_pictures({"images": [{**FIRST, "seed": 7}, other]}, 0)
    assert {key: reply[key] for key in LOOKS} == LOOKS


@pytest.mark.parametrize("key", ["url", "data_url"])
def test_an_address_is_openais_url(key: str) -> None:
    entry = {"seed": 7, key: "there", "mime_type": "image/webp", "width": 1, "height": 2}
    reply = replies.format_pictures({"images": [entry]}, 0)
    assert reply["data"] == [{"url": "there"}]
    assert (reply["output_format"], reply["size"]) == ("webp", "1x2")


def test_the_last_event_of_each_picture_says_all_and_none_comes_twice() -> None:
    usage = {
        "input_tokens": 0,
        "output_tokens": 0,
        "total_tokens": 0,
        "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
    }
    both = [
        {
            "type": "image_edit.completed",
            "b64_json": data,
            "created_at": 5,
            "quality": "auto",
            **LOOKS,
            "usage": usage,
            "worker": MAKING,
        }
        for data in ("Zmlyc3Q=", "c2Vjb25k")
    ]
    assert list(replies.list_events("image_edit", OUTPUT, 5)) == both
    assert list(replies.list_events("image_edit", OUTPUT, 5, sent={0})) == both[1:]
    assert list(replies.list_events("image_edit", OUTPUT, 5, sent={1})) == both[:1]


def test_the_event_of_a_picture_on_the_way_has_its_number_and_seed() -> None:
    assert replies.make_partial_event("image_generation", FIRST, 5, 2, 7) == {
        "type": "image_generation.partial_image",
        "partial_image_index": 2,
        "b64_json": "Zmlyc3Q=",
        "created_at": 5,
        "quality": "auto",
        **LOOKS,
        "worker": {"seed": 7},
    }


def test_a_speech_is_no_picture() -> None:
    spoken = {"task": "speech", "audio": {}}
    with pytest.raises(UnsupportedTask, match="task: speech makes no pictures"):
        replies.format_pictures(spoken, 0)
    with pytest.raises(UnsupportedTask):
        list(replies.list_events("image_edit", spoken, 0))


@pytest.mark.parametrize(
    ("code", "error_type", "expected"),
    [
        ("INVALID_INPUT", "bad_request", ("invalid_request_error", "invalid_input")),
        ("MODEL_NOT_SERVED", "bad_request", ("not_found_error", "model_not_found")),
        ("UNSUPPORTED_TASK", "bad_request", ("invalid_request_error", "unsupported_task")),
        ("DEVICE_LOST", "transient", ("server_error", "device_lost")),
        ("BAD_PICTURE", "internal", ("server_error", "bad_picture")),
    ],
)
@pytest.mark.parametrize("retryable", [True, False])
def test_an_error_has_openais_form_with_all_of_ours_beside(
    code: str, error_type: ErrorType, expected: tuple[str, str], retryable: bool
) -> None:
    details = (Detail("seed", "is wrong"), Detail("n", "is too"))
    failure = Failure(code, error_type, retryable, "why", details, ("careful",))
    kind, name = expected
    assert replies.format_error(failure) == {
        "error": {"message": "why", "type": kind, "param": "seed", "code": name},
        "details": [
            {"field": "seed", "message": "is wrong"},
            {"field": "n", "message": "is too"},
        ],
        "retryable": retryable,
        "warnings": ["careful"],
    }
    bare = replies.format_error(Failure(code, error_type, retryable, "why", (), ()))
    assert bare["error"]["param"] is None
    assert (bare["details"], "warnings" in bare) == ([], False)


ROWS = {
    "models": [
        {"id": "small", "repository": "maker/Small-1"},
        {"id": "Large", "repository": "large"},
    ]
}
SMALL = {"id": "small", "object": "model", "created": 0, "owned_by": "maker"}
LARGE = {"id": "Large", "object": "model", "created": 0, "owned_by": "worker"}


def test_models_are_listed_with_their_owner() -> None:
    assert replies.list_models(ROWS) == {"object": "list", "data": [SMALL, LARGE]}


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("small", SMALL),
        ("SMALL", SMALL),
        ("Maker/small-1", SMALL),
        ("large", LARGE),
        ("LARGE", LARGE),
        ("Small-1", None),
        ("", None),
    ],
)
def test_a_model_is_found_by_its_name_or_repository_in_any_case(name: str, found: Any) -> None:
    assert replies.find_model(ROWS, name) == found
