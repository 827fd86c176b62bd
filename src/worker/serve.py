"""One job from input to reply: its phases, cancel, deadline, and every error as a reply."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import structlog
from PIL import Image

from worker import geometry, log, reply
from worker.capabilities import capabilities
from worker.control import JobControl
from worker.device_thread import DeviceThread
from worker.errors import (
    CudaOutOfMemory,
    DeadlineExceeded,
    Detail,
    Internal,
    InvalidInput,
    OutputTooLarge,
    WorkerError,
    WorkerNotReady,
)
from worker.families import Drawn, Generation, Models
from worker.fields import NAMES
from worker.media import images
from worker.media.deliver import Encoded, check_targets, deliver
from worker.media.fetch import fetch_all
from worker.media.s3 import own_bucket
from worker.progress import Progress
from worker.request import OutputFormat, Query, Request, ResponseFormat, parse
from worker.settings import Settings

# Two jobs in a row out of memory, each of them tried twice: it is the worker, not the jobs.
OOM_FATAL: Final = 2
# What a reply over budget is encoded as, in turn, when the caller left the format open.
SMALLER: Final[tuple[OutputFormat, ...]] = ("webp", "jpeg")

Announce = Callable[[str, Mapping[str, Any]], Awaitable[None]]


@dataclass(slots=True)
class _Job:
    """One job as it came, and the milliseconds that its phases took."""

    id: str
    input: Any
    s3_config: Any
    start: float
    timings: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure one phase."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.timings[name] = _since(start)


class Worker:
    """What serves the jobs: `handle` is the handler that RunPod's SDK calls.

    `announce` posts a job's progress by its id; None where nobody listens. `fatal` is why this
    worker can draw no more, once that is so: it answers what it has, and must be replaced.
    """

    def __init__(
        self, settings: Settings, models: Models, announce: Announce | None = None
    ) -> None:
        self.fatal: WorkerError | None = None
        self._settings = settings
        self._models = models
        self._announce = announce
        self._device = DeviceThread()
        self._started = time.monotonic()
        self._out_of_memory = 0
        self._counts = {"done": 0, "failed": 0, "cancelled": 0}

    async def handle(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Return the reply to one job; raises nothing but CancelledError."""
        known = _Job(str(job["id"]), job.get("input"), job.get("s3Config"), time.monotonic())
        with structlog.contextvars.bound_contextvars(job_id=known.id):
            try:
                async with self._deadline(known):
                    answer = await self._answer(known)
            except asyncio.CancelledError:
                self._counts["cancelled"] += 1
                log.get().info("job cancelled", total_ms=round(_since(known.start)))
                raise
            except WorkerError as error:
                answer = self._failed(error, known)
            except Exception:  # noqa: BLE001 - whatever it is, the caller gets an answer
                reference = uuid.uuid4().hex[:12]
                log.get().exception("bug", reference=reference)
                told = Internal(f"a bug of this worker; its log tells more under {reference}")
                answer = self._failed(told, known)
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

    def _failed(self, error: WorkerError, job: _Job) -> dict[str, Any]:
        self._counts["failed"] += 1
        log.get().warning(
            "job failed",
            error_code=error.code,
            reason=error.message,
            total_ms=round(_since(job.start)),
        )
        return reply.failure(error)

    @asynccontextmanager
    async def _deadline(self, job: _Job) -> AsyncIterator[None]:
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

    async def _answer(self, job: _Job) -> dict[str, Any]:
        await asyncio.sleep(0)  # where a job that was cancelled before its start ends
        if self.fatal is not None:
            raise WorkerNotReady(f"this worker is being replaced ({self.fatal.code}); try again")
        served, s3_config = self._models.served, _s3_config(job.s3_config)
        request = parse(job.input, served, self._settings, callers_bucket=s3_config is not None)
        if isinstance(request, Query):
            health = request.op == "health"
            told = self.health() if health else capabilities(served, self._settings)
            return {**told, "warnings": list(request.warnings)}
        check_targets(upload_urls=request.upload_urls, s3_config=s3_config, settings=self._settings)
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
            references = await self._references(request)
        dimensions = geometry.dimensions(request, [image.size for image in references])
        drawn = await self._drawn(job, request, references, dimensions)
        return await self._fitting(job, request, dimensions, drawn, s3_config)

    async def _references(self, request: Request) -> tuple[Image.Image, ...]:
        """Fetch and decode the references, all at once."""
        if not request.sources:
            return ()
        fetched = await fetch_all(request.sources, self._settings)
        limit = self._settings.max_image_pixels
        decoded = [
            asyncio.to_thread(_decode, index, data, limit) for index, data in enumerate(fetched)
        ]
        return tuple(await asyncio.gather(*decoded))

    async def _drawn(
        self,
        job: _Job,
        request: Request,
        references: tuple[Image.Image, ...],
        dimensions: geometry.Dimensions,
    ) -> list[Drawn]:
        """Draw the pictures in the device's thread, and learn from it how the device is."""
        announce = self._announce
        post = None if announce is None else lambda update: announce(job.id, update)
        async with Progress(post) as progress:
            control = JobControl(progress.tell, request.num_images)

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

    async def _fitting(
        self,
        job: _Job,
        request: Request,
        dimensions: geometry.Dimensions,
        drawn: Sequence[Drawn],
        s3_config: Mapping[str, Any] | None,
    ) -> dict[str, Any]:
        """Return the reply, by other ways than asked where it would not fit and that is allowed.

        A bucket, if there is one; else another format, if the caller named none. Raises
        OutputTooLarge.
        """
        asked = request.output_format, request.response_format
        ways: list[tuple[OutputFormat, ResponseFormat]] = [asked]
        if request.response_format != "url":
            if s3_config is not None or own_bucket(self._settings) is not None:
                ways.append((request.output_format, "url"))
            elif not _is_given(job.input, "output_format"):
                ways += [(smaller, request.response_format) for smaller in SMALLER]
        refused: OutputTooLarge | None = None
        for output_format, response_format in ways:
            with job.phase("encode"):
                pictures = await self._encoded(request, dimensions, drawn, output_format)
            with job.phase("deliver"):
                entries = await deliver(
                    pictures,
                    response_format,
                    upload_urls=request.upload_urls,
                    s3_config=s3_config,
                    job_id=job.id,
                    settings=self._settings,
                )
            job.timings["total"] = _since(job.start)
            output = reply.success(
                request,
                entries,
                lightning_enabled=all(picture.lightning_enabled for picture in drawn),
                timings_ms=job.timings,
                peak_vram_mb=max(picture.peak_vram_mb for picture in drawn),
                adjusted=dimensions.adjusted,
                warnings=[*dimensions.warnings, *(w for p in drawn for w in p.warnings)],
                compat=self._settings.response_compat,
            )
            if output_format != request.output_format:
                output["adjusted"]["output_format"] = [request.output_format, output_format]
            if response_format != request.response_format:
                output["adjusted"]["response_format"] = [request.response_format, response_format]
            try:
                size = await asyncio.to_thread(
                    reply.measure, output, self._settings.max_reply_bytes
                )
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
        self,
        request: Request,
        dimensions: geometry.Dimensions,
        drawn: Sequence[Drawn],
        output_format: OutputFormat,
    ) -> list[Encoded]:
        """Encode the pictures side by side, off the event loop."""

        def encode(index: int, picture: Image.Image) -> Encoded:
            if dimensions.final is not None:
                picture = picture.resize(dimensions.final, Image.Resampling.LANCZOS)
            seed = request.seed + index
            chunks = _parameters(request, seed) if self._settings.png_metadata else {}
            data = images.encode(picture, output_format, request.output_quality, chunks)
            mime_type = images.MIME_TYPES[output_format]
            return Encoded(data, mime_type, picture.width, picture.height, seed)

        work = [asyncio.to_thread(encode, i, picture.image) for i, picture in enumerate(drawn)]
        return list(await asyncio.gather(*work))


def _since(start: float) -> float:
    return (time.monotonic() - start) * 1000


def _s3_config(given: Any) -> Mapping[str, Any] | None:
    """Return the job's own bucket; raises InvalidInput when it is no object."""
    if given is None or isinstance(given, dict):
        return given
    message = "must be an object"
    raise InvalidInput(f"s3Config: {message}", details=[Detail("s3Config", message)])


def _is_given(job_input: Mapping[str, Any], name: str) -> bool:
    """Tell whether the caller set a field, by any of its names."""
    return any(value is not None and NAMES.get(word) == name for word, value in job_input.items())


def _decode(index: int, data: bytes, max_pixels: int) -> Image.Image:
    try:
        return images.decode(data, max_pixels)
    except WorkerError as error:
        name = f"images[{index}]"
        details = [Detail(name, error.message)]
        raise type(error)(f"{name}: {error.message}", details=details) from error


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
