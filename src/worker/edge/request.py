"""Job input -> a Request that cannot be wrong, or every fault of it at once."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from worker.edge import geometry, shape
from worker.edge.blank import is_blank
from worker.edge.fields import MAX_SEED, JobInput, Pixels, shown
from worker.edge.reading import Read, read
from worker.errors import Detail, InvalidInput, ModelNotServed, UnsupportedTask, WorkerError
from worker.families import Served, Task, catalogue
from worker.media.fetch import ImageSource
from worker.settings import Settings

OutputFormat = Literal["png", "jpeg", "webp"]
ResponseFormat = Literal["base64", "data_url", "url"]

# Random seeds stay exact in a JSON reader that holds numbers as doubles (JavaScript).
RANDOM_SEEDS: Final = 2**53 - 4
QUALITY: Final = 95


@dataclass(frozen=True, slots=True)
class Query:
    """A job that asks about the worker instead of for a picture."""

    op: Literal["capabilities", "health"]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """A job's wish, complete and consistent for `model`; only the pictures are not yet fetched.

    `seed` is the first picture's, picture i has seed + i. `negative_prompt` is None when no CFG
    runs. `sources` are in the caller's order: none for text-to-image, one or more for edit.
    `upload_urls` is empty or has one URL for each picture. `size` goes to `geometry.dimensions`.
    """

    task: Task
    model: Served
    prompt: str
    negative_prompt: str | None
    sources: tuple[ImageSource, ...]
    size: geometry.Size
    steps: int
    true_cfg_scale: float
    lightning: bool
    seed: int
    num_images: int
    output_format: OutputFormat
    output_quality: int
    response_format: ResponseFormat
    upload_urls: tuple[str, ...]
    warnings: tuple[str, ...]


class _Verdict:
    """The faults and warnings of one input, gathered until all is judged."""

    def __init__(self, given: Read) -> None:
        self.given = given
        self.warnings: list[str] = []
        self._faults: list[tuple[type[WorkerError], Detail]] = [
            (InvalidInput, detail) for detail in given.faults
        ]
        self._strangers: tuple[Detail, ...] = ()

    def word(self, name: str) -> str:
        """Return the caller's name for a field."""
        return self.given.words.get(name, name)

    def fault(self, name: str, message: str, kind: type[WorkerError] = InvalidInput) -> None:
        self._faults.append((kind, Detail(self.word(name), message)))

    def warn(self, name: str, message: str) -> None:
        self.warnings.append(f"{self.word(name)}: {message}")

    def meet_strangers(self, *, strict: bool) -> None:
        """Take the unknown fields as faults, or as warnings."""
        if strict:
            self._faults += [(InvalidInput, detail) for detail in self.given.unknown]
        else:
            self._strangers = self.given.unknown
            self.warnings += [f"{d.field}: {d.message}" for d in self._strangers]

    def is_broken(self, *names: str) -> bool:
        return not self.given.broken.isdisjoint(names)

    def judge(self) -> None:
        """Raise the faults: as their own kind when they are all of one, else as InvalidInput.

        The message names the unknown fields as well, which are often the reason.
        """
        if not self._faults:
            return
        kinds = {kind for kind, _ in self._faults}
        kind = kinds.pop() if len(kinds) == 1 else InvalidInput
        details = [detail for _, detail in self._faults]
        told = "; ".join(f"{d.field}: {d.message}" for d in (*details, *self._strangers))
        raise kind(told, details=details, warnings=self.warnings)


def parse(
    job_input: Any,
    served: Sequence[Served],
    settings: Settings,
    *,
    callers_bucket: bool = False,
    bucket_name: str | None = None,
) -> Request | Query:
    """Turn a job's input into a Request (or a Query) for one of the `served` models.

    `callers_bucket` tells that the job brings its own bucket, `bucket_name` what its door's callers
    call one, if they can bring one. Raises InvalidInput, ModelNotServed or UnsupportedTask, with
    every fault in `details`, its `warnings` beside them, and nothing else whatever the input.
    """
    if (message := shape.fault(job_input)) is not None:
        raise InvalidInput(f"input: {message}", details=[Detail("input", message)])
    given = read(job_input)
    values, verdict = given.values, _Verdict(given)
    verdict.meet_strangers(strict=settings.strict_input)
    if values.op in ("capabilities", "health"):
        verdict.judge()
        return Query(values.op, tuple(verdict.warnings))

    if values.prompt is None and not verdict.is_broken("prompt"):
        verdict.fault("prompt", "is required")
    task, model = _task_and_model(values, served, verdict)
    size = _size(values, task, verdict)
    seed, num_images = _seeds(values, settings, verdict)
    has_bucket = callers_bucket or settings.bucket_endpoint_url is not None
    response_format, upload_urls = _delivery(values, num_images, has_bucket, bucket_name, verdict)
    if model is None:
        verdict.judge()
        raise AssertionError("a model is missing, and no fault says why")
    _references(values, task, model, settings, verdict)
    lightning, steps = _steps(values, model, settings, verdict)
    scale, negative_prompt = _guidance(values, model, lightning=lightning, verdict=verdict)
    _limits(size, task, model, verdict)
    output_format = values.output_format or "png"
    if values.output_quality is not None and output_format == "png":
        verdict.warn("output_quality", "has no effect on a png")
    verdict.judge()
    return Request(
        task=task,
        model=model,
        prompt=values.prompt or "",
        negative_prompt=negative_prompt,
        sources=tuple(values.images or ()),
        size=size,
        steps=steps,
        true_cfg_scale=scale,
        lightning=lightning,
        seed=seed,
        num_images=num_images,
        output_format=output_format,
        output_quality=values.output_quality or QUALITY,
        response_format=response_format,
        upload_urls=upload_urls,
        warnings=tuple(verdict.warnings),
    )


def _task_and_model(
    values: JobInput, served: Sequence[Served], verdict: _Verdict
) -> tuple[Task, Served | None]:
    """Infer the task and choose the model; the model is None when a fault was told."""
    has_images = values.images is not None or verdict.is_broken("images")
    task = values.task or ("edit" if has_images else "text-to-image")
    if verdict.is_broken("task", "model"):
        return ("edit" if has_images else "text-to-image"), None
    able = [model for model in served if task in model.tasks]
    if values.model is not None:
        wanted = values.model.casefold()
        named = [m for m in served if wanted == m.id.casefold()]
        named = named or [m for m in served if wanted == m.repository.casefold()]
        if not named:
            names = ", ".join(model.id for model in served)
            told = f"this worker serves {names}, not {shown(values.model)}"
            verdict.fault("model", told, ModelNotServed)
            return ("edit" if task == "edit" else "text-to-image"), None
        able = [model for model in named if task in model.tasks]
        if not able:
            told = f"{named[0].id} does {' and '.join(named[0].tasks)}, not {task}"
            if values.task is None and not has_images:
                told += "; give images to edit"
            others = [model.id for model in served if task in model.tasks]
            told += f"; {others[0]} does" if others else f"; {_to_add(task)}"
            verdict.fault("model", told, UnsupportedTask)
    elif not able:
        told = f"no model of this worker can do {task}; {_to_add(task)}"
        verdict.fault("task", told, UnsupportedTask)
    if task == "edit":
        return "edit", able[0] if able else None
    return "text-to-image", able[0] if able else None


def _to_add(task: str) -> str:
    """Say what the operator can add to MODEL so that a task is served."""
    rows = catalogue.CATALOGUE.rows
    names = [row.name for row in rows if task in row.tasks and row.embedded is None]
    return (
        f"add one of {', '.join(names)} to MODEL" if names else "this version has no model for it"
    )


def _references(
    values: JobInput, task: Task, model: Served, settings: Settings, verdict: _Verdict
) -> None:
    if verdict.is_broken("images"):
        return
    count = len(values.images or ())
    if task == "edit" and not count:
        verdict.fault("images", "is required for edit")
    elif task == "text-to-image" and count:
        verdict.fault("images", "text-to-image takes none; leave it out or ask for task edit")
    elif task == "edit" and count > (most := min(model.max_references, settings.max_input_images)):
        verdict.fault("images", f"must be at most {most} for {model.id} (got {count})")


def _steps(
    values: JobInput, model: Served, settings: Settings, verdict: _Verdict
) -> tuple[bool, int]:
    """Choose Lightning or not, and the number of steps."""
    held, steps = model.lightning_steps, values.num_inference_steps
    lightning = settings.use_lightning_lora if values.lightning is None else values.lightning
    if lightning and not held:
        if values.lightning:
            verdict.fault("lightning", f"no Lightning LoRA is held for {model.id}")
        lightning = False
    if held and not lightning and settings.lightning_fused:
        verdict.fault("lightning", f"cannot be turned off: {model.id} has it baked in here")
        lightning = True
    if not lightning:
        return False, steps or model.steps
    if steps is not None and steps not in held:
        counts = " or ".join(map(str, held))
        others = "" if settings.lightning_fused else ", or lightning must be false"
        verdict.fault(
            "num_inference_steps", f"must be {counts} with Lightning{others} (got {steps})"
        )
    return True, steps or held[0]


def _guidance(
    values: JobInput, model: Served, *, lightning: bool, verdict: _Verdict
) -> tuple[float, str | None]:
    """Choose the CFG scale and, where CFG runs, the negative prompt."""
    scale = model.true_cfg_scale if values.true_cfg_scale is None else values.true_cfg_scale
    if lightning:
        if values.true_cfg_scale not in (None, 1.0):
            told = f"set to 1.0, since Lightning runs without CFG (got {values.true_cfg_scale:g})"
            verdict.warn("true_cfg_scale", told)
        scale = 1.0
    if scale > 1:
        return scale, values.negative_prompt or model.negative_prompt
    if values.negative_prompt and not is_blank(values.negative_prompt):
        verdict.warn("negative_prompt", "has no effect at a true_cfg_scale of 1.0")
    return scale, None


def _seeds(values: JobInput, settings: Settings, verdict: _Verdict) -> tuple[int, int]:
    """Choose the first seed and the number of pictures."""
    num_images = values.num_images or 1
    if num_images > settings.max_images_per_request:
        told = f"must be at most {settings.max_images_per_request} (got {num_images})"
        verdict.fault("num_images", told)
    if values.seed is None or values.seed == -1:
        return secrets.randbelow(RANDOM_SEEDS), num_images
    if values.seed + num_images - 1 > MAX_SEED:
        verdict.fault("seed", f"seed + {num_images - 1} must be at most 2^63-1")
    return values.seed, num_images


def _delivery(
    values: JobInput,
    num_images: int,
    has_bucket: bool,
    bucket_name: str | None,
    verdict: _Verdict,
) -> tuple[ResponseFormat, tuple[str, ...]]:
    """Choose how the pictures travel."""
    urls = tuple(values.upload_url or ())
    asked = values.response_format
    if urls and not verdict.is_broken("num_images") and len(urls) != num_images:
        verdict.fault("upload_url", f"must be one for each of {num_images} (got {len(urls)})")
    if urls and asked in ("base64", "data_url"):
        verdict.fault("upload_url", f"goes with response_format url, not {asked}")
    if asked == "url" and not (urls or has_bucket or verdict.is_broken("upload_url")):
        ways = ["upload_url", "the worker's bucket (BUCKET_ENDPOINT_URL)"]
        if bucket_name is not None:
            ways.append(f"the job's {bucket_name}")
        verdict.fault("response_format", f"url needs {', '.join(ways[:-1])} or {ways[-1]}")
    return asked or ("url" if urls or has_bucket else "base64"), urls


def _size(values: JobInput, task: Task, verdict: _Verdict) -> geometry.Size:
    """Bring width, height, size and aspect_ratio together."""
    width, height, aspect = values.width, values.height, values.aspect_ratio
    named = next((name for name in ("width", "height") if getattr(values, name)), None)
    word = verdict.word(named or ("size" if values.size else "aspect_ratio"))
    as_input = values.size == "input"
    edits = task == "edit"
    if isinstance(values.size, Pixels):
        for name, one in (("width", width), ("height", height)):
            if one is not None and one != getattr(values.size, name):
                verdict.fault("size", f"differs from {name}")
        width, height, word = *values.size, verdict.word("size")
    elif as_input and named is not None:
        verdict.fault("size", f"input goes without {named}")
    if as_input and not edits:
        verdict.fault("size", "input is for edit: there is no input picture")
    if aspect is not None and width is not None and height is not None:
        verdict.warn("aspect_ratio", "has no effect beside width and height")
    if aspect == "match_input_image":
        if not edits:
            verdict.fault("aspect_ratio", "match_input_image is for edit")
        aspect = None
    elif aspect is not None and as_input:
        verdict.fault("aspect_ratio", "differs from size input")
    return geometry.Size(width, height, aspect, as_input, word)


def _limits(size: geometry.Size, task: Task, model: Served, verdict: _Verdict) -> None:
    """Judge a size that is known before the references are, with the other faults."""
    needs_reference = size.as_input or (task == "edit" and size.aspect_ratio is None)
    if needs_reference and (size.width is None or size.height is None):
        return
    if verdict.is_broken("width", "height", "size", "aspect_ratio"):
        return
    try:
        geometry.choose(size, model, None)
    except InvalidInput as error:
        for detail in error.details:
            verdict.fault(detail.field, detail.message)
