"""RunPod's form of jobs and answers: its dict -> Job; a reply or a failure -> its dict."""

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from worker.doors.runpod.bucket import S3_CONFIG, read_bucket
from worker.edge import reply
from worker.edge.reply import Failure
from worker.errors import WorkerError
from worker.jobs.job import Answer, Handle, Job
from worker.jobs.progress import Post
from worker.settings import Settings

Handler = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
Announce = Callable[[str, Mapping[str, Any]], Awaitable[None]]


def read(given: Mapping[str, Any], settings: Settings, listener: Post | None = None) -> Job:
    """Return the job in RunPod's dict; what is wrong with its bucket becomes its `fault`.

    Its reply may have MAX_REPLY_BYTES, since RunPod drops a result of more than 20 MB.
    """
    bucket, fault = None, None
    try:
        bucket = read_bucket(given.get(S3_CONFIG), settings)
    except WorkerError as error:
        fault = error
    except Exception:  # noqa: BLE001 - whatever it is, the caller gets an answer
        fault = reply.log_bug("bug")
    return Job(
        str(given["id"]),
        given.get("input"),
        settings.max_reply_bytes,
        bucket=bucket,
        bucket_name=S3_CONFIG,
        fault=fault,
        listener=listener,
    )


def format_answer(answer: Answer) -> dict[str, Any]:
    """Return an answer as the output of a job.

    The SDK takes `error` out and reports the job as failed with it; the rest becomes its output.
    A failure has `warnings` only if there are any.
    """
    if not isinstance(answer, Failure):
        return dict(answer)
    failed: dict[str, Any] = {
        "error": f"{answer.code}: {answer.message}",
        "error_code": answer.code,
        "error_type": answer.error_type,
        "retryable": answer.retryable,
        "details": [
            {"field": detail.field, "message": detail.message} for detail in answer.details
        ],
    }
    if answer.warnings:
        failed["warnings"] = list(answer.warnings)
    return failed


def make_handler(
    handle: Handle,
    settings: Settings,
    announce: Announce | None = None,
) -> Handler:
    """Return what the SDK calls with each job; `announce` posts a job's progress by its id."""

    async def answer(given: dict[str, Any]) -> dict[str, Any]:
        listener = None if announce is None else partial(announce, str(given["id"]))
        return format_answer(await handle(read(given, settings, listener)))

    return answer
