"""Facts -> a job's output that fits the reply budget; an error -> one that is safe."""

import functools
import importlib.metadata
import itertools
import json
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from worker import log, versions
from worker.edge import echo
from worker.errors import Detail, ErrorType, Internal, OutputTooLarge, WorkerError
from worker.seam import Served, Wish
from worker.setting_values import MB

# An output has exactly one of these.
CARRIERS: Final = ("base64", "data_url", "url")

LONGEST_MESSAGE: Final = 2000
MOST_DETAILS: Final = 50
# Messages are written without paths and addresses; this is a second safeguard, for those that quote
# another library. A path inside a URL has a character before its first slash.
PATH: Final = re.compile(r"(?<![\w:/.])/(?:[\w.@+-]+/)+[\w.@+-]*")
ADDRESS: Final = re.compile(
    r"\b\d{1,3}(?:\.\d{1,3}){3}\b(?::\d+)?|(?<![\w:])\[?[0-9a-f]{0,4}::[0-9a-f:]+\]?"
)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a job has no reply, in words that anyone may read; each door gives it its own form."""

    code: str
    error_type: ErrorType
    retryable: bool
    message: str
    details: tuple[Detail, ...]
    warnings: tuple[str, ...]


@functools.cache
def read_worker_version() -> str:
    """Return this package's version and the name of its torch, such as "0.2.0+cu128".

    Together they decide what a seed gives on a type of GPU.
    """
    torch = versions.find_version("torch")
    return f"{importlib.metadata.version('worker')}{versions.name_build(torch)}"


def make_success(
    key: str,
    entries: Sequence[Mapping[str, Any]] | Mapping[str, Any],
    wish: Wish,
    model: Served,
    *,
    timings_ms: Mapping[str, int],
    peak_vram_mb: int,
    adjusted: Mapping[str, Sequence[Any]],
    warnings: Iterable[str] = (),
) -> dict[str, Any]:
    """Return the output of a job that made what it was asked for.

    `entries` are those of media.deliver, in order, which go under `key`, or the only one of a task
    that is single; `wish` is the first output's, whose own fields say what is echoed. `warnings`
    are reported once each.
    """
    return {
        key: dict(entries)
        if isinstance(entries, Mapping)
        else [{"index": index, **entry} for index, entry in enumerate(entries)],
        **echo.show_in_reply(wish),
        "model": {"id": model.id, "revision": model.revision, "precision": model.precision},
        "adjusted": {name: list(pair) for name, pair in adjusted.items()},
        "warnings": list(dict.fromkeys(warnings)),
        "timings_ms": dict(timings_ms),
        "peak_vram_mb": peak_vram_mb,
        "worker_version": read_worker_version(),
    }


def serve_old_callers(output: dict[str, Any], key: str, top: str) -> None:
    """Move the data of the first output under `key` to the reply's own key `top`.

    A key that says URL gets one, a data URL where there is no other.
    """
    first = output[key] if isinstance(output[key], dict) else output[key][0]
    carrier = next(name for name in CARRIERS if name in first)
    value = first.pop(carrier)
    is_bare = carrier == "base64" and top.endswith("_url")
    output[top] = f"data:{first['mime_type']};base64,{value}" if is_bare else value


def find_carrier(output: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the key of an output's pieces and that of the first one's data; None without any."""
    for key, value in output.items():
        first = value[0] if isinstance(value, list) and value else value
        if isinstance(first, Mapping):
            for carrier in CARRIERS:
                if carrier in first:
                    return key, carrier
    return None


def sum_timings(spent_ms: Mapping[str, float], keys: Mapping[str, str]) -> dict[str, int]:
    """Return a reply's timings in milliseconds of what a job's phases took, 0 for those missing.

    `keys` maps the phases of making to the reply's keys, each of which may sum up several.
    """
    every = {
        "fetch": "fetch",
        "loras": "fetch",
        **keys,
        "encode": "encode",
        "deliver": "deliver",
        "total": "total",
    }
    sums = dict.fromkeys(every.values(), 0.0)
    for phase, key in every.items():
        sums[key] += spent_ms.get(phase, 0)
    return {key: round(spent) for key, spent in sums.items()}


def describe_output(wish: Wish, model: Served) -> dict[str, str]:
    """Return what makes the same output again, as text inside its file."""
    return {
        **echo.show_in_file(wish),
        "task": wish.task,
        "model": model.id,
        "revision": model.revision,
        "precision": model.precision,
        "software": f"worker {read_worker_version()}",
    }


def make_failure(error: WorkerError, warnings: Iterable[str] = ()) -> Failure:
    """Return why a job has no reply.

    `warnings` are those that the job had before; with the error's own they are reported
    once each. Nothing in it contains a path, an address or a known secret, whatever the error says.
    """
    every = dict.fromkeys((*warnings, *error.warnings))
    return Failure(
        code=error.code,
        error_type=error.error_type,
        retryable=error.retryable,
        message=_make_safe(error.message),
        details=tuple(
            Detail(_make_safe(detail.field), _make_safe(detail.message))
            for detail in error.details[:MOST_DETAILS]
        ),
        warnings=tuple(_make_safe(warning) for warning in itertools.islice(every, MOST_DETAILS)),
    )


def format_answer(answer: Mapping[str, Any] | Failure) -> dict[str, Any]:
    """Return an answer as the output of a job, in the form that RunPod's callers know.

    RunPod's SDK takes `error` out and reports the job as failed with it; the rest becomes its
    output. A failure has `warnings` only if there are any.
    """
    if not isinstance(answer, Failure):
        return dict(answer)
    failed: dict[str, Any] = {
        "error": f"{answer.code}: {answer.message}",
        "error_code": answer.code,
        "error_type": answer.error_type,
        "retryable": answer.retryable,
        "details": [
            {"field": detail.field, "message": detail.message} for detail in answer.details
        ],
    }
    if answer.warnings:
        failed["warnings"] = list(answer.warnings)
    return failed


def log_bug(event: str) -> Internal:
    """Log the exception that is being handled as `event`; return an error that refers to it."""
    reference = uuid.uuid4().hex[:12]
    log.get().exception(event, reference=reference)
    return Internal(f"a bug in this worker; its log has more under {reference}")


def measure(reply: Mapping[str, Any], budget: int, advice: str = "less") -> int:
    """Return the bytes that the reply will have as the SDK sends it (UTF-8 JSON).

    Raises OutputTooLarge over `budget` bytes, with the `advice` what else to request; Internal when
    the reply is not strict JSON, which the SDK would lose (NaN, a lone surrogate, an object).
    """
    try:
        size = len(json.dumps(reply, allow_nan=False, ensure_ascii=False).encode())
    except (TypeError, ValueError, RecursionError):
        raise Internal("the reply is not JSON") from None
    if size <= budget:
        return size
    raise OutputTooLarge(
        f"the reply would have {size / MB:.1f} MB, at most {budget / MB:.1f} MB fit; ask for"
        f" {advice}, or have them uploaded (response_format url with a bucket or upload_url)"
    )


def _make_safe(message: str) -> str:
    text = str(log.redact(message)).encode(errors="replace").decode()
    text = ADDRESS.sub("[address]", PATH.sub("[path]", text))
    return text if len(text) <= LONGEST_MESSAGE else text[:LONGEST_MESSAGE] + "..."
