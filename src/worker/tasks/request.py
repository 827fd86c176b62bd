"""Job input -> a Request that cannot be wrong, or every fault of it at once."""

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from worker.edge import fields, shape
from worker.edge.fields import MAX_SEED, CommonInput, show
from worker.edge.verdict import Verdict
from worker.errors import Detail, InvalidInput, ModelNotServed, UnsupportedTask
from worker.media.deliver import ResponseFormat
from worker.seam import Served, Wish
from worker.settings import Settings
from worker.tasks import registry, unhonoured
from worker.tasks.task import Asked, Task

# Random seeds stay exact in a JSON reader that stores numbers as doubles (JavaScript).
RANDOM_SEEDS: Final = 2**53 - 4
QUALITY: Final = 95

Addable = Callable[[str], Sequence[str]]


@dataclass(frozen=True, slots=True)
class Query:
    """A job that asks about the worker instead of for something to be made."""

    op: Literal["capabilities", "health"]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Delivery:
    """How what is made is delivered.

    `is_open` means that the caller named no format. `upload_urls` is empty or has one URL per
    output.
    """

    form: str
    quality: int
    response_format: ResponseFormat
    upload_urls: tuple[str, ...]
    is_open: bool


@dataclass(frozen=True, slots=True)
class Request:
    """What a job requests, complete and consistent for `model`; nothing is fetched yet.

    `seed` is the first output's, output i of `count` has seed + i. Without `may_share` each is made
    alone.
    """

    task: Task
    model: Served
    asked: Asked
    seed: int
    count: int
    delivery: Delivery
    warnings: tuple[str, ...]
    may_share: bool = True

    def make_wishes(self, settled: Any) -> tuple[Wish, ...]:
        """Return one wish per output, with its seed."""
        seeds = range(self.seed, self.seed + self.count)
        return tuple(replace(settled, seed=seed) for seed in seeds)


def add_none(task: str) -> Sequence[str]:
    """Name no model."""
    del task
    return ()


def parse(
    job_input: Any,
    served: Sequence[Served],
    settings: Settings,
    *,
    callers_bucket: bool = False,
    bucket_name: str | None = None,
    addable: Addable = add_none,
) -> Request | Query:
    """Turn a job's input into a Request (or a Query) for one of the `served` models.

    `callers_bucket` means that the job brings its own bucket; `bucket_name` is what its door calls
    one, None where callers cannot bring any. `addable` names the models that MODEL may name for a
    task. Raises InvalidInput, ModelNotServed or UnsupportedTask, with every fault in `details` and
    the `warnings` so far, and nothing else whatever the input.
    """
    if (message := shape.find_fault(job_input, registry.list_request_words())) is not None:
        raise InvalidInput(f"input: {message}", details=[Detail("input", message)])
    name, task = _choose_task(job_input, served)
    given = registry.read_input(job_input, task)
    verdict = Verdict(given)
    values = task.reread(given.values, verdict)
    verdict.add_unknown(strict=settings.strict_input)
    unhonoured.check(job_input, task, registry.map_foreign(task), verdict)
    if values.op in ("capabilities", "health"):
        verdict.raise_faults()
        return Query(values.op, tuple(verdict.warnings))

    for field in fields.list_required(task.input):
        if getattr(values, field) is None and not verdict.is_broken(field):
            verdict.add_fault(field, "is required")
    model = _choose_model(name, values, served, addable, verdict)
    task.compare(values, verdict)
    seed, count = _choose_seeds(values, settings, verdict)
    has_bucket = callers_bucket or settings.bucket_endpoint_url is not None
    delivery = _choose_delivery(values, task, count, has_bucket, bucket_name, verdict)
    if model is None:
        verdict.raise_faults()
        raise AssertionError("a model is missing, and no fault says why")
    asked = task.judge(values, model, verdict, settings)
    if word := _find_quality_word(job_input, task):
        verdict.warnings.append(f"{word}: a word has no effect; num_inference_steps is the quality")
    if values.output_quality is not None and delivery.form in task.lossless:
        verdict.warn("output_quality", f"has no effect on a {delivery.form}")
    verdict.raise_faults()
    return Request(
        task,
        model,
        asked,
        seed,
        count,
        delivery,
        tuple(verdict.warnings),
        may_share=values.batch is not False,
    )


def _choose_task(job_input: Mapping[Any, Any], served: Sequence[Served]) -> tuple[str, Task]:
    """Choose the task: its name as requested or inferred, and the one to read the input as."""
    common, usual = fields.map_names(CommonInput), registry.find_usual_task()
    own = {w: v for w, v in job_input.items() if common.get(w) in ("task", "model")}
    choice = registry.read_input(own, usual)
    signed = [
        task
        for task in registry.list_signed()
        if task.sign and _is_given(job_input, task, task.sign)
    ]
    inferred = next(iter(signed), usual)
    if not choice.broken.isdisjoint(("task", "model")):
        return inferred.name, inferred
    if choice.values.task is not None:
        name = choice.values.task
        return name, registry.TASKS.get(name, usual)
    able = _find_named(choice.values.model, served) or served
    kin = {task.name for task in registry.TASKS.values() if task.key == inferred.key}
    if not any(kin.intersection(model.offers) for model in able):
        others = [registry.TASKS[t] for t in able[0].tasks if t in registry.TASKS] if able else []
        inferred = next(iter(others), inferred)
    return inferred.name, inferred


def _is_given(job_input: Mapping[Any, Any], task: Task, field: str) -> bool:
    names = fields.map_names(task.input)
    return any(
        value is not None and names.get(word) == field
        for word, value in job_input.items()
        if isinstance(word, str)
    )


def _find_named(name: str | None, served: Sequence[Served]) -> list[Served]:
    """Return the models that a name means: by id, or else by repository."""
    if name is None:
        return []
    folded = name.casefold()
    return [m for m in served if folded == m.id.casefold()] or [
        m for m in served if folded == m.repository.casefold()
    ]


def _choose_model(
    task: str,
    values: CommonInput,
    served: Sequence[Served],
    addable: Addable,
    verdict: Verdict,
) -> Served | None:
    """Choose the model; None where a fault says why."""
    if verdict.is_broken("task", "model"):
        return None
    able = [model for model in served if task in model.offers]
    if values.model is not None:
        named = _find_named(values.model, served)
        if not named:
            names = ", ".join(model.id for model in served)
            message = f"this worker serves {names}, not {show(values.model)}"
            verdict.add_fault("model", message, ModelNotServed)
            return None
        others, able = able, [model for model in named if task in model.offers]
        if not able:
            first = named[0]
            message = f"{first.id} does {fields.join_words(first.tasks)}, not {task}"
            if values.task is None:
                message += _advise_sign(first, task)
            message += f"; {others[0].id} does" if others else f"; {_advise_adding(task, addable)}"
            verdict.add_fault("model", message, UnsupportedTask)
    elif not able:
        message = f"no model of this worker can do {task}; {_advise_adding(task, addable)}"
        verdict.add_fault("task", message, UnsupportedTask)
    return able[0] if able else None


def _advise_sign(model: Served, inferred: str) -> str:
    """Say what to give for a task that a model can do, where the usual one was inferred."""
    if inferred != registry.find_usual_task().name:
        return ""
    tasks = (registry.TASKS[name] for name in model.tasks if name in registry.TASKS)
    return next((f"; give {t.sign} to {t.name}" for t in tasks if t.sign is not None), "")


def _advise_adding(task: str, addable: Addable) -> str:
    """Say what the operator can add to MODEL so that a task is served."""
    names = addable(task)
    return (
        f"add one of {', '.join(names)} to MODEL" if names else "this version has no model for it"
    )


def _find_quality_word(job_input: Mapping[Any, Any], task: Task) -> str | None:
    """Return the name under which OpenAI's word for a quality was given, unless that is "auto"."""
    names = fields.map_names(task.input)
    for word, value in job_input.items():
        is_quality = isinstance(word, str) and names.get(word) == "output_quality"
        if is_quality and fields.is_quality_word(value) and value.lower() != "auto":
            return str(word)
    return None


def _choose_seeds(values: CommonInput, settings: Settings, verdict: Verdict) -> tuple[int, int]:
    """Choose the first seed and the number of outputs."""
    count = values.num_images or 1
    if count > settings.max_images_per_request:
        message = f"must be at most {settings.max_images_per_request} (got {count})"
        verdict.add_fault("num_images", message)
    if values.seed is None or values.seed == -1:
        return secrets.randbelow(RANDOM_SEEDS), count
    if values.seed + count - 1 > MAX_SEED:
        verdict.add_fault("seed", f"seed + {count - 1} must be at most 2^63-1")
    return values.seed, count


def _choose_delivery(
    values: CommonInput,
    task: Task,
    count: int,
    has_bucket: bool,
    bucket_name: str | None,
    verdict: Verdict,
) -> Delivery:
    """Choose how the outputs are delivered."""
    urls = tuple(values.upload_url or ())
    asked = values.response_format
    if urls and not verdict.is_broken("num_images") and len(urls) != count:
        verdict.add_fault("upload_url", f"must be one for each of {count} (got {len(urls)})")
    if urls and asked in ("base64", "data_url"):
        verdict.add_fault("upload_url", f"needs response_format url, not {asked}")
    if asked == "url" and not (urls or has_bucket or verdict.is_broken("upload_url")):
        ways = ["upload_url", "the worker's bucket (BUCKET_ENDPOINT_URL)"]
        if bucket_name is not None:
            ways.append(f"the job's {bucket_name}")
        verdict.add_fault("response_format", f"url needs {', '.join(ways[:-1])} or {ways[-1]}")
    return Delivery(
        form=values.output_format or task.default_format,
        quality=values.output_quality or QUALITY,
        response_format=asked or ("url" if urls or has_bucket else "base64"),
        upload_urls=urls,
        is_open=values.output_format is None,
    )
