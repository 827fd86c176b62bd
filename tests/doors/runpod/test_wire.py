"""RunPod's form of a job and of an answer, and what another door would hand in instead."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from structlog.testing import capture_logs

from worker import settings
from worker.doors.runpod import wire
from worker.edge.reply import Failure, format_answer
from worker.errors import Detail, InvalidInput
from worker.jobs.job import Answer, Job
from worker.jobs.limit import Limit
from worker.jobs.serve import Worker
from worker.media.piece import Encoded
from worlds.standin import StandIns, answered

BUCKET = {"endpointUrl": "https://store.test/b", "accessId": "a", "accessSecret": "b"}


def handled(job: Job, **environ: str) -> Answer:
    return asyncio.run(Worker(settings.read(environ), StandIns()).handle(job))


def failed(job: Job, **environ: str) -> Failure:
    answer = handled(job, **environ)
    assert isinstance(answer, Failure)
    return answer


def test_a_job_is_what_runpods_dict_says() -> None:
    job = wire.read({"id": 7, "input": {"prompt": "x"}}, settings.read({"MAX_REPLY_BYTES": "2000"}))
    assert (job.id, job.input, job.most_bytes) == ("7", {"prompt": "x"}, 2000)
    assert (job.bucket, job.fault, job.listener) == (None, None, None)
    assert (job.bucket_name, job.limit) == ("s3Config", None)
    policy = {"executionTimeout": 10_000}
    limited = wire.read({"id": "a", "policy": policy}, settings.read({}))
    assert limited.input is None
    assert limited.limit == Limit(8.0, "by its policy.executionTimeout")


def test_a_jobs_own_bucket_is_read_before_the_job_is_handed_on() -> None:
    job = wire.read({"id": "a", "s3Config": {**BUCKET, "acl": "x"}}, settings.read({}))
    assert job.bucket is not None
    assert job.bucket.require().make_address("k") == "https://store.test/b/k"
    assert job.bucket.endpoint_field == "s3Config.endpointUrl"
    assert job.bucket.warnings == ("s3Config.acl: is not a known key",)


def test_what_is_wrong_with_a_bucket_is_reported_after_what_is_wrong_with_the_input() -> None:
    given = {"id": "a", "input": {"prompt": "x"}, "s3Config": {}}
    job = wire.read(given, settings.read({}))
    assert failed(job).details[0].field == "s3Config.endpointUrl"
    job = wire.read({**given, "input": {}}, settings.read({}))
    assert failed(job).details[0].field == "prompt"


def test_every_fault_of_a_bucket_is_named() -> None:
    job = wire.read({"id": "a", "s3Config": {"acl": "x"}}, settings.read({}))
    assert job.bucket is not None
    with pytest.raises(InvalidInput) as refused:
        job.bucket.require()
    names = ["endpointUrl", "accessId", "accessSecret"]
    faults = {f"s3Config.{name}": "must be a string that is not empty" for name in names}
    faults["s3Config.acl"] = "is not a known key"
    assert {one.field: one.message for one in refused.value.details} == faults
    assert refused.value.message == "; ".join(f"{name}: {why}" for name, why in faults.items())


def test_a_bucket_that_cannot_be_read_for_a_bug_of_ours_is_an_answer_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("/root/secret")

    monkeypatch.setattr(wire, "read_bucket", broken)
    worker = Worker(settings.read({}), StandIns())
    job = {"id": "a", "input": {"prompt": "x"}, "s3Config": BUCKET}
    with capture_logs() as lines:
        answer = asyncio.run(answered(worker, job))
    assert answer["error_code"] == "INTERNAL"
    assert "secret" not in answer["error"]
    assert [line["event"] for line in lines if line["log_level"] == "error"] == ["bug"]


def test_progress_is_announced_by_the_id_as_text() -> None:
    heard: list[tuple[str, Mapping[str, Any]]] = []

    async def announce(job_id: str, update: Mapping[str, Any]) -> None:
        heard.append((job_id, update))

    worker = Worker(settings.read({}), StandIns())
    given = {"id": 7, "input": {"prompt": "slow-text pause=0.001"}}
    asyncio.run(answered(worker, given, announce))
    assert {job_id for job_id, _ in heard} == {"7"}


def test_a_part_of_what_is_made_is_an_item_of_the_jobs_stream() -> None:
    sent: list[tuple[str, Mapping[str, Any]]] = []
    jobs: list[Job] = []

    async def send(job_id: str, item: Mapping[str, Any]) -> None:
        sent.append((job_id, item))

    async def handle(job: Job) -> Answer:
        jobs.append(job)
        if job.sink is not None:
            await job.sink(3, Encoded(b"abc", "audio/pcm", {"sample_rate": 24_000}))
        return {}

    async def case() -> None:
        for given in (send, None):
            answer = wire.make_handler(handle, settings.read({}), None, given)
            assert await answer({"id": 7, "input": {}}) == {}

    asyncio.run(case())
    item = {"index": 3, "base64": "YWJj", "mime_type": "audio/pcm", "sample_rate": 24_000}
    assert sent == [("7", item)]
    assert [job.listener for job in jobs] == [None, None]


def test_a_failure_without_warnings_has_no_such_key() -> None:
    failure = Failure("X", "internal", True, "why", (Detail("a", "b"),), ())
    expected = {
        "error": "X: why",
        "error_code": "X",
        "error_type": "internal",
        "retryable": True,
        "details": [{"field": "a", "message": "b"}],
    }
    assert format_answer(failure) == expected
    assert list(format_answer(failure)) == list(expected)
    warned = Failure("X", "internal", True, "why", (), ("w",))
    assert list(format_answer(warned))[-1] == "warnings"


# A job of another door.


def test_a_reply_may_have_as_many_bytes_as_its_door_can_carry() -> None:
    """Whatever MAX_REPLY_BYTES is: that is RunPod's."""
    wish = {"prompt": "big", "output_format": "png"}
    refused = failed(Job("a", wish, 1_200_000))
    assert refused.code == "OUTPUT_TOO_LARGE"
    assert "at most 1.2 MB fit" in refused.message
    answer = handled(Job("a", wish, 10_000_000), MAX_REPLY_BYTES="2000")
    assert not isinstance(answer, Failure)


def test_capabilities_report_the_bytes_that_the_door_can_carry() -> None:
    """Whatever RunPod's own limit is."""
    answer = handled(Job("a", {"op": "capabilities"}, 123_456), MAX_REPLY_BYTES="2000")
    assert not isinstance(answer, Failure)
    assert answer["limits"]["max_reply_bytes"] == 123_456


def test_a_door_names_a_bucket_of_its_callers_or_none() -> None:
    wish = {"prompt": "x", "response_format": "url"}
    ways = "url needs upload_url or the worker's bucket (BUCKET_ENDPOINT_URL)"
    assert [d.message for d in failed(Job("a", wish, 1_000_000)).details] == [ways]
    ways = "url needs upload_url, the worker's bucket (BUCKET_ENDPOINT_URL) or the job's store"
    job = Job("a", wish, 1_000_000, bucket_name="store")
    assert [d.message for d in failed(job).details] == [ways]


def test_a_fault_around_the_input_goes_before_it() -> None:
    fault = InvalidInput("body: is no JSON", details=[Detail("body", "is no JSON")])
    answer = failed(Job("a", None, 1_000_000, fault=fault))
    assert (answer.code, answer.message) == ("INVALID_INPUT", "body: is no JSON")
