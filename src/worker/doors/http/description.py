"""The door's routes as OpenAPI, with the fields that the worker itself reports."""

import re
from collections.abc import Mapping
from typing import Any, Final

from worker.openai.translate import EDITS, GENERATIONS, LISTING, SPEECH_ROUTE

REF: Final = {"$ref": "#/components/schemas/Input"}
FAILED: Final = {"$ref": "#/components/schemas/Error"}
BY_ID: Final = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
WRAPPED: Final = {
    "type": "object",
    "required": ["input"],
    "properties": {
        "input": REF,
        "policy": {"type": "object", "properties": {"executionTimeout": {"type": "integer"}}},
    },
}
# The routes that answer with a job's id, and the key that has it.
LINKED: Final = {"/run": "id", "/runsync": "id", "/generate_async": "job_id"}
# path -> method, what it does, the schema of its body
ROUTES: Final = (
    ("/run", "post", "Queue a job", WRAPPED),
    ("/runsync", "post", "Run a job and wait for it; text/event-stream for progress", WRAPPED),
    ("/status/{id}", "get", "Show a job; text/event-stream to follow it", None),
    ("/cancel/{id}", "post", "Stop a job", None),
    ("/generate", "post", "Make a picture and wait for it", REF),
    ("/generate_async", "post", "Queue a picture", REF),
    ("/result/{id}", "get", "Return what was queued", None),
    (GENERATIONS, "post", "OpenAI's generation of images", REF),
    (EDITS, "post", "OpenAI's edit of images; also multipart/form-data", REF),
    (SPEECH_ROUTE, "post", "OpenAI's speech", {"type": "object"}),
    (LISTING, "get", "OpenAI's list of models", None),
    (f"{LISTING}/{{id}}", "get", "One model", None),
    ("/health", "get", "Show how the worker is", None),
    ("/metrics", "get", "Counters for Prometheus", None),
)


def describe_api(capabilities: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document, by what op=capabilities reports."""
    paths: dict[str, dict[str, Any]] = {}
    has_speech = any("speech" in model["tasks"] for model in capabilities["models"])
    for path, method, summary, schema in ROUTES:
        if path != SPEECH_ROUTE or has_speech:
            paths.setdefault(path, {})[method] = _describe_route(path, summary, schema)
    return {
        "openapi": "3.1.0",
        "info": {"title": "worker", "version": capabilities["worker_version"]},
        "paths": paths,
        "components": {
            "schemas": {"Input": _describe_input(capabilities["input"]), "Error": _ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


_ERROR: Final = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "code", "param"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "code": {"type": "string"},
                "param": {"type": ["string", "null"]},
            },
        }
    },
}


def _describe_route(path: str, summary: str, schema: Any) -> dict[str, Any]:
    refused = {"description": "Refused", "content": {"application/json": {"schema": FAILED}}}
    found: dict[str, Any] = {
        "operationId": _name_operation(path),
        "summary": summary,
        "responses": {"200": {"description": "Done"}, "4XX": refused, "5XX": refused},
    }
    if path in LINKED:
        found["responses"]["200"]["links"] = {
            name: {"operationId": name, "parameters": {"id": f"$response.body#/{LINKED[path]}"}}
            for name in ("status_id", "cancel_id", "result_id")
        }
    if path == "/result/{id}":
        found["responses"]["202"] = {"description": "Not done yet"}
    if "{id}" in path:
        found["parameters"] = [BY_ID]
    if schema is not None:
        content = {"application/json": {"schema": schema}}
        found["requestBody"] = {"required": True, "content": content}
    return found


def _name_operation(path: str) -> str:
    """Return a path as a name: its words alone."""
    return "_".join(re.findall(r"[a-z0-9]+", path.removeprefix("/v1")))


def _describe_input(rows: Any) -> dict[str, Any]:
    """Return the schema of an input: every field and alias, each once, with all of its words."""
    properties: dict[str, Any] = {}
    for row in rows:
        text = f"{row['accepts']}. Default: {row['default']}"
        entry = {**row["schema"], "description": text}
        for name in (row["field"], *row["aliases"]):
            known = properties.setdefault(name, entry)
            if "enum" in known and "enum" in entry:
                words = dict.fromkeys((*known["enum"], *entry["enum"]))
                properties[name] = {**known, "enum": list(words)}
    return {"type": "object", "properties": properties, "additionalProperties": True}
