"""Pictures and facts -> a job's output that fits the reply budget; an error -> one that is safe."""

import functools
import importlib.metadata
import itertools
import json
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from worker import log
from worker.edge.request import Request
from worker.errors import Detail, ErrorType, Internal, OutputTooLarge, WorkerError
from worker.settings import MB

# A picture has exactly one of these.
CARRIERS: Final = ("base64", "data_url", "url")
# Reply phase -> the phases of the job that it sums up.
PHASES: Final[Mapping[str, tuple[str, ...]]] = {
    "fetch": ("fetch",),
    "text": ("text", "reference"),
    "denoise": ("denoise",),
    "decode": ("decode",),
    "encode": ("encode",),
    "deliver": ("deliver",),
    "total": ("total",),
}

LONGEST_MESSAGE: Final = 2000
MOST_DETAILS: Final = 50
# Messages are written without paths and addresses; this is the second fence, for those that quote
# another library's words. A path inside a URL has a character before its first slash.
PATH: Final = re.compile(r"(?<![\w:/.])/(?:[\w.@+-]+/)+[\w.@+-]*")
ADDRESS: Final = re.compile(
    r"\b\d{1,3}(?:\.\d{1,3}){3}\b(?::\d+)?|(?<![\w:])\[?[0-9a-f]{0,4}::[0-9a-f:]+\]?"
)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a job has no reply, in words that anybody may read; each door puts it into its form."""

    code: str
    error_type: ErrorType
    retryable: bool
    message: str
    details: tuple[Detail, ...]
    warnings: tuple[str, ...]


@functools.cache
def worker_version() -> str:
    """Return this package's version, as its metadata has it."""
    return importlib.metadata.version("worker")


def success(
    request: Request,
    images: Sequence[Mapping[str, Any]],
    *,
    lightning_enabled: bool,
    timings_ms: Mapping[str, float],
    peak_vram_mb: int,
    adjusted: Mapping[str, Sequence[int]],
    warnings: Iterable[str] = (),
    compat: str | None = None,
) -> dict[str, Any]:
    """Return the output of a job that made its pictures.

    `images` are the entries of media.deliver, in order. `timings_ms` are milliseconds by phase, of
    all pictures together; phases that are missing count as 0. `warnings` follow the request's own,
    each once. `compat` (RESPONSE_COMPAT) names the top-level key that takes the first picture.
    """
    entries = [{"index": index, **image} for index, image in enumerate(images)]
    output: dict[str, Any] = {
        "images": entries,
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "task": request.task,
        "seed": request.seed,
        "num_inference_steps": request.steps,
        "true_cfg_scale": request.true_cfg_scale,
        "lightning_enabled": lightning_enabled,
        "model": {
            "id": request.model.id,
            "revision": request.model.revision,
            "precision": request.model.precision,
        },
        "adjusted": {name: list(pair) for name, pair in adjusted.items()},
        "warnings": list(dict.fromkeys((*request.warnings, *warnings))),
        "timings_ms": {
            phase: round(sum(timings_ms.get(part, 0) for part in parts))
            for phase, parts in PHASES.items()
        },
        "peak_vram_mb": peak_vram_mb,
        "worker_version": worker_version(),
    }
    if compat is not None and entries:
        carrier = next(key for key in CARRIERS if key in entries[0])
        output[compat] = entries[0].pop(carrier)
    return output


def failure(error: WorkerError, warnings: Iterable[str] = ()) -> Failure:
    """Return why a job has no reply.

    `warnings` are what the job had been warned of before; with the error's own they are told each
    once. Nothing of it holds a path, an address or a known secret, whatever the error says.
    """
    told = dict.fromkeys((*warnings, *error.warnings))
    return Failure(
        code=error.code,
        error_type=error.error_type,
        retryable=error.retryable,
        message=_safe(error.message),
        details=tuple(
            Detail(_safe(detail.field), _safe(detail.message))
            for detail in error.details[:MOST_DETAILS]
        ),
        warnings=tuple(_safe(warning) for warning in itertools.islice(told, MOST_DETAILS)),
    )


def bug(event: str) -> Internal:
    """Log the exception that is being handled as `event`; return an error that refers to it."""
    reference = uuid.uuid4().hex[:12]
    log.get().exception(event, reference=reference)
    return Internal(f"a bug of this worker; its log tells more under {reference}")


def measure(reply: Mapping[str, Any], budget: int) -> int:
    """Return the bytes that the reply will have as the SDK sends it (UTF-8 JSON).

    Raises OutputTooLarge over `budget` bytes, with what the caller can do; Internal when the reply
    is not strict JSON, which the SDK would lose (NaN, a lone surrogate, an object).
    """
    try:
        size = len(json.dumps(reply, allow_nan=False, ensure_ascii=False).encode())
    except (TypeError, ValueError, RecursionError):
        raise Internal("the reply is not JSON") from None
    if size <= budget:
        return size
    raise OutputTooLarge(
        f"the reply would have {size / MB:.1f} MB, at most {budget / MB:.1f} MB fit; ask for"
        " output_format jpeg or webp, fewer pictures or a smaller size, or have them uploaded"
        " (response_format url with a bucket or upload_url)"
    )


def _safe(message: str) -> str:
    text = str(log.redact(message)).encode(errors="replace").decode()
    text = ADDRESS.sub("[address]", PATH.sub("[path]", text))
    return text if len(text) <= LONGEST_MESSAGE else text[:LONGEST_MESSAGE] + "..."
