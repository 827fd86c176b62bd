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


@pytest.mark.parametrize(
    "name",
    ["gpt-image-1", "gpt-image-2.6-x", "dall-e-3", "chatgpt-image-latest", "GPT-IMAGE-1", "tts-1"],
)
def test_a_name_of_openais_means_the_default(name: str) -> None:
    call = translate(GENERATIONS, {"model": name})
    assert "model" not in call.input
    assert len(call.warnings) == 1


@pytest.mark.parametrize("name", ["flux", "my-gpt-image-1", "dall-e/x", "gpt-imagex", 5])
def test_another_name_is_that_of_a_model(name: Any) -> None:
    assert translate(GENERATIONS, {"model": name}).input["model"] == name


def test_pictures_are_gathered_in_order_from_wherever_they_are() -> None:
    body = {"url": "c", "image[]": ["b"], "image": "a", "images": [{"image_url": "d"}]}
    assert translate(EDITS, body).input["images"] == ["a", "b", {"image_url": "d"}, "c"]
    assert "task" not in translate(EDITS, body).input
    assert translate(EDITS, {}).input["task"] == "edit"
    assert "task" not in translate(GENERATIONS, {}).input


@pytest.mark.parametrize("body", [None, [], "x", 5], ids=str)
def test_a_body_is_an_object(body: Any) -> None:
    with pytest.raises(InvalidInput, match="body: must be a JSON object"):
        translate(GENERATIONS, body)


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
