"""The error tree: every code of the contract, each with its type, drawn at the top of its file."""

import re

import pytest

from worker import errors
from worker.errors import BadRequest, Fault, Transient, WorkerError

CONTRACT = {
    "INVALID_INPUT",
    "UNSUPPORTED_TASK",
    "MODEL_NOT_SERVED",
    "IMAGE_FETCH_REFUSED",
    "IMAGE_FETCH_FAILED",
    "IMAGE_TOO_LARGE",
    "IMAGE_UNREADABLE",
    "OUTPUT_TOO_LARGE",
    "DELIVERY_FAILED",
    "DEADLINE_EXCEEDED",
    "CUDA_OUT_OF_MEMORY",
    "DEVICE_LOST",
    "BAD_PICTURE",
    "BAD_AUDIO",
    "WEIGHTS_UNAVAILABLE",
    "VOLUME_FULL",
    "LORA_NOT_APPLIED",
    "WORKER_NOT_READY",
    "INTERNAL",
}


def tree(kind: type[WorkerError]) -> list[type[WorkerError]]:
    return [kind, *(one for child in kind.__subclasses__() for one in tree(child))]


# Only those of errors.py: a test may define more.
KINDS = [kind for kind in tree(WorkerError) if kind.__module__ == errors.__name__]
# Kinds of a passing fault that do not pass, and who has to fix them.
FINAL: dict[type[WorkerError], str] = {
    errors.ImageUnavailable: "bad_request",
    errors.DeliveryRefused: "bad_request",
    errors.BucketUnusable: "internal",
}
RAISED = [kind for kind in KINDS if kind not in (WorkerError, BadRequest, Transient, Fault)]


def test_every_code_of_the_contract_is_some_error_and_no_other_is() -> None:
    assert {kind.code for kind in RAISED} == CONTRACT


@pytest.mark.parametrize("kind", RAISED, ids=lambda kind: kind.__name__)
def test_an_error_has_a_type_and_keeps_its_message(kind: type[WorkerError]) -> None:
    error = kind("why", details=[errors.Detail("width", "is wrong")])
    assert error.error_type in ("bad_request", "transient", "internal")
    assert str(error) == error.message == "why"
    assert error.details == (errors.Detail("width", "is wrong"),)
    assert kind.__doc__
    assert kind.__doc__ != WorkerError.__doc__


def test_what_the_caller_must_fix_is_never_retryable_and_what_passes_is() -> None:
    assert not any(kind.retryable for kind in RAISED if issubclass(kind, BadRequest))
    passing = [kind for kind in RAISED if issubclass(kind, Transient) and kind not in FINAL]
    assert all(kind.retryable and kind.error_type == "transient" for kind in passing)


@pytest.mark.parametrize("kind", FINAL, ids=lambda kind: kind.__name__)
def test_what_fails_again_whatever_its_code_says_so(kind: type[WorkerError]) -> None:
    """Clients that know the code alone still know it; those that read `retryable` stop."""
    assert not kind.retryable
    assert kind.error_type == FINAL[kind]
    assert "(final" in drawn_line(kind)


def drawn_line(kind: type[WorkerError]) -> str:
    """Return the line of the tree's drawing that shows an error."""
    lines = (errors.__doc__ or "").splitlines()
    return next(line for line in lines if f" {kind.__name__} " in line)


def test_only_a_lost_device_ends_the_process() -> None:
    assert [kind.code for kind in RAISED if kind.fatal] == ["DEVICE_LOST"]


def test_the_tree_is_drawn_as_it_is() -> None:
    """The docstring's drawing has every class, in order, at its depth, with its code."""
    drawn = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"([|` -]*)([A-Z]\w+)(?: {2,}([A-Z_]{4,})|\b)", line)
        if match and (match[1] or match[2] == "WorkerError"):
            drawn.append((len(match[1]) // 4, match[2], match[3]))

    def walk(kind: type[WorkerError], depth: int) -> list[tuple[int, str, str | None]]:
        rows: list[tuple[int, str, str | None]] = [
            (depth, kind.__name__, kind.code if kind in RAISED else None)
        ]
        for child in kind.__subclasses__():
            if child in KINDS:
                rows += walk(child, depth + 1)
        return rows

    assert drawn == walk(WorkerError, 0)


def test_the_drawing_marks_what_is_fatal_and_what_passes_though_it_is_a_fault() -> None:
    for kind in RAISED:
        passes = issubclass(kind, Fault) and kind.retryable
        assert ("(a retry may succeed)" in drawn_line(kind)) == passes
        assert ("(fatal)" in drawn_line(kind)) == kind.fatal
        assert ("(final" in drawn_line(kind)) == (kind in FINAL)
