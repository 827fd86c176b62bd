"""OpenAI's API inside a job: what RunPod makes of EID/openai/v1/... , and its console's form."""

import time
from dataclasses import replace
from typing import Any, Final

from worker.edge.reply import Failure, format_answer, make_failure
from worker.errors import Detail, InvalidInput, ModelNotServed, UnsupportedTask, WorkerError
from worker.jobs.job import Answer, Handle, Job
from worker.openai.replies import find_model, format_error, format_pictures, list_models
from worker.openai.translate import EVENTS, LISTING, SPEECH_ROUTE, translate

# The keys that name a route, with the one that has its body.
FORMS: Final = {"openai_route": "openai_input", "route": "body"}
ROUTES: Final = (*EVENTS, SPEECH_ROUTE)


def find_route(job_input: Any) -> tuple[str, str] | None:
    """Return the key by which a job's input names a route, and the route; None if it names none."""
    if isinstance(job_input, dict):
        for key in FORMS:
            if isinstance(job_input.get(key), str):
                route = job_input[key].split("?")[0].rstrip("/")
                return key, route.removeprefix("/openai")
    return None


async def answer_job(job: Job, handle: Handle) -> dict[str, Any]:
    """Return the output of a job, in OpenAI's form if its input names a route of OpenAI's.

    OpenAI's answer to a speech is its sound alone, which no job can have as its output: the output
    is that of any job that speaks, streamed as those are. Why a job failed is there twice: as with
    any job, and as `openai_error`.
    """
    if find_route(job.input) is None:
        return format_answer(await handle(job))
    answer = await _answer_route(job, handle)
    output = format_answer(answer)
    if isinstance(answer, Failure):
        output["openai_error"] = format_error(answer)["error"]
    return output


async def _answer_route(job: Job, handle: Handle) -> Answer:
    found = find_route(job.input)
    assert found is not None  # noqa: S101 - only such jobs come here
    key, route = found
    try:
        if route == LISTING or route.startswith(f"{LISTING}/"):
            return await _answer_listing(key, route, job, handle)
        if route not in ROUTES:
            message = f"must be {', '.join(ROUTES)} or {LISTING}"
            raise InvalidInput(f"{key}: {message}", details=[Detail(key, message)])
        call = translate(route, job.input.get(FORMS[key]))
    except WorkerError as error:
        return make_failure(error)
    meant = replace(job, input=call.input, warnings=list(call.warnings))
    if route == SPEECH_ROUTE:
        return await handle(meant)
    return await _answer_pictures(meant, handle, streams=call.streams)


async def _answer_pictures(job: Job, handle: Handle, *, streams: bool) -> Answer:
    if streams:
        job.warnings.append("stream: has no effect in a job, whose reply comes complete")
    answer = await handle(replace(job, is_plain=True))
    if isinstance(answer, Failure):
        return answer
    try:
        return format_pictures(answer, int(time.time()))
    except UnsupportedTask as error:
        return make_failure(error)


async def _answer_listing(key: str, route: str, job: Job, handle: Handle) -> Answer:
    answer = await handle(replace(job, input={"op": "capabilities"}))
    if isinstance(answer, Failure):
        return answer
    if route == LISTING:
        return list_models(answer)
    model = find_model(answer, route.removeprefix(f"{LISTING}/"))
    if model is None:
        message = "this worker serves no model of that name"
        raise ModelNotServed(f"{key}: {message}", details=[Detail(key, message)])
    return model
