"""Why a request has no reply, in each of HTTP's statuses, and what its client does then."""

import json
from http import HTTPStatus
from typing import Any

import pytest
from aiohttp import web

from worker.doors.http.meters import Meters
from worker.doors.http.responses import Refused, encode_json, find_status, make_failed, make_json
from worker.edge.reply import Failure
from worker.errors import ErrorType


def failure(code: str, error_type: ErrorType, *, retryable: bool = False) -> Failure:
    return Failure(code, error_type, retryable, "why", (), ())


def read(response: web.Response) -> Any:
    assert isinstance(response.body, bytes)
    assert response.content_type == "application/json"
    return json.loads(response.body)


@pytest.mark.parametrize(
    ("status", "kind", "stays"),
    [
        (400, "invalid_request_error", False),
        (401, "authentication_error", True),
        (403, "invalid_request_error", True),
        (404, "not_found_error", True),
        (405, "invalid_request_error", True),
        (408, "invalid_request_error", False),
        (409, "invalid_request_error", True),
        (413, "invalid_request_error", False),
        (415, "invalid_request_error", False),
        (421, "invalid_request_error", True),
        (429, "rate_limit_error", True),
        (499, "invalid_request_error", True),
        (500, "server_error", True),
        (502, "server_error", True),
        (503, "server_error", True),
    ],
)
def test_a_refusal_is_openais_and_ends_the_connection_where_a_body_may_be_left(
    status: int, kind: str, stays: bool
) -> None:
    response = Refused(status, "a_code", "why", param="it", headers={"X-A": "b"}).make_response()
    error = {"message": "why", "type": kind, "param": "it", "code": "a_code"}
    assert (response.status, read(response)) == (status, {"error": error})
    assert response.headers["x-should-retry"] == "false"
    assert response.headers["X-A"] == "b"
    assert "Retry-After" not in response.headers
    assert response.keep_alive is (None if stays else False)
    assert str(Refused(status, "a_code", "why")) == "why"
    later = Refused(status, "a_code", "why", retry_after=0).make_response()
    assert (later.headers["x-should-retry"], later.headers["Retry-After"]) == ("true", "0")
    assert read(later)["error"]["param"] is None


@pytest.mark.parametrize(
    ("code", "error_type", "status"),
    [
        ("INVALID_INPUT", "bad_request", 400),
        ("BAD_PICTURE", "internal", 500),
        ("MODEL_NOT_SERVED", "bad_request", 404),
        ("IMAGE_TOO_LARGE", "bad_request", 413),
        ("OUTPUT_TOO_LARGE", "bad_request", 413),
        ("DELIVERY_FAILED", "internal", 502),
        ("IMAGE_FETCH_FAILED", "internal", 502),
        ("IMAGE_FETCH_FAILED", "bad_request", 400),
        ("DEADLINE_EXCEEDED", "internal", 504),
        ("WORKER_NOT_READY", "internal", 503),
        ("CUDA_OUT_OF_MEMORY", "internal", 503),
        ("DEVICE_LOST", "internal", 503),
    ],
)
@pytest.mark.parametrize("retryable", [True, False])
def test_a_failure_has_the_status_of_its_code_and_says_whether_to_try_again(
    code: str, error_type: ErrorType, status: int, retryable: bool
) -> None:
    given = failure(code, error_type, retryable=retryable)
    assert find_status(given) == status
    response = make_failed(given, {"x-request-id": "7"})
    assert (response.status, read(response)["error"]["message"]) == (status, "why")
    assert response.headers["x-should-retry"] == ("true" if retryable else "false")
    assert response.headers["x-request-id"] == "7"
    waits = status == HTTPStatus.SERVICE_UNAVAILABLE and retryable
    assert response.headers.get("Retry-After") == ("5" if waits else None)


def test_json_is_utf8_without_what_no_json_has() -> None:
    assert encode_json({"a": "\u732b", "b": "\ud800"}) == '{"a": "\u732b", "b": "?"}'.encode()
    with pytest.raises(ValueError, match="JSON"):
        encode_json(float("nan"))
    response = make_json([1])
    assert (response.status, read(response)) == (200, [1])


def test_metrics_are_text_that_prometheus_reads() -> None:
    meters = Meters()
    took = {"denoise": 250, "total": 300_000}
    meters.note("completed", {"timings_ms": took, "peak_vram_mb": 3})
    meters.note("completed", {"timings_ms": took, "peak_vram_mb": 2, "batch": {"size": 4}})
    meters.note("completed", {"op": "without timings"})
    meters.note("failed", failure("B", "internal"))
    meters.note("failed", failure("A", "internal"))
    meters.note("failed", failure("A", "internal"))
    meters.note("refused")
    lines = meters.write(waiting=1, inside=2, tasks=3, is_ready=True).split("\n")
    assert lines[-1] == ""
    names = ["ready", "jobs_waiting", "jobs_in_flight", "tasks", "jobs_total", "failures_total"]
    names += ["phase_seconds", "batch_size_total", "device_memory_peak_bytes"]
    kinds = ["gauge"] * 4 + ["counter"] * 2 + ["histogram", "counter", "gauge"]
    assert [line for line in lines if line.startswith("# TYPE")] == [
        f"# TYPE worker_{name} {kind}" for name, kind in zip(names, kinds, strict=True)
    ]
    helps = [line.split(" ", 3) for line in lines if line.startswith("# HELP")]
    assert [name for _, _, name, _ in helps] == [f"worker_{name}" for name in names]
    values = [line for line in lines if line and not line.startswith("#")]
    bounds = ["0.1", "0.25", "0.5", "1", "2.5", "5", "10", "30", "60", "120", "300", "+Inf"]
    assert values == [
        "worker_ready 1",
        "worker_jobs_waiting 1",
        "worker_jobs_in_flight 2",
        "worker_tasks 3",
        'worker_jobs_total{end="completed"} 3',
        'worker_jobs_total{end="failed"} 3',
        'worker_jobs_total{end="cancelled"} 0',
        'worker_jobs_total{end="refused"} 1',
        'worker_failures_total{code="A"} 2',
        'worker_failures_total{code="B"} 1',
        *(
            f'worker_phase_seconds_bucket{{phase="denoise",le="{bound}"}} {2 if place else 0}'
            for place, bound in enumerate(bounds)
        ),
        'worker_phase_seconds_sum{phase="denoise"} 0.5',
        'worker_phase_seconds_count{phase="denoise"} 2',
        *(
            f'worker_phase_seconds_bucket{{phase="total",le="{bound}"}} {2 if place > 9 else 0}'
            for place, bound in enumerate(bounds)
        ),
        'worker_phase_seconds_sum{phase="total"} 600',
        'worker_phase_seconds_count{phase="total"} 2',
        'worker_batch_size_total{size="1"} 1',
        'worker_batch_size_total{size="4"} 1',
        "worker_device_memory_peak_bytes 3145728",
    ]
    fresh = Meters().write(waiting=0, inside=0, tasks=0, is_ready=False)
    assert "worker_ready 0\n" in fresh
    assert fresh.endswith("worker_device_memory_peak_bytes 0\n")
