"""Jobs of RunPod's queue that name a route of OpenAI's, and their policy."""

import asyncio
import base64
from collections.abc import Mapping
from typing import Any

import pytest

from worker import settings
from worker.doors.runpod import wire
from worker.jobs.serve import Worker
from worlds.standin import StandIns, answered
from worlds.tone import Forks

PROMPT = {"prompt": "a fox", "seed": 5}


def replied(job_input: Any, environ: dict[str, str] | None = None, **top: Any) -> dict[str, Any]:
    worker = Worker(settings.read(environ or {}), StandIns())
    return asyncio.run(answered(worker, {"id": "a", "input": job_input, **top}))


@pytest.mark.parametrize(
    "given",
    [
        {"openai_route": "/v1/images/generations", "openai_input": PROMPT},
        {"openai_route": "/openai/v1/images/generations/", "openai_input": PROMPT},
        {"route": "/v1/images/generations?x=1", "body": PROMPT, "method": "POST"},
    ],
    ids=str,
)
def test_a_jobs_route_gives_openais_reply(given: Any) -> None:
    reply = replied(given, {"RESPONSE_COMPAT": "image"})
    assert reply["data"][0]["b64_json"]
    assert reply["worker"]["seeds"] == [5]
    assert (reply["worker"]["warnings"], reply["worker"]["peak_vram_mb"]) == ([], 0)


def test_a_stream_in_a_job_comes_complete_and_says_so() -> None:
    given = {
        "openai_route": "/v1/images/generations",
        "openai_input": {**PROMPT, "stream": True, "quality": "high"},
    }
    assert replied(given)["worker"]["warnings"] == [
        "stream: has no effect in a job, whose reply comes complete",
        "quality: a word has no effect; num_inference_steps is the quality",
    ]


@pytest.mark.parametrize(
    ("given", "code", "param"),
    [
        ({"openai_route": "/v1/images/generations"}, "INVALID_INPUT", "body"),
        ({"openai_route": "/v1/chat/completions"}, "INVALID_INPUT", "openai_route"),
        ({"route": "/v1/images/edits", "body": PROMPT}, "INVALID_INPUT", "images"),
        ({"route": "/v1/models/none"}, "MODEL_NOT_SERVED", "route"),
        ({"route": "/v1/modelsx"}, "INVALID_INPUT", "route"),
        (
            {"openai_route": "/v1/images/generations", "openai_input": {"prompt": 5}},
            "INVALID_INPUT",
            "prompt",
        ),
    ],
    ids=str,
)
def test_what_fails_is_our_error_with_openais_beside(given: Any, code: str, param: str) -> None:
    reply = replied(given)
    assert (reply["error_code"], reply["error"].partition(":")[0]) == (code, code)
    assert reply["openai_error"]["param"] == param
    assert reply["openai_error"]["type"] in ("invalid_request_error", "not_found_error")


SPEECH = {"input": "hello", "voice": "fork", "seed": 5, "model": "tts-1", "user": "u"}


def spoken(
    body: Any, environ: dict[str, str] | None = None, *, form: tuple[str, str] | None = None
) -> tuple[dict[str, Any], list[Mapping[str, Any]]]:
    """Return what a queue answers to a body for /v1/audio/speech, and the items of its stream."""
    route, key = form or ("openai_route", "openai_input")
    parts: list[Mapping[str, Any]] = []

    async def keep(_id: str, part: Mapping[str, Any]) -> None:
        parts.append(part)

    worker = Worker(settings.read(environ or {}), Forks())
    job = {"id": "a", "input": {route: "/v1/audio/speech", key: body}}
    return asyncio.run(answered(worker, job, send=keep)), parts


def without_times(reply: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in reply.items() if key != "timings_ms"}


@pytest.mark.parametrize("form", [("openai_route", "openai_input"), ("route", "body")])
@pytest.mark.parametrize("compat", [{}, {"RESPONSE_COMPAT": "audio_base64"}], ids=str)
def test_a_speech_by_its_route_is_that_of_a_job(
    form: tuple[str, str], compat: dict[str, str]
) -> None:
    reply, parts = spoken({**SPEECH, "response_format": "flac"}, compat, form=form)
    worker = Worker(settings.read(compat), Forks())
    direct = {"task": "speech", "text": "hello", "voice": "fork", "seed": 5, "format": "flac"}
    expected = asyncio.run(answered(worker, {"id": "a", "input": direct}))
    warnings = ["model: tts-1 is OpenAI's; this worker's default is used"]
    assert without_times(reply) == {**without_times(expected), "warnings": warnings}
    assert not parts


def test_a_streamed_speech_by_its_route_comes_in_the_jobs_stream() -> None:
    reply, parts = spoken({**SPEECH, "stream": True})
    pieces = [base64.b64decode(part["base64"]) for part in parts]
    assert [part["mime_type"] for part in parts] == ["audio/pcm"] * 3
    assert b"".join(pieces) == base64.b64decode(reply["audio"]["base64"])[44:]  # after its header
    assert not any("stream" in warning for warning in reply["warnings"])


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (None, "body"),
        ("hello", "body"),
        ({}, "prompt"),
        ({**SPEECH, "voice": "alloy"}, "voice"),
        ({**SPEECH, "response_format": "aac"}, "output_format"),
        ({**SPEECH, "response_format": "wav", "output_format": "mp3"}, "response_format"),
        ({**SPEECH, "stream_format": "sse"}, "stream_format"),
        ({**SPEECH, "stream": True, "response_format": "mp3"}, "stream"),
        ({**SPEECH, "speed": 2}, "speed"),
        ({**SPEECH, "size": "64x64"}, "size"),
        ({**SPEECH, "op": "health"}, "op"),
    ],
    ids=str,
)
def test_a_speech_that_cannot_be_fails_with_openais_error(body: Any, param: str) -> None:
    reply, parts = spoken(body)
    assert reply["error_code"] == "INVALID_INPUT"
    assert reply["openai_error"]["param"] == param
    assert reply["openai_error"]["type"] == "invalid_request_error"
    assert not parts


def test_a_speech_that_breaks_and_one_that_no_model_speaks_are_openais_errors() -> None:
    broken, parts = spoken({"input": "breaks", "stream": True})
    assert (broken["error_code"], broken["openai_error"]["code"]) == ("BAD_AUDIO", "bad_audio")
    assert [part["index"] for part in parts[:2]] == [0, 1]
    mute = replied({"openai_route": "/v1/audio/speech", "openai_input": SPEECH})
    assert mute["openai_error"]["code"] == "unsupported_task"


def test_models_are_openais_list() -> None:
    row = {"id": "standin", "object": "model", "created": 0, "owned_by": "tests"}
    assert replied({"openai_route": "/v1/models"}) == {"object": "list", "data": [row]}
    assert replied({"openai_route": "/v1/models/STANDIN"}) == row


def test_the_key_of_old_callers_that_says_url_gets_one() -> None:
    """RunPod's provider for the AI SDK reads only that key, and needs a URL."""
    body = {
        "prompt": "x",
        "negative_prompt": "",
        "size": "1024*1024",
        "seed": -1,
        "enable_safety_checker": True,
    }
    reply = replied(body, {"RESPONSE_COMPAT": "image_url"})
    assert reply["image_url"].startswith("data:image/png;base64,iVBOR")


@pytest.mark.parametrize(
    ("policy", "seconds"),
    [
        ({"executionTimeout": 60_000}, 58),
        ({"executionTimeout": 3000}, 1.5),
        ({"executionTimeout": 1}, 0.0005),
        ({"executionTimeout": 0}, None),
        ({"executionTimeout": -5}, None),
        ({"executionTimeout": True}, None),
        ({"executionTimeout": "60000"}, None),
        ({"executionTimeout": float("nan")}, None),
        ({"ttl": 1}, None),
        ("x", None),
        (None, None),
    ],
    ids=str,
)
def test_a_policy_limits_the_time_of_a_job(policy: Any, seconds: float | None) -> None:
    """The answer that says so must arrive before RunPod ends the job."""
    job = wire.read({"id": "a", "policy": policy}, settings.read({}))
    assert (None if job.limit is None else job.limit.seconds) == seconds


@pytest.mark.parametrize(
    ("deadline", "timeout", "reason"),
    [
        ("0", 100, "0.05 s, by its policy.executionTimeout"),
        ("0.1", 100, "0.05 s, by its policy.executionTimeout"),
        ("0.1", 60_000, "0.1 s, this worker's JOB_DEADLINE_S"),
    ],
)
def test_the_first_limit_ends_a_job_and_is_named(deadline: str, timeout: int, reason: str) -> None:
    environ = {"JOB_DEADLINE_S": deadline}
    given = {"prompt": "steps=100 pause=0.05"}
    reply = replied(given, environ, policy={"executionTimeout": timeout})
    assert reply["error"] == f"DEADLINE_EXCEEDED: the job took longer than {reason}"
