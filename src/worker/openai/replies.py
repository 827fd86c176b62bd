"""A job's answer -> OpenAI's replies, events, errors and list of models."""

from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any, Final

from worker.edge.reply import Failure
from worker.errors import UnsupportedTask

USAGE: Final = {
    "input_tokens": 0,
    "output_tokens": 0,
    "total_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
}
# Codes that OpenAI's clients know by another name.
CODES: Final = {"MODEL_NOT_SERVED": "model_not_found"}
ERROR_TYPES: Final = {"bad_request": "invalid_request_error"}


def format_pictures(output: Mapping[str, Any], created: int) -> dict[str, Any]:
    """Return OpenAI's reply for a job's output; `created` is in seconds of Unix time.

    What our reply has in addition is under `worker`. Raises UnsupportedTask if the task that was
    asked for, or is the only one here, makes something else.
    """
    entries = _find_pictures(output)
    return {
        "created": created,
        "data": [_rename_data(entry) for entry in entries],
        **_describe(entries[0]),
        "worker": describe_making(output),
    }


def list_events(
    name: str, output: Mapping[str, Any], created: int, sent: Container[int] = ()
) -> Iterator[dict[str, Any]]:
    """Yield the last event of each picture; `name` is how its type begins.

    Those whose index is in `sent` are left out. Raises as format_pictures.
    """
    for entry in _find_pictures(output):
        if entry["index"] not in sent:
            yield make_event(name, entry, created, describe_making(output))


def make_event(
    name: str, entry: Mapping[str, Any], created: int, making: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the last event of one picture; `making` says how it was made."""
    return {
        "type": f"{name}.completed",
        **_rename_data(entry),
        "created_at": created,
        "quality": "auto",
        **_describe(entry),
        "usage": USAGE,
        "worker": dict(making),
    }


def make_partial_event(
    name: str, entry: Mapping[str, Any], created: int, number: int, seed: int
) -> dict[str, Any]:
    """Return the event of one picture on the way to that of a seed, its `number` from 0."""
    return {
        "type": f"{name}.partial_image",
        "partial_image_index": number,
        **_rename_data(entry),
        "created_at": created,
        "quality": "auto",
        **_describe(entry),
        "worker": {"seed": seed},
    }


def _find_pictures(output: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    if "images" not in output:
        message = f"task: {output.get('task')} makes no pictures"
        raise UnsupportedTask(message, warnings=output.get("warnings", ()))
    found: Sequence[Mapping[str, Any]] = output["images"]
    return found


def describe_making(output: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a reply says about how its pieces were made."""
    facts = {key: value for key, value in output.items() if key != "images"}
    return {**facts, "seeds": [entry["seed"] for entry in output["images"]]}


def format_error(failure: Failure) -> dict[str, Any]:
    """Return OpenAI's form of a failure, with all of its details beside."""
    kind = ERROR_TYPES.get(failure.error_type, "server_error")
    param = failure.details[0].field if failure.details else None
    code = CODES.get(failure.code, failure.code.lower())
    if failure.code == "MODEL_NOT_SERVED":
        kind = "not_found_error"
    return make_error(failure.message, kind, code, param) | {
        "details": [{"field": d.field, "message": d.message} for d in failure.details],
        "retryable": failure.retryable,
        **({"warnings": list(failure.warnings)} if failure.warnings else {}),
    }


def make_error(message: str, kind: str, code: str, param: str | None = None) -> dict[str, Any]:
    """Return an error as OpenAI's clients read it."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def list_models(capabilities: Mapping[str, Any]) -> dict[str, Any]:
    """Return OpenAI's list of the models that op=capabilities reports."""
    return {"object": "list", "data": [_describe_model(row) for row in capabilities["models"]]}


def find_model(capabilities: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """Return one model of the list, None when none has that name."""
    for row in capabilities["models"]:
        if name.casefold() in (row["id"].casefold(), row["repository"].casefold()):
            return _describe_model(row)
    return None


def _describe_model(row: Mapping[str, Any]) -> dict[str, Any]:
    owner, _, _ = row["repository"].rpartition("/")
    return {"id": row["id"], "object": "model", "created": 0, "owned_by": owner or "worker"}


def _rename_data(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data of one picture under OpenAI's name for it."""
    if "base64" in entry:
        return {"b64_json": entry["base64"]}
    return {"url": entry.get("url", entry.get("data_url"))}


def _describe(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "background": "opaque",
        "output_format": str(entry["mime_type"]).rpartition("/")[2],
        "size": f"{entry['width']}x{entry['height']}",
    }
