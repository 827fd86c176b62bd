"""One job from input to reply: its phases, cancel, deadline, and every error as a reply."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import structlog
from PIL import Image

from worker import log
from worker.edge import geometry, reply
from worker.edge.capabilities import capabilities
from worker.edge.reply import Failure
from worker.edge.request import Query, Request, parse
from worker.errors import (
    CudaOutOfMemory,
    DeadlineExceeded,
    Detail,
    InvalidInput,
    WorkerError,
    WorkerNotReady,
)
from worker.families import Drawn, Generation, Models
from worker.jobs.control import JobControl
from worker.jobs.device_thread import DeviceThread
from worker.jobs.fitting import fitting
from worker.jobs.job import Answer, Job
from worker.jobs.progress import Progress
from worker.media import images
from worker.media.deliver import check_upload_urls
from worker.media.fetch import fetch_all
from worker.settings import Settings

# Two jobs in a row out of memory, each of them tried twice: it is the worker, not the jobs.
OOM_FATAL: Final = 2


class Worker:
    """What serves the jobs: a door calls `handle` with each.

    `fatal` is why this worker can draw no more, once that is so: it answers what it has, and must
    be replaced.
    """

    def __init__(self, settings: Settings, models: Models) -> None:
        self.fatal: WorkerError | None = None
        self._settings = settings
        self._models = models
        self._device = DeviceThread()
        self._started = time.monotonic()
        self._out_of_memory = 0
        self._counts = {"done": 0, "failed": 0, "cancelled": 0}

    async def handle(self, job: Job) -> Answer:
        """Return the reply to one job, or why it has none; raises nothing but CancelledError."""
        with structlog.contextvars.bound_contextvars(job_id=job.id):
            try:
                async with self._deadline(job):
                    answer: Answer = await self._answer(job)
            except asyncio.CancelledError:
                self._counts["cancelled"] += 1
                log.get().info("job cancelled", total_ms=round(job.elapsed_ms()))
                raise
            except WorkerError as error:
                answer = self._failed(error, job)
            except Exception:  # noqa: BLE001 - whatever it is, the caller gets an answer
                answer = self._failed(reply.bug("bug"), job)
            else:
                self._counts["done"] += 1
        return answer

    def health(self) -> dict[str, Any]:
        """Return what op=health answers."""
        return {
            "status": "ready" if self.fatal is None else "failing",
            "uptime_s": round(time.monotonic() - self._started, 1),
            "jobs": dict(self._counts),
            **self._models.health(),
            "worker_version": reply.worker_version(),
        }

    def _failed(self, error: WorkerError, job: Job) -> Failure:
        self._counts["failed"] += 1
        # What is wrong with an input quotes it: prompts are logged only when asked for.
        quotes = isinstance(error, InvalidInput) and not self._settings.log_prompts
        # Not the message: it may name unknown fields, which are the caller's own words too.
        told = "; ".join(f"{d.field}: {d.message}" for d in error.details) or error.message
        reason = [detail.field for detail in error.details] if quotes else told
        log.get().warning(
            "job failed",
            error_code=error.code,
            reason=reason,
            total_ms=round(job.elapsed_ms()),
        )
        return reply.failure(error, job.warnings)

    @asynccontextmanager
    async def _deadline(self, job: Job) -> AsyncIterator[None]:
        """Stop the job as a cancel would when it runs past JOB_DEADLINE_S, and say so."""
        seconds = self._settings.job_deadline_s
        try:
            async with asyncio.timeout_at(job.start + seconds if seconds else None) as limit:
                yield
        except TimeoutError:
            if limit.expired():
                raise DeadlineExceeded(
                    f"the job took longer than {seconds:g} s, this worker's JOB_DEADLINE_S"
                ) from None
            raise

    async def _answer(self, job: Job) -> dict[str, Any]:
        await asyncio.sleep(0)  # where a job that was cancelled before its start ends
        if self.fatal is not None:
            raise WorkerNotReady(f"this worker is being replaced ({self.fatal.code}); try again")
        if job.fault is not None:
            raise job.fault
        served = self._models.served
        request = parse(
            job.input,
            served,
            self._settings,
            callers_bucket=job.bucket is not None,
            bucket_name=job.bucket_name,
        )
        if isinstance(request, Query):
            health = request.op == "health"
            told = self.health() if health else capabilities(served, self._settings)
            return {**told, "warnings": list(request.warnings)}
        job.warnings += request.warnings
        check_upload_urls(request.upload_urls, self._settings)
        if job.bucket is not None:
            job.bucket.usable()
            job.warnings += job.bucket.warnings
        facts = {"prompt": request.prompt} if self._settings.log_prompts else {}
        log.get().info(
            "job started",
            task=request.task,
            model=request.model.id,
            steps=request.steps,
            pictures=request.num_images,
            references=len(request.sources),
            **facts,
        )
        with job.phase("fetch"):
            references = await self._references(job, request)
        dimensions = geometry.dimensions(request, [image.size for image in references])
        job.warnings += dimensions.warnings
        drawn = await self._drawn(job, request, references, dimensions)
        return await fitting(job, request, dimensions, drawn, self._settings)

    async def _references(self, job: Job, request: Request) -> tuple[Image.Image, ...]:
        """Fetch and decode the references, all at once; what they are warned of is the job's."""
        if not request.sources:
            return ()
        fetched = await fetch_all(request.sources, self._settings)
        limit = self._settings.max_image_pixels
        decoded = [
            asyncio.to_thread(_decode, index, data, limit) for index, data in enumerate(fetched)
        ]
        answers = await asyncio.gather(*decoded)
        job.warnings += (text for _, told in answers for text in told)
        return tuple(picture for picture, _ in answers)

    async def _drawn(
        self,
        job: Job,
        request: Request,
        references: tuple[Image.Image, ...],
        dimensions: geometry.Dimensions,
    ) -> list[Drawn]:
        """Draw the pictures in the device's thread, and learn from it how the device is."""
        async with Progress(job.listener) as progress:
            control = JobControl(progress.tell, request.num_images, request.steps)

            def work() -> list[Drawn]:
                return self._draw(request, references, dimensions, control)

            try:
                drawn = await self._device.run(work, control.stop)
            except asyncio.CancelledError as error:
                if isinstance(error.__cause__, WorkerError):
                    self._note(error.__cause__)
                raise
            except WorkerError as error:
                self._note(error)
                raise
        self._note(None)
        for picture in drawn:
            job.warnings += picture.warnings
            for phase, spent in picture.timings_ms.items():
                job.timings[phase] = job.timings.get(phase, 0.0) + spent
        return drawn

    def _draw(
        self,
        request: Request,
        references: tuple[Image.Image, ...],
        dimensions: geometry.Dimensions,
        control: JobControl,
    ) -> list[Drawn]:
        """Draw one picture after the other, each with its own seed; in the device's thread."""
        control.start(0)
        if self.fatal is not None:  # the job before this one found that out
            raise WorkerNotReady(f"this worker is being replaced ({self.fatal.code}); try again")
        model = self._models.take(request.model.id)
        drawn = []
        for index in range(request.num_images):
            control.start(index)
            generation = Generation(
                task=request.task,
                prompt=request.prompt,
                negative_prompt=request.negative_prompt,
                references=references,
                width=dimensions.width,
                height=dimensions.height,
                steps=request.steps,
                true_cfg_scale=request.true_cfg_scale,
                lightning=request.lightning,
                seed=request.seed + index,
            )
            drawn.append(model.generate(generation, control))
        return drawn

    def _note(self, error: WorkerError | None) -> None:
        """Judge by how a drawing ended (None: well) whether this worker can go on."""
        self._out_of_memory = self._out_of_memory + 1 if isinstance(error, CudaOutOfMemory) else 0
        if error is not None and (error.fatal or self._out_of_memory >= OOM_FATAL):
            self.fatal = error
            log.get().error("fatal", error_code=error.code)


def _decode(index: int, data: bytes, max_pixels: int) -> tuple[Image.Image, list[str]]:
    name, told = f"images[{index}]", list[str]()
    try:
        picture = images.decode(data, max_pixels, told.append)
    except WorkerError as error:
        details = [Detail(name, error.message)]
        raise type(error)(f"{name}: {error.message}", details=details) from error
    return picture, [f"{name}: {text}" for text in told]
