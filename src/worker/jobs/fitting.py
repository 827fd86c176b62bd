"""Drawn pictures -> the reply: encoded, delivered and measured, in a way that fits."""

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from PIL import Image

from worker import log
from worker.edge import reply
from worker.edge.geometry import Dimensions
from worker.edge.request import OutputFormat, Request, ResponseFormat
from worker.errors import OutputTooLarge
from worker.families import Drawn
from worker.jobs.job import Job
from worker.media import images
from worker.media.deliver import Encoded, deliver
from worker.media.s3 import own_bucket
from worker.settings import Settings

# What a reply over budget is encoded as, in turn, when the caller left the format open.
SMALLER: Final[tuple[OutputFormat, ...]] = ("webp", "jpeg")


async def fitting(
    job: Job,
    request: Request,
    dimensions: Dimensions,
    drawn: Sequence[Drawn],
    settings: Settings,
) -> dict[str, Any]:
    """Return the reply, by other ways than asked where that would not fit and those are allowed.

    A bucket, if there is one; else another format, if the caller named none; what was changed is
    in `adjusted`. Raises OutputTooLarge, and what media.deliver raises.
    """
    ways: list[tuple[OutputFormat, ResponseFormat]] = [
        (request.output_format, request.response_format)
    ]
    if request.response_format != "url":
        if job.bucket is not None or own_bucket(settings) is not None:
            ways.append((request.output_format, "url"))
        elif not job.is_given("output_format"):
            ways += [(smaller, request.response_format) for smaller in SMALLER]
    refused: OutputTooLarge | None = None
    for output_format, response_format in ways:
        with job.phase("encode"):
            pictures = await _encoded(request, dimensions, drawn, output_format, settings)
        with job.phase("deliver"):
            entries = await deliver(
                pictures,
                response_format,
                upload_urls=request.upload_urls,
                bucket=job.bucket,
                job_id=job.id,
                settings=settings,
            )
        job.timings["total"] = job.elapsed_ms()
        output = reply.success(
            request,
            entries,
            lightning_enabled=all(picture.lightning_enabled for picture in drawn),
            timings_ms=job.timings,
            peak_vram_mb=max(picture.peak_vram_mb for picture in drawn),
            adjusted=dimensions.adjusted,
            warnings=job.warnings,
            compat=settings.response_compat,
        )
        if output_format != request.output_format:
            output["adjusted"]["output_format"] = [request.output_format, output_format]
        if response_format != request.response_format:
            output["adjusted"]["response_format"] = [request.response_format, response_format]
        try:
            size = await asyncio.to_thread(reply.measure, output, job.most_bytes)
        except OutputTooLarge as error:
            refused = error
            continue
        log.get().info(
            "job done",
            task=request.task,
            model=request.model.id,
            width=dimensions.width,
            height=dimensions.height,
            pictures=len(pictures),
            picture_bytes=sum(len(picture.data) for picture in pictures),
            reply_bytes=size,
            timings_ms=output["timings_ms"],
        )
        return output
    assert refused is not None  # noqa: S101 - the loop ends here only after a refusal
    raise refused


async def _encoded(
    request: Request,
    dimensions: Dimensions,
    drawn: Sequence[Drawn],
    output_format: OutputFormat,
    settings: Settings,
) -> list[Encoded]:
    """Encode the pictures side by side, off the event loop."""

    def encode(index: int, picture: Image.Image) -> Encoded:
        if dimensions.final is not None:
            picture = picture.resize(dimensions.final, Image.Resampling.LANCZOS)
        seed = request.seed + index
        chunks = _parameters(request, seed) if settings.png_metadata else {}
        data = images.encode(picture, output_format, request.output_quality, chunks)
        mime_type = images.MIME_TYPES[output_format]
        return Encoded(data, mime_type, picture.width, picture.height, seed)

    work = [asyncio.to_thread(encode, i, picture.image) for i, picture in enumerate(drawn)]
    return list(await asyncio.gather(*work))


def _parameters(request: Request, seed: int) -> dict[str, str]:
    """Return what makes the same picture again, as PNG text chunks."""
    facts = {
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "seed": seed,
        "steps": request.steps,
        "true_cfg_scale": request.true_cfg_scale,
        "lightning": "true" if request.lightning else "false",
        "task": request.task,
        "model": request.model.id,
        "revision": request.model.revision,
        "precision": request.model.precision,
        "software": f"worker {reply.worker_version()}",
    }
    return {name: str(value) for name, value in facts.items() if value is not None}
