"""What was made -> the reply: encoded, delivered and measured, in a way that fits."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from worker import log
from worker.edge import echo, reply
from worker.errors import OutputTooLarge
from worker.jobs.encoder import Encoder
from worker.jobs.job import Job
from worker.jobs.ticket import Placed
from worker.media.deliver import ResponseFormat, deliver
from worker.media.s3 import read_own_bucket
from worker.seam import Wish, complete_wish
from worker.settings import Settings
from worker.tasks.request import Request


async def fit(
    job: Job,
    request: Request,
    wishes: Sequence[Wish],
    placed: Sequence[Placed],
    encoder: Encoder,
    adjusted: Mapping[str, Sequence[Any]],
    settings: Settings,
) -> dict[str, Any]:
    """Return the reply, in another way than requested where that would not fit, if one is allowed.

    A bucket, if there is one; else another format, if the caller named none; `adjusted` has what
    was changed. Raises OutputTooLarge, and what media.deliver raises.
    """
    task, delivery = request.task, request.delivery
    first = complete_wish(wishes[0], placed[0].made)
    refused: OutputTooLarge | None = None
    for form, response_format in _list_ways(job, request, settings):
        with job.measure_phase("encode"):
            pieces = await encoder.encode_all([one.made for one in placed], form)
        with job.measure_phase("deliver"):
            entries = await deliver(
                pieces,
                response_format,
                upload_urls=delivery.upload_urls,
                bucket=job.bucket,
                job_id=job.id,
                settings=settings,
            )
        job.timings["total"] = job.measure_elapsed_ms()
        output = reply.make_success(
            task.key,
            _show_single(entries)
            if task.is_single
            else [{**e, "seed": wish.seed} for e, wish in zip(entries, wishes, strict=True)],
            first,
            request.model,
            timings_ms=reply.sum_timings(job.timings, task.timings),
            peak_vram_mb=max(one.made.peak_vram_mb for one in placed),
            adjusted=adjusted,
            warnings=job.warnings,
        )
        if settings.most_in_batch > 1:
            _add_batches(output, task.key, placed)
        compat = settings.response_compat
        if (
            compat is not None
            and not job.is_plain
            and compat.startswith("audio") == (task.key == "audio")
        ):
            reply.serve_old_callers(output, task.key, compat)
        if form != delivery.form:
            output["adjusted"]["output_format"] = [delivery.form, form]
        if response_format != delivery.response_format:
            output["adjusted"]["response_format"] = [delivery.response_format, response_format]
        try:
            size = await asyncio.to_thread(reply.measure, output, job.most_bytes, task.advice)
        except OutputTooLarge as error:
            refused = error
            continue
        log.get().info(
            "job done",
            task=task.name,
            model=request.model.id,
            **echo.show_in_log(first),
            **{
                f"{task.noun}s": len(pieces),
                f"{task.noun}_bytes": sum(len(piece.data) for piece in pieces),
            },
            reply_bytes=size,
            timings_ms=output["timings_ms"],
        )
        return output
    assert refused is not None  # noqa: S101 - the loop ends here only after a refusal
    raise refused


def _show_single(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what a reply has of the only piece: its seed is the job's."""
    (only,) = entries
    return {name: value for name, value in only.items() if name != "index"}


def _list_ways(job: Job, request: Request, settings: Settings) -> list[tuple[str, ResponseFormat]]:
    """Return the formats and ways in which the reply may be delivered, the requested one first."""
    asked = request.delivery
    ways = [(asked.form, asked.response_format)]
    if asked.response_format != "url":
        if job.bucket is not None or read_own_bucket(settings) is not None:
            ways.append((asked.form, "url"))
        elif asked.is_open:
            ways += [(smaller, asked.response_format) for smaller in request.task.smaller]
    return ways


def _add_batches(output: dict[str, Any], key: str, placed: Sequence[Placed]) -> None:
    """Add the first piece's batch to a reply, and to each of several pieces its own."""
    output["batch"] = placed[0].describe()
    if len(placed) > 1:
        for entry, one in zip(output[key], placed, strict=True):
            entry["batch"] = one.describe()
