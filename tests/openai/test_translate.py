"""A request of OpenAI's, as a job: by itself, without a door."""

from typing import Any

import pytest

from worker.errors import InvalidInput
from worker.openai.translate import EDITS, GENERATIONS, SPEECH_ROUTE, translate


def test_what_is_ours_passes_and_what_is_openais_is_translated() -> None:
    call = translate(
        GENERATIONS,
        {
            "prompt": "x",
            "seed": 1,
            "true_cfg_scale": 2,
            "background": "auto",
            "user": "u",
            "style": None,
        },
    )
    assert call.input == {
        "prompt": "x",
        "seed": 1,
        "true_cfg_scale": 2,
        "response_format": "b64_json",
    }
    assert (call.warnings, call.streams) == ((), False)


def test_what_is_null_is_as_if_it_were_not_there() -> None:
    nulls = dict.fromkeys(("op", "stream", "model", "seed", "style", "response_format"))
    assert translate(GENERATIONS, nulls) == translate(GENERATIONS, {})
    assert translate(SPEECH_ROUTE, {**nulls, "input": None}) == translate(SPEECH_ROUTE, {})


@pytest.mark.parametrize(
    "name",
    [
        *("gpt-image-1", "gpt-image-2.6-x", "dall-e-3", "chatgpt-image-latest", "GPT-IMAGE-1"),
        *("tts-1", "gpt-4o-mini-tts", "gpt-image-" + 50 * "x"),
    ],
)
def test_a_name_of_openais_means_the_default(name: str) -> None:
    warning = f"model: {name} is OpenAI's; this worker's default is used"
    call = translate(GENERATIONS, {"model": name})
    assert "model" not in call.input
    assert call.warnings == (warning,)


def test_a_longer_name_of_openais_is_shown_by_its_beginning() -> None:
    name = "gpt-image-" + 50 * "x"
    (warning,) = translate(GENERATIONS, {"model": f"{name}y"}).warnings
    assert warning.startswith(f"model: {name} is")


@pytest.mark.parametrize("name", ["flux", "my-gpt-image-1", "dall-e/x", "gpt-imagex", 5])
def test_another_name_is_that_of_a_model(name: Any) -> None:
    assert translate(GENERATIONS, {"model": name}).input["model"] == name


def test_what_describes_the_caller_is_taken_without_a_word_and_what_is_unused_with_one() -> None:
    silent = {"user": "u", "safety_identifier": "s", "moderation": "low", "complexity": 1}
    loud = {"style": "vivid", "input_fidelity": "high"}
    call = translate(GENERATIONS, {**silent, **loud, "quality": "hd"})
    assert call.input == {"quality": "hd", "response_format": "b64_json"}
    assert call.warnings == ("style: has no effect", "input_fidelity: has no effect")


@pytest.mark.parametrize(
    ("background", "passes"), [("auto", False), ("opaque", False), ("transparent", True)]
)
def test_a_background_that_every_picture_has_is_no_wish(background: str, passes: bool) -> None:
    assert ("background" in translate(EDITS, {"background": background}).input) == passes


def test_every_fault_of_the_form_is_named_with_the_warnings_before_it() -> None:
    body = {"op": "health", "stream": "yes", "partial_images": 4, "style": "vivid"}
    with pytest.raises(InvalidInput) as refused:
        translate(GENERATIONS, body)
    faults = {
        "op": "is not for this route",
        "stream": "must be true or false",
        "partial_images": "must be 0 to 3",
    }
    assert {one.field: one.message for one in refused.value.details} == faults
    assert refused.value.message == "; ".join(f"{field}: {why}" for field, why in faults.items())
    assert refused.value.warnings == ("style: has no effect",)


def test_what_openais_form_asks_for_may_be_said() -> None:
    call = translate(GENERATIONS, {"op": "generate", "response_format": "url", "stream": False})
    assert call.input == {"op": "generate", "response_format": "url"}
    assert not call.streams
    assert translate(GENERATIONS, {"stream": True}).streams


def test_pictures_are_gathered_in_order_from_wherever_they_are() -> None:
    body = {"url": "c", "image[]": ["b"], "image": "a", "images": [{"image_url": "d"}]}
    assert translate(EDITS, body).input["images"] == ["a", "b", {"image_url": "d"}, "c"]
    more = {"image_b64": "sixth", "url[]": ["d", "e"], **body, "images": None, "image": "first"}
    found = translate(EDITS, more).input["images"]
    assert found == ["first", "b", "c", "d", "e", "sixth"]
    assert "task" not in translate(EDITS, body).input
    assert translate(EDITS, {}).input["task"] == "edit"
    assert "task" not in translate(GENERATIONS, {}).input


@pytest.mark.parametrize("body", [None, [], "x", 5], ids=str)
def test_a_body_is_an_object(body: Any) -> None:
    with pytest.raises(InvalidInput, match="body: must be a JSON object") as refused:
        translate(GENERATIONS, body)
    assert [one.field for one in refused.value.details] == ["body"]


@pytest.mark.parametrize("value", ["true", 1.5, {}, 2], ids=str)
def test_stream_is_true_or_false(value: Any) -> None:
    with pytest.raises(InvalidInput, match="stream: must be true or false"):
        translate(GENERATIONS, {"stream": value})


def test_a_speech_is_a_job_of_its_task() -> None:
    body = {"input": "hi", "voice": "alloy", "response_format": "wav", "model": "tts-1"}
    assert translate(SPEECH_ROUTE, body).input == {
        "task": "speech",
        "prompt": "hi",
        "voice": "alloy",
        "output_format": "wav",
    }
    assert translate(SPEECH_ROUTE, {**body, "output_format": "wav"}).input["output_format"] == "wav"
    with pytest.raises(InvalidInput, match="response_format: asks for another than output_format"):
        translate(SPEECH_ROUTE, {**body, "output_format": "mp3"})
    assert translate(SPEECH_ROUTE, {"output_format": "mp3"}).input == {
        "task": "speech",
        "output_format": "mp3",
    }
    assert "stream" not in translate(SPEECH_ROUTE, {"stream": False}).input


def test_partial_pictures_are_for_streams_alone() -> None:
    assert translate(GENERATIONS, {"partial_images": 2}).previews == 0
    assert translate(GENERATIONS, {"stream": True}).previews == 0
    for none in (0, "0"):
        assert translate(GENERATIONS, {"partial_images": none, "stream": True}).previews == 0
    for some in (1, 3, "2"):
        call = translate(EDITS, {"partial_images": some, "stream": True})
        assert (call.previews, call.warnings) == (int(some), ())
        assert "partial_images" not in call.input


@pytest.mark.parametrize("value", [-1, 4, 1.5, "many", "", True, [1]], ids=str)
@pytest.mark.parametrize("streams", [True, False])
def test_partial_pictures_are_none_to_three(value: Any, streams: bool) -> None:
    with pytest.raises(InvalidInput, match="partial_images: must be 0 to 3"):
        translate(GENERATIONS, {"partial_images": value, "stream": streams})


def test_a_speech_may_be_streamed_as_sound_alone() -> None:
    body = {"input": "hi", "voice": "tara", "stream": True, "stream_format": "audio"}
    call = translate(SPEECH_ROUTE, body)
    assert call.streams
    assert call.input["stream"] is True
    assert "stream_format" not in call.input
    assert "stream" not in translate(SPEECH_ROUTE, {"input": "hi"}).input
    with pytest.raises(InvalidInput, match="stream_format"):
        translate(SPEECH_ROUTE, {**body, "stream_format": "sse"})
