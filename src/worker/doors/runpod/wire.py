"""RunPod's form of jobs and answers: its dict -> Job; a reply or a failure -> its dict."""

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from worker.doors.runpod.bucket import S3_CONFIG, read_bucket
from worker.edge import reply
from worker.errors import WorkerError
from worker.jobs.job import Handle, Job
from worker.jobs.limit import read_limit
from worker.jobs.progress import Post
from worker.openai.queued import answer_job
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
        limit=read_limit(given.get("policy")),
    )


def make_handler(
    handle: Handle,
    settings: Settings,
    announce: Announce | None = None,
) -> Handler:
    """Return what the SDK calls with each job; `announce` posts a job's progress by its id."""

    async def answer(given: dict[str, Any]) -> dict[str, Any]:
        listener = None if announce is None else partial(announce, str(given["id"]))
        return await answer_job(read(given, settings, listener), handle)

    return answer
