"""One job from input to reply: its phases, cancel, deadline, and every error as a reply."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any, Final

import structlog

from worker import log
from worker.edge import reply
from worker.edge.reply import Failure
from worker.errors import (
    CudaOutOfMemory,
    DeadlineExceeded,
    InvalidInput,
    WorkerError,
    WorkerNotReady,
)
from worker.jobs.control import JobControl
from worker.jobs.encoder import Encoder
from worker.jobs.fitting import fit
from worker.jobs.forming import Caps
from worker.jobs.job import Answer, Job
from worker.jobs.lane import Lane
from worker.jobs.limit import Limit
from worker.jobs.outflow import STREAM_FORM, Outflow
from worker.jobs.progress import Progress
from worker.jobs.ticket import Placed, Ticket
from worker.loras.fetching import LoraFetcher
from worker.media.deliver import check_upload_urls
from worker.media.fetch import fetch_all
from worker.seam import Model, Models, Wish
from worker.settings import Settings
from worker.tasks.capabilities import list_capabilities
from worker.tasks.request import Query, Request, parse
from worker.tasks.task import Settled

# Two jobs in a row out of memory, each of them tried twice: the worker is at fault, not the jobs.
OOM_FATAL: Final = 2


class Worker:
    """What serves the jobs: a door calls `handle` with each of them.

    `fatal` is why this worker can make nothing more, once that is so: it answers the jobs it has,
    and must be replaced.
    """

    def __init__(self, settings: Settings, models: Models) -> None:
        self.fatal: WorkerError | None = None
        self._settings = settings
        self._models = models
        self._lane = Lane(
            Caps(settings.most_in_batch, settings.batch_max_pixels),
            timeout_s=settings.batch_timeout_ms / 1000,
            note=self._note,
        )
        self._loras = LoraFetcher(settings)
        self._started = time.monotonic()
        self._out_of_memory = 0
        self._counts = {"done": 0, "failed": 0, "cancelled": 0}

    async def handle(self, job: Job) -> Answer:
        """Return the reply to one job, or why it has none; raises nothing but CancelledError."""
        with structlog.contextvars.bound_contextvars(job_id=job.id):
            try:
                async with self._limit_time(job):
                    answer: Answer = await self._answer(job)
            except asyncio.CancelledError:
                self._counts["cancelled"] += 1
                log.get().info("job cancelled", total_ms=round(job.measure_elapsed_ms()))
                raise
            except WorkerError as error:
                answer = self._fail(error, job)
            except Exception:  # noqa: BLE001 - whatever it is, the caller gets an answer
                answer = self._fail(reply.log_bug("bug"), job)
            else:
                self._counts["done"] += 1
        return answer

    def report_health(self) -> dict[str, Any]:
        """Return what op=health reports."""
        return {
            "status": "ready" if self.fatal is None else "failing",
            "uptime_s": round(time.monotonic() - self._started, 1),
            "jobs": dict(self._counts),
            **self._models.report_health(),
            "worker_version": reply.read_worker_version(),
        }

    def _fail(self, error: WorkerError, job: Job) -> Failure:
        self._counts["failed"] += 1
        # The faults of an input quote it, and prompts are logged only on request.
        quotes = isinstance(error, InvalidInput) and not self._settings.log_prompts
        # Not the message: it may name unknown fields, which are the caller's own words too.
        message = "; ".join(f"{d.field}: {d.message}" for d in error.details) or error.message
        reason = [detail.field for detail in error.details] if quotes else message
        log.get().warning(
            "job failed",
            error_code=error.code,
            reason=reason,
            total_ms=round(job.measure_elapsed_ms()),
        )
        return reply.make_failure(error, job.warnings)

    @asynccontextmanager
    async def _limit_time(self, job: Job) -> AsyncIterator[None]:
        """Stop the job as a cancel would when it runs past the first of its limits, and say so."""
        seconds = self._settings.job_deadline_s
        own = [Limit(seconds, "this worker's JOB_DEADLINE_S")] if seconds else []
        limits = own if job.limit is None else [*own, job.limit]
        first = min(limits, key=lambda limit: limit.seconds, default=None)
        try:
            async with asyncio.timeout_at(job.start + first.seconds if first else None) as timeout:
                yield
        except TimeoutError:
            if first is not None and timeout.expired():
                raise DeadlineExceeded(
                    f"the job took longer than {first.seconds:g} s, {first.reason}"
                ) from None
            raise

    async def _answer(self, job: Job) -> dict[str, Any]:
        await asyncio.sleep(0)  # a job that was cancelled before its start ends here
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
            addable=self._models.list_addable,
        )
        if isinstance(request, Query):
            if request.op == "health":
                answer = self.report_health()
            else:
                answer = list_capabilities(served, self._settings, job.most_bytes)
            return {**answer, "warnings": list(request.warnings)}
        job.warnings += request.warnings
        check_upload_urls(request.delivery.upload_urls, self._settings)
        if job.bucket is not None:
            job.bucket.require()
            job.warnings += job.bucket.warnings
        if job.wait is not None:
            await job.wait()
        asked = request.asked
        facts = {"prompt": asked.prompt} if self._settings.log_prompts else {}
        log.get().info(
            "job started",
            task=request.task.name,
            model=request.model.id,
            steps=request.task.count_steps(asked.draft),
            **{f"{request.task.noun}s": request.count},
            references=len(asked.sources),
            **facts,
        )
        settled = await self._settle(job, request)
        async with self._obtain_loras(job, request, settled.wish) as wish:
            chosen = _choose_previews(job, request, _choose_streaming(job, request, wish))
            ahead = await self._read_ahead(request, chosen)
            wishes = request.make_wishes(ahead)
            encoder = Encoder(request, wishes, self._settings, job.show)
            placed = await self._make(job, request, wishes, encoder)
        return await fit(job, request, wishes, placed, encoder, settled.adjusted, self._settings)

    async def _settle(self, job: Job, request: Request) -> Settled:
        """Fetch what the wish needs and settle it; its warnings become the job's."""
        with job.measure_phase("fetch"):
            fetched = await fetch_all(request.asked.sources, self._settings)
            return await request.task.settle(
                request.asked, fetched, self._settings, job.warnings.append
            )

    @asynccontextmanager
    async def _obtain_loras(self, job: Job, request: Request, wish: Any) -> AsyncIterator[Wish]:
        """Yield the wish with its LoRAs, whose files stay here until it is made."""
        async with AsyncExitStack() as stack:
            if sources := request.asked.loras:
                with job.measure_phase("loras"):
                    loras = await stack.enter_async_context(self._loras.obtain(sources))
                wish = replace(wish, loras=loras)
            yield wish

    async def _read_ahead(self, request: Request, wish: Wish) -> Wish:
        """Do what a wish takes of the host alone, while others are made on the device.

        For a model that is not open the lane does it.
        """
        model = self._models.find_open(request.model.id)
        if model is None:
            return wish
        ahead: Wish = await asyncio.to_thread(model.read_ahead, wish)
        return ahead

    async def _make(
        self, job: Job, request: Request, wishes: Sequence[Wish], encoder: Encoder
    ) -> list[Placed]:
        """Make the wishes in the lane, each encoded as soon as it is made."""
        task = request.task
        async with (
            Progress(job.listener) as progress,
            Outflow(job.sink, *_choose_part_form(request)) as outflow,
        ):
            steps = task.count_steps(wishes[0])
            control = JobControl(
                progress.publish, task.spans, len(wishes), steps, hand_over=outflow.take
            )
            ticket = Ticket(
                request.model.id,
                lambda: self._take(request),
                wishes,
                control,
                may_share=request.may_share,
                on_made=encoder.start,
            )
            try:
                placed = await self._lane.make(ticket)
            except BaseException:
                encoder.drop()
                raise
        for one in placed:
            job.warnings += one.made.warnings
        # what shares a batch has the batch's timings: those of the last one count, once
        for made in {one.batch: one.made for one in placed}.values():
            for phase, spent in made.timings_ms.items():
                job.timings[phase] = job.timings.get(phase, 0.0) + spent
        return placed

    def _take(self, request: Request) -> Model:
        """Return the model, warm; in the lane's thread."""
        if self.fatal is not None:  # the job before this one found that out
            raise WorkerNotReady(f"this worker is being replaced ({self.fatal.code}); try again")
        return self._models.take(request.model.id)

    def _note(self, error: WorkerError | None) -> None:
        """Decide by how the making ended (None: well) whether this worker can go on."""
        self._out_of_memory = self._out_of_memory + 1 if isinstance(error, CudaOutOfMemory) else 0
        is_fatal = error is not None and (error.fatal or self._out_of_memory >= OOM_FATAL)
        if error is not None and is_fatal and self.fatal is None:
            self.fatal = error
            log.get().error("fatal", error_code=error.code)


def _choose_streaming(job: Job, request: Request, wish: Any) -> Any:
    """Return a wish that hands nothing over where its job's door cannot send it."""
    if not request.asked.streams or job.sink is not None:
        return wish
    job.warnings.append("stream: has no effect at this door, where the reply comes complete")
    return replace(wish, streams=False)


def _choose_previews(job: Job, request: Request, wish: Any) -> Any:
    """Return a wish that hands over what is on the way to its piece, as its door asks."""
    if not job.previews or job.sink is None or not request.task.has_previews:
        return wish
    return replace(wish, previews=job.previews)


def _choose_part_form(request: Request) -> tuple[str, int]:
    """Return the form and the quality of what is sent before the reply."""
    if request.asked.streams:
        return STREAM_FORM, 100
    return request.delivery.form, request.delivery.quality
