"""What may be asked of a model that speaks, and what is wrong with the rest."""

from dataclasses import replace
from math import inf, nan
from typing import Any

import pytest

from worker import settings
from worker.edge.echo import show_in_file, show_in_reply
from worker.errors import InvalidInput, UnsupportedTask
from worker.seam import Served
from worker.tasks.request import Request, parse
from worker.tasks.speech import SPEECH, SpeechOffer, SpeechWish, Spoken, show_spoken, warm_up
from worlds.published import EDIT, IMAGE

OFFER = SpeechOffer(("tara", "Leo", "유나"), 24_000, tags=("laugh", "sigh"))
SPEAKER = Served("voices", "a/voices", "1", "bf16", "llama3.2", {"speech": OFFER})
BUCKET = {
    "BUCKET_ENDPOINT_URL": "https://bucket.example",
    "BUCKET_ACCESS_KEY_ID": "a",
    "BUCKET_SECRET_ACCESS_KEY": "b",
}


def requested(job_input: Any, *models: Served, **environ: str) -> Request:
    """Return what a job requests."""
    request = parse(job_input, models or (SPEAKER,), settings.read(environ))
    assert isinstance(request, Request)
    return request


def wished(job_input: Any, *models: Served) -> SpeechWish:
    """Return the wish of a job."""
    draft: SpeechWish = requested(job_input, *models).asked.draft
    return draft


def faults(job_input: Any, *models: Served) -> dict[str, str]:
    """Return what is wrong with a job's input, by field."""
    with pytest.raises((InvalidInput, UnsupportedTask)) as refused:
        requested(job_input, *models)
    return {detail.field: detail.message for detail in refused.value.details}


def test_a_text_alone_is_a_complete_request() -> None:
    request = requested({"text": "Hello there."})
    assert request.asked.draft == SpeechWish(
        prompt="Hello there.",
        task="speech",
        voice="tara",
        seed=0,
        temperature=0.6,
        top_p=0.8,
        repetition_penalty=1.1,
        max_tokens=None,
        passages=("Hello there.",),
        frames=11,
    )
    delivery = request.delivery
    assert (delivery.form, delivery.response_format, request.count) == ("wav", "base64", 1)
    assert request.warnings == ()


@pytest.mark.parametrize("word", ["prompt", "text", "input"])
def test_the_text_has_three_names(word: str) -> None:
    assert wished({word: "Hi"}).prompt == "Hi"


@pytest.mark.parametrize("word", ["speech", "tts", "text-to-speech", "TTS"])
def test_the_task_has_three_names(word: str) -> None:
    assert requested({"prompt": "Hi", "task": word}, IMAGE, SPEAKER).model is SPEAKER


def test_a_voice_a_model_that_speaks_or_no_other_model_ask_for_speech() -> None:
    assert requested({"prompt": "Hi", "voice": "leo"}, IMAGE, SPEAKER).task is SPEECH
    assert requested({"prompt": "Hi", "model": "voices"}, IMAGE, SPEAKER).task is SPEECH
    assert requested({"prompt": "Hi"}, IMAGE, SPEAKER).task.name == "text-to-image"
    assert faults({"prompt": "Hi", "voice": "leo"}, IMAGE) == {
        "voice": "is for speech, not for text-to-image"
    }


@pytest.mark.parametrize(
    ("word", "value"),
    [("images", "https://a.test/x.png"), ("width", 64), ("cfg", 2), ("negative_prompt", "x")],
)
def test_a_field_of_pictures_is_not_for_speech(word: str, value: Any) -> None:
    assert faults({"task": "speech", "prompt": "Hi", word: value}, EDIT, SPEAKER) == {
        word: "is for pictures, not for speech"
    }


@pytest.mark.parametrize(
    ("word", "value"),
    [("temperature", 0.5), ("speaker", "x"), ("max_new_tokens", 100), ("stream", True)],
)
def test_a_field_of_speech_is_not_for_pictures(word: str, value: Any) -> None:
    given: dict[str, Any] = {"task": "text-to-image", "prompt": "Hi", word: value}
    assert faults(given, IMAGE) == {word: "is for speech, not for text-to-image"}


def test_a_field_of_others_may_be_empty_false_or_null() -> None:
    given: dict[str, Any] = {"prompt": "Hi", "mask": "", "images": None, "loras": []}
    assert len(requested(given).warnings) == 2  # null is left out
    assert requested({"prompt": "Hi", "stream": False, "voice": None}, IMAGE).task.name
    # a number is none of these, and 0 least of all where it is a value
    assert set(faults({"prompt": "Hi", "temperature": 0}, IMAGE)) == {"temperature"}
    assert set(faults({"prompt": "Hi", "strength": 0})) == {"strength"}


@pytest.mark.parametrize("name", ["Tara", "LEO", "유나"])
def test_a_voice_is_known_in_any_case(name: str) -> None:
    assert wished({"text": "Hi", "voice": name}).voice in OFFER.voices


def test_an_unknown_voice_lists_the_known() -> None:
    assert faults({"text": "Hi", "voice_id": "alloy"}) == {
        "voice_id": "voices has tara, Leo and 유나, not 'alloy'"
    }


def test_a_model_without_a_list_takes_any_voice_or_none() -> None:
    free = replace(SPEAKER, offers={"speech": replace(OFFER, voices=())})
    assert wished({"text": "Hi"}, free).voice is None
    assert wished({"text": "Hi", "voice": "Eva"}, free).voice == "Eva"


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("prompt", ["a", "a" * 5000], ["", "a" * 5001, "," * 50_000]),
        ("voice", ["tara"], ["", "v" * 101, " "]),
        ("temperature", [0.1, 1.5, "0.5"], [0.0999, 1.501, 0, "x", nan, inf]),
        ("top_p", [0.1, 1], [0.0999, 1.001, nan, inf]),
        ("repetition_penalty", [1.1, 2], [0.999, 2.001, nan, inf]),
        ("max_tokens", [28, 8192], [27, 8193, 30.5]),
        ("speed", [1, 1.0, "1"], [0.2, 4.1, 1.5, 0.5, nan, inf]),
        ("num_images", [1], [0, 2]),
        ("seed", [-1, 0, 2**63 - 1], [-2, 2**63]),
        ("output_format", ["wav", "FLAC", "mp3", "opus", "pcm"], ["aac", "png", "ogg"]),
        ("response_format", ["base64", "b64_json", "data_url", "mp3", "PCM"], ["aac", "png"]),
    ],
)
def test_a_value_at_a_bound_is_taken_and_one_beyond_is_refused(
    name: str, good: list[Any], bad: list[Any]
) -> None:
    for value in good:
        assert requested({"prompt": "Hi", name: value}).warnings == ()
    for value in bad:
        assert name in faults({"prompt": "Hi", name: value}), value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("   ", "visible character"),
        ("...,!?", "a letter or a digit"),
        ("😀 …", "a letter or a digit"),
        ("<laugh> <sigh>", "a letter or a digit"),
        ("a\x07b", "control characters (U+0007)"),
        ("a\x85b\x9bc", "control characters (U+009B)"),
        ("a\0b", "NUL"),
        ("\ud800", "surrogates"),
    ],
)
def test_a_text_with_nothing_to_say_is_refused(text: str, words: str) -> None:
    assert words in faults({"text": text})["text"]


@pytest.mark.parametrize(
    "text", ["你好。", "שלום עולם", "مرحبا", "7", "line\none\ttwo\r\nthree", "é"]
)
def test_any_script_is_text(text: str) -> None:
    assert requested({"text": text}).warnings == ()


def test_unknown_tags_and_a_voice_in_the_text_are_warned_about() -> None:
    assert requested({"text": "Hm <Laugh> well <happy> so <happy> <sigh>"}).warnings == (
        "text: <happy> is read aloud: the tags of this model are <laugh> <sigh>",
    )
    assert requested({"text": "TARA: hello"}).warnings == (
        "text: the name of the voice before it is read aloud; give it as voice",
    )
    many = " ".join(f"<tag{n}>" for n in range(50))
    assert len(requested({"text": f"a {many}"}).warnings) == 5


def test_a_low_penalty_is_warned_about() -> None:
    (warning,) = requested({"text": "Hi", "repetition_penalty": 1.05}).warnings
    assert warning.startswith("repetition_penalty: below 1.1")


def test_a_format_may_stand_under_openais_name_for_it() -> None:
    delivery = requested({"text": "Hi", "response_format": "mp3"}).delivery
    assert (delivery.form, delivery.response_format, delivery.is_open) == ("mp3", "base64", False)
    both = {"text": "Hi", "response_format": "flac", "format": "flac"}
    assert requested(both).delivery.form == "flac"
    assert faults({**both, "format": "wav"}) == {
        "response_format": "asks for flac, and format for wav"
    }
    uploaded = requested({"text": "Hi", "response_format": "opus"}, **BUCKET).delivery
    assert (uploaded.form, uploaded.response_format) == ("opus", "url")


def test_pieces_are_streamed_as_pcm_alone() -> None:
    assert wished({"text": "Hi", "stream": True}).streams
    assert wished({"text": "Hi", "stream": True, "format": "pcm"}).streams
    assert not wished({"text": "Hi", "format": "wav"}).streams
    for given in ({"format": "mp3"}, {"response_format": "wav"}):
        form = next(iter(given.values()))
        assert faults({"text": "Hi", "stream": True, **given}) == {
            "stream": f"needs output_format pcm, not {form}"
        }


def test_no_format_has_a_quality() -> None:
    (warning,) = requested({"text": "Hi", "format": "mp3", "output_quality": 5}).warnings
    assert warning == "output_quality: has no effect on a mp3"


def test_a_long_text_comes_in_passages() -> None:
    sentence = "A sentence of some forty characters here."
    wish = wished({"text": " ".join([sentence] * 20), "seed": 5})
    assert [len(passage) for passage in wish.passages] == [251, 251, 251, 83]
    assert wish.frames == round(0.9 * (42 * 20 - 1))


def test_what_was_spoken_is_shown_by_its_keys() -> None:
    assert show_spoken([Spoken(12, 0.123456, 2)]) == [
        {"characters": 12, "duration_s": 0.123, "attempts": 2}
    ]


def test_a_warm_up_is_a_wish_of_the_models_own_voice() -> None:
    offer = replace(OFFER, temperature=0.7, top_p=0.9, repetition_penalty=1.3)
    wish = warm_up(replace(SPEAKER, offers={"speech": offer}))
    assert (wish.voice, wish.passages, wish.task) == ("tara", ("One, two, three.",), "speech")
    assert (wish.prompt, wish.seed, wish.max_tokens) == ("One, two, three.", 0, None)
    assert (wish.temperature, wish.top_p, wish.repetition_penalty) == (0.7, 0.9, 1.3)
    assert not wish.streams
    assert SPEECH.count_steps(wish) == wish.frames == 1
    silent = replace(SPEAKER, offers={"speech": replace(OFFER, voices=())})
    assert warm_up(silent).voice is None
    assert "voice" not in show_in_reply(warm_up(silent))


def test_the_steps_of_a_speech_are_its_frames() -> None:
    wish = wished({"text": "Hello there."})
    assert SPEECH.count_steps(wish) == wish.frames == 11


def test_a_speech_that_is_all_there_is_not_truncated_and_comes_without_what_is_unknown() -> None:
    reply = show_in_reply(warm_up(SPEAKER))
    assert reply == {
        "prompt": "One, two, three.",
        "task": "speech",
        "voice": "tara",
        "seed": 0,
        "temperature": 0.6,
        "top_p": 0.8,
        "repetition_penalty": 1.1,
        "truncated": False,
    }


def test_a_speech_is_recorded_by_what_makes_it() -> None:
    wish = replace(warm_up(SPEAKER), spoken=(Spoken(1, 1.0, 1),), truncated=True, first_frames=5)
    recorded = ["prompt", "voice", "seed", "temperature", "top_p", "repetition_penalty"]
    assert list(show_in_file(wish)) == recorded
    assert set(show_in_reply(wish)) == {
        *recorded,
        *("task", "truncated", "passages", "first_sound_frames"),
    }


def test_an_offer_is_described_by_public_names() -> None:
    assert OFFER.describe(settings.read({})) == {
        "voices": ["tara", "Leo", "유나"],
        "tags": ["<laugh>", "<sigh>"],
        "sample_rate": 24_000,
        "temperature": 0.6,
        "top_p": 0.8,
        "repetition_penalty": 1.1,
    }


def test_what_a_reply_falls_back_to_are_formats_that_may_be_asked_for() -> None:
    assert set(SPEECH.smaller) <= set(SPEECH.formats)
    assert SPEECH.smaller


@pytest.mark.parametrize("pace", [0.1, 0.9])
def test_the_shortest_text_takes_a_frame(pace: float) -> None:
    model = replace(SPEAKER, offers={"speech": replace(OFFER, pace=pace)})
    assert wished({"text": "a"}, model).frames == 1


def test_a_model_without_tags_says_that_it_has_none() -> None:
    plain = replace(SPEAKER, offers={"speech": replace(OFFER, tags=())})
    assert requested({"text": "Hm <happy>"}, plain).warnings == (
        "text: <happy> is read aloud: the tags of this model are none",
    )


def test_every_field_of_pictures_is_told() -> None:
    assert faults({"task": "speech", "prompt": "Hi", "width": 64, "cfg": 2}, EDIT, SPEAKER) == {
        "width": "is for pictures, not for speech",
        "cfg": "is for pictures, not for speech",
    }
