"""Replies hold the contract's keys, fit RunPod's budget and leak nothing."""

import importlib.metadata
import json
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as chosen
from hypothesis import strategies as st
from packaging.version import Version

from worker import log, settings, versions
from worker.edge import reply as replies
from worker.edge.reply import make_success, measure, read_worker_version
from worker.errors import (
    Detail,
    DeviceLost,
    ImageFetchFailed,
    Internal,
    InvalidInput,
    OutputTooLarge,
    WorkerError,
)
from worker.tasks.picture_tasks import TEXT_TO_IMAGE
from worker.tasks.request import Request, parse
from worlds.published import EDIT, IMAGE

# Hypothesis leaves surrogates out of the characters that it takes by default.
ANY = st.characters() | st.characters(categories=["Cs"])


def failure(error: WorkerError, warnings: Iterable[str] = ()) -> dict[str, Any]:
    """Return a failure as RunPod's callers get it."""
    return replies.format_answer(replies.make_failure(error, warnings))


def a_request(**given: Any) -> Request:
    request = parse({"prompt": "a cat", "seed": 42, **given}, (IMAGE, EDIT), settings.read({}))
    assert isinstance(request, Request)
    return request


def an_image(carrier: str = "base64", value: str = "aGVsbG8=") -> dict[str, Any]:
    return {carrier: value, "mime_type": "image/png", "width": 64, "height": 64, "seed": 42}


def a_success(
    *images: dict[str, Any], request: Request | None = None, **more: Any
) -> dict[str, Any]:
    request, compat = request or a_request(), more.pop("compat", None)
    spent, warnings = more.pop("timings_ms", {}), more.pop("warnings", ())
    (wish,) = request.make_wishes(request.asked.draft)
    output = make_success(
        request.task.key,
        images or (an_image(),),
        wish,
        request.model,
        timings_ms=replies.sum_timings(spent, request.task.timings),
        warnings=(*request.warnings, *warnings),
        **{"peak_vram_mb": 0, "adjusted": {}, **more},
    )
    if compat is not None:
        replies.serve_old_callers(output, request.task.key, compat)
    return output


def test_a_success_has_exactly_the_contracts_keys() -> None:
    reply = a_success(
        timings_ms={"text": 1.6, "reference": 2.0, "denoise": 3.4, "total": 9},
        adjusted={"width": (1023, 1008)},
        warnings=("the prompt was cut",),
        peak_vram_mb=7,
    )
    assert reply == {
        "images": [{"index": 0, **an_image()}],
        "prompt": "a cat",
        "negative_prompt": None,
        "task": "text-to-image",
        "seed": 42,
        "num_inference_steps": 8,
        "true_cfg_scale": 1.0,
        "lightning_enabled": True,
        "model": {
            "id": "qwen-image-2512",
            "revision": "0123456789abcdef0123456789abcdef01234567",
            "precision": "4bit",
        },
        "adjusted": {"width": [1023, 1008]},
        "warnings": ["the prompt was cut"],
        "timings_ms": {
            "fetch": 0,
            "text": 4,
            "denoise": 3,
            "decode": 0,
            "encode": 0,
            "deliver": 0,
            "total": 9,
        },
        "peak_vram_mb": 7,
        "worker_version": read_worker_version(),
    }


def test_no_key_of_a_success_is_one_that_the_sdk_takes_away() -> None:
    assert {"error", "refresh_worker"}.isdisjoint(a_success())


def test_the_requests_warnings_come_first_and_each_once() -> None:
    reply = a_success(request=a_request(widht=5), warnings=("cut", "cut"))
    assert reply["warnings"] == ["widht: is not a known field; did you mean width?", "cut"]


def test_the_version_is_that_of_the_installed_package_and_of_its_image() -> None:
    build = versions.find_build(Version(importlib.metadata.version("torch")))
    assert build is not None
    version = Version(read_worker_version())
    assert (version.public, version.local) == (importlib.metadata.version("worker"), build.name)


@pytest.mark.parametrize("key", ["output_image_base64", "image", "image_base64", "image_url"])
@pytest.mark.parametrize("carrier", ["base64", "data_url", "url"])
def test_old_callers_find_the_first_picture_at_their_key_and_nowhere_else(
    key: str, carrier: str
) -> None:
    second = an_image(carrier, "second")
    reply = a_success(an_image(carrier, "first"), second, compat=key)
    is_bare = (key, carrier) == ("image_url", "base64")
    assert reply[key] == ("data:image/png;base64,first" if is_bare else "first")
    assert json.dumps(reply).count('first"') == 1
    assert carrier not in reply["images"][0]
    assert reply["images"][0]["seed"] == 42
    assert reply["images"][1] == {"index": 1, **second}


def test_a_failure_has_exactly_the_contracts_keys() -> None:
    message = "must be at least 64 (got 3)"
    error = InvalidInput(f"width: {message}", details=[Detail("width", message)])
    assert failure(error) == {
        "error": "INVALID_INPUT: width: must be at least 64 (got 3)",
        "error_code": "INVALID_INPUT",
        "error_type": "bad_request",
        "retryable": False,
        "details": [{"field": "width", "message": "must be at least 64 (got 3)"}],
    }
    assert failure(DeviceLost("gone"))["retryable"] is True


@pytest.fixture
def hidden() -> Iterator[str]:
    before = set(log._secrets)
    log.hide("hf_aSecretToken")
    yield "hf_aSecretToken"
    log._secrets.clear()
    log._secrets.update(before)


@pytest.mark.parametrize(
    "leak",
    [
        "/runpod-volume/models/x",
        "/etc/passwd",
        "/root/.cache/huggingface/token",
        "169.254.169.254",
        "10.0.0.7:8080",
        "::1",
        "fe80::1",
        "[fd00::12]",
        "hf_aSecretToken",
    ],
)
def test_a_failure_hides_what_is_not_the_callers_to_know(leak: str, hidden: str) -> None:
    assert hidden
    for message in (leak, f"cannot open {leak}: no", f"'{leak}'", f"at ({leak})"):
        details = [Detail("images[0]", message), Detail(message, "is wrong")]
        error = ImageFetchFailed(message, details=details, warnings=[message])
        assert leak not in json.dumps(failure(error, [f"{message}!"]))


@pytest.mark.parametrize(
    "message",
    [
        "size: must have at most 4194304 pixels (got 10230x6400 = 65472000)",
        'must be "WxH", "W*H", "auto" or "input" (got \'3\')',
        "must be an https URL, a data URI, base64, or an object",
        "https://example.com/pictures/of/cats.png answered 404",
        "add one of qwen-image to MODEL; see Qwen/Qwen-Image",
        "16:9, 4:3 and 2:3",
        "at 12:30:05",
    ],
)
def test_a_failure_keeps_what_helps_the_caller(message: str) -> None:
    output = failure(InvalidInput(message), [message])
    assert output["error"] == f"INVALID_INPUT: {message}"
    assert output["warnings"] == [message]


def test_the_warnings_of_a_failure_are_reported_with_its_details_each_once() -> None:
    error = InvalidInput("why", details=[Detail("x", "why")], warnings=["promt: ?", "b"])
    output = failure(error, ["a", "b", "a"])
    assert output["warnings"] == ["a", "b", "promt: ?"]
    assert output["details"] == [{"field": "x", "message": "why"}]
    assert failure(InvalidInput("why"), ["a"])["warnings"] == ["a"]
    assert failure(InvalidInput("why", warnings=["a"]))["warnings"] == ["a"]
    assert "warnings" not in failure(InvalidInput("why"), [])


# Text with what is no character: alone, between others, in pairs the wrong way round, and where a
# long text is cut.
BROKEN = [
    "\ud800",
    "a\udfffb",
    "\udc00\ud800",
    "\ud83d\ude00",
    "x" * 1999 + "\ud800y",
    "\udcff" * 3000,
]


@pytest.mark.parametrize("text", BROKEN, ids=range(len(BROKEN)))
@pytest.mark.parametrize("place", ["message", "field", "detail", "warning", "the error's warning"])
def test_a_lone_surrogate_anywhere_in_an_error_can_be_sent(place: str, text: str) -> None:
    def at(name: str) -> str:
        return text if name == place else "plain"

    error = Internal(
        at("message"),
        details=[Detail(at("field"), at("detail"))],
        warnings=[at("the error's warning")],
    )
    output = failure(error, [at("warning")])
    size = measure(output, 1_000_000)
    sent = json.dumps(output, ensure_ascii=False)
    assert size == len(sent.encode())
    assert "?" in sent
    assert sent.count("?") <= 2000


@chosen(deadline=None)
@given(
    message=st.text(alphabet=ANY, min_size=1),
    field=st.text(alphabet=ANY),
    warning=st.text(alphabet=ANY, min_size=1),
)
def test_a_failure_can_always_be_sent(message: str, field: str, warning: str) -> None:
    long, warned = (message * 2001)[:2500], (warning * 2001)[:2500]
    error = Internal(long, details=[Detail(field, long)] * 60)
    output = failure(error, [f"{n}{warned}" for n in range(60)])
    assert len(output["details"]) == len(output["warnings"]) == 50
    longest = len("INTERNAL: ") + 2000 + len("...")
    texts = [output["error"], *output["warnings"], *(d["message"] for d in output["details"])]
    assert all(0 < len(text) <= longest for text in texts)
    most = (1 + 2 * 50) * longest * 6  # a control character takes 6 bytes of JSON
    assert measure(output, 2 * most) < most + 50 * len(field) * 6 + 10_000


def test_a_reply_is_measured_as_the_sdk_sends_it() -> None:
    reply = a_success(request=a_request(prompt="\u732b"))
    size = len(json.dumps(reply, ensure_ascii=False).encode())
    assert measure(reply, size) == size
    with pytest.raises(OutputTooLarge, match=r"jpeg or webp.*fewer pictures.*upload_url"):
        measure(reply, size - 1, TEXT_TO_IMAGE.advice)


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), b"bytes", {1, 2}, object(), "\ud800", {(1, 2): 3}]
)
def test_what_the_sdk_would_lose_is_an_internal_error(value: object) -> None:
    with pytest.raises(Internal):
        measure({"x": value}, 1000)


def test_every_error_becomes_a_reply_that_can_be_sent() -> None:
    def leaves(kind: type[WorkerError]) -> Iterator[type[WorkerError]]:
        for child in kind.__subclasses__():
            yield child
            yield from leaves(child)

    for kind in leaves(WorkerError):
        if "code" in vars(kind):
            reply = failure(kind("why"))
            assert reply["error"] == f"{kind.code}: why"
            assert measure(reply, 1000)


def test_every_phase_of_a_job_is_counted_in_one_of_the_reply() -> None:
    given = {
        name: 2**place
        for place, name in enumerate(
            ("fetch", "text", "reference", "denoise", "decode", "encode", "deliver", "total")
        )
    }
    assert a_success(timings_ms=given)["timings_ms"] == {
        "fetch": 1,
        "text": 6,
        "denoise": 8,
        "decode": 16,
        "encode": 32,
        "deliver": 64,
        "total": 128,
    }


def test_fetching_a_lora_counts_as_fetching_and_what_was_not_done_as_0() -> None:
    spent = {"loras": 2.4, "fetch": 1.3, "unheard-of": 9.0}
    assert replies.sum_timings(spent, {"make": "made"}) == {
        "fetch": 4,
        "made": 0,
        "encode": 0,
        "deliver": 0,
        "total": 0,
    }


@pytest.mark.parametrize(
    ("output", "found"),
    [
        ({"images": [{"base64": "x", "url": "y"}]}, ("images", "base64")),
        ({"task": "x", "warnings": [], "images": [{"url": "x"}]}, ("images", "url")),
        ({"warnings": ["url"], "model": {}, "audio": {"data_url": "x"}}, ("audio", "data_url")),
        ({"images": [{"url": "x"}, {"base64": "y"}]}, ("images", "url")),
        ({"images": [], "task": "url", "model": {"id": "base64"}}, None),
        ({}, None),
    ],
    ids=str,
)
def test_the_pieces_of_an_output_are_found_by_what_carries_them(output: Any, found: Any) -> None:
    assert replies.find_carrier(output) == found


def test_a_file_says_what_makes_it_again() -> None:
    request = a_request()
    (wish,) = request.make_wishes(request.asked.draft)
    text = replies.describe_output(wish, request.model)
    assert text["prompt"] == "a cat"
    assert list(text.items())[-5:] == [
        ("task", "text-to-image"),
        ("model", "qwen-image-2512"),
        ("revision", "0123456789abcdef0123456789abcdef01234567"),
        ("precision", "4bit"),
        ("software", f"worker {read_worker_version()}"),
    ]


def test_what_is_hidden_leaves_a_word_in_its_place() -> None:
    message = "cannot open /etc/passwd for 10.0.0.7:80"
    assert failure(Internal(message))["error"] == "INTERNAL: cannot open [path] for [address]"


def test_a_message_is_cut_after_2000_characters() -> None:
    assert failure(Internal("m" * 2000))["error"] == f"INTERNAL: {'m' * 2000}"
    assert failure(Internal("m" * 2001))["error"] == f"INTERNAL: {'m' * 2000}..."


def test_a_reply_that_does_not_fit_says_by_how_much() -> None:
    with pytest.raises(OutputTooLarge, match=r"2\.5 MB, at most 1\.2 MB fit; ask for less,"):
        measure({"x": "y" * 2_500_000}, 1_200_000)
