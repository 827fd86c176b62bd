"""Jobs of RunPod's queue that name a route of OpenAI's, and their policy."""

import asyncio
from typing import Any

import pytest

from worker import settings
from worker.doors.runpod import wire
from worker.jobs.serve import Worker
from worlds.standin import StandIns, answered

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
