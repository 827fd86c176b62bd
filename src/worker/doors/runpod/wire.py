"""RunPod's form of jobs and answers: its dict -> Job; a reply or a failure -> its dict."""

import base64
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from worker.doors.runpod.bucket import S3_CONFIG, read_bucket
from worker.edge import reply
from worker.errors import WorkerError
from worker.jobs.job import Handle, Job
from worker.jobs.limit import read_limit
from worker.jobs.outflow import Sink
from worker.jobs.progress import Post
from worker.media.piece import Encoded
from worker.openai.queued import answer_job
from worker.settings import Settings

Handler = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
Announce = Callable[[str, Mapping[str, Any]], Awaitable[None]]


def describe_part(number: int, part: Encoded) -> dict[str, Any]:
    """Return a part of what is made as an item of RunPod's stream; under 1 MB, its limit."""
    return {
        "index": number,
        "base64": base64.b64encode(part.data).decode("ascii"),
        "mime_type": part.mime_type,
        **part.facts,
    }


def read(
    given: Mapping[str, Any],
    settings: Settings,
    listener: Post | None = None,
    sink: Sink | None = None,
) -> Job:
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
        sink=sink,
        limit=read_limit(given.get("policy")),
    )


def make_handler(
    handle: Handle,
    settings: Settings,
    announce: Announce | None = None,
    send: Announce | None = None,
) -> Handler:
    """Return what the SDK calls with each job.

    `announce` posts a job's progress by its id, `send` an item of its stream.
    """

    async def answer(given: dict[str, Any]) -> dict[str, Any]:
        job_id = str(given["id"])
        listener = None if announce is None else partial(announce, job_id)
        sink = None if send is None else partial(_send_part, send, job_id)
        return await answer_job(read(given, settings, listener, sink), handle)

    return answer


async def _send_part(send: Announce, job_id: str, number: int, part: Encoded) -> None:
    await send(job_id, describe_part(number, part))
