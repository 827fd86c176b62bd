"""Which jobs name a route of OpenAI's, and what their answer is when the job fails."""

import asyncio
import time
from typing import Any

import pytest

from worker import settings
from worker.jobs.serve import Worker
from worker.openai.queued import find_route
from worlds.standin import StandIns, answered
from worlds.tone import Forks


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"openai_route": "/v1/models"}, ("openai_route", "/v1/models")),
        ({"route": "/openai/v1/models/"}, ("route", "/v1/models")),
        ({"route": "/v1/models/?a=1?b=2"}, ("route", "/v1/models")),
        ({"route": "/v1/models/a_/"}, ("route", "/v1/models/a_")),
        ({"route": "a", "openai_route": "b"}, ("openai_route", "b")),
        ({"route": "a", "openai_route": 5}, ("route", "a")),
        ({"route": None}, None),
        ({"prompt": "route"}, None),
        ({}, None),
        (["route"], None),
        ("route", None),
        (None, None),
    ],
    ids=str,
)
def test_a_route_is_a_string_at_one_of_two_keys(given: Any, found: Any) -> None:
    assert find_route(given) == found


@pytest.mark.parametrize(
    "given",
    [
        {"openai_route": "/v1/models"},
        {"openai_route": "/v1/models/standin"},
        {"openai_route": "/v1/images/generations", "openai_input": {"prompt": "x"}},
    ],
    ids=str,
)
def test_a_job_that_is_wrong_outside_its_route_fails_as_any(given: Any) -> None:
    worker = Worker(settings.read({}), StandIns())
    reply = asyncio.run(answered(worker, {"id": "a", "input": given, "s3Config": 5}))
    assert reply["error_code"] == "INVALID_INPUT"
    assert reply["openai_error"]["code"] == "invalid_input"


def test_a_job_without_a_route_has_no_error_of_openais() -> None:
    worker = Worker(settings.read({}), StandIns())
    reply = asyncio.run(answered(worker, {"id": "a", "input": {"prompt": 5}}))
    assert reply["error_code"] == "INVALID_INPUT"
    assert "openai_error" not in reply


def test_a_reply_says_when_it_was_made_in_whole_seconds() -> None:
    before = int(time.time())
    worker = Worker(settings.read({}), StandIns())
    given = {"openai_route": "/v1/images/generations", "openai_input": {"prompt": "x"}}
    reply = asyncio.run(answered(worker, {"id": "a", "input": given}))
    assert isinstance(reply["created"], int)
    assert before <= reply["created"] <= time.time()


def test_a_worker_that_speaks_has_no_pictures_for_a_route_of_pictures() -> None:
    worker = Worker(settings.read({}), Forks())
    asked = {"text": "hi", "model": "gpt-image-1"}
    given = {"openai_route": "/v1/images/generations", "openai_input": asked}
    reply = asyncio.run(answered(worker, {"id": "a", "input": given}))
    assert reply["error_code"] == "UNSUPPORTED_TASK"
    assert reply["openai_error"]["code"] == "unsupported_task"
    warning = "model: gpt-image-1 is OpenAI's; this worker's default is used"
    assert reply["warnings"] == [warning]
