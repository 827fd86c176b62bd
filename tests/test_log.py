"""The log: one JSON line an event, with the job id, without secrets or pictures."""

import base64
import json
import logging
import random
import warnings
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from worker import log, settings

SECRET = "hf_quiteSecret"


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave structlog, logging and the known secrets as they were."""
    monkeypatch.setattr(log, "_secrets", set())
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    structlog.reset_defaults()
    logging.captureWarnings(capture=False)
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    captured = capsys.readouterr()
    assert captured.out == ""
    return [json.loads(line) for line in captured.err.splitlines()]


def test_an_event_is_one_json_line_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure()
    log.get().info("job done", steps=8, text="two\nlines")
    (line,) = lines(capsys)
    assert line.pop("timestamp").endswith("Z")
    assert line == {"event": "job done", "level": "info", "steps": 8, "text": "two\nlines"}


def test_events_of_a_job_carry_its_id_and_others_do_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log.configure()
    with structlog.contextvars.bound_contextvars(job_id="job-1"):
        log.get().info("started")
    log.get().info("idle")
    first, second = lines(capsys)
    assert first["job_id"] == "job-1"
    assert "job_id" not in second


def test_events_below_the_level_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("WARNING")
    log.get().info("no")
    log.get().warning("yes")
    assert [line["event"] for line in lines(capsys)] == ["yes"]


@pytest.mark.parametrize(
    "name",
    [
        *("hf_token", "Authorization", "accessSecret", "BUCKET_ACCESS_KEY_ID", "api_key"),
        *("access_key", "Password"),
    ],
)
def test_a_field_named_like_a_secret_is_hidden_at_any_depth(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    log.configure()
    log.get().info("x", **{name: SECRET}, deep=[{"more": {name: [SECRET]}}])
    assert SECRET not in json.dumps(lines(capsys))


def test_numbers_are_no_secrets(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure()
    log.get().info("x", tokens=1024, secret=None)
    (line,) = lines(capsys)
    assert (line["tokens"], line["secret"]) == (1024, None)


def test_a_known_secret_is_hidden_wherever_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure()
    log.hide(SECRET, None, "")
    log.get().info(f"got {SECRET}", url=f"https://x/?t={SECRET}", all=[SECRET, {"a": SECRET}])
    try:
        raise RuntimeError(SECRET)  # noqa: TRY301 - its traceback is what is looked at
    except RuntimeError:
        log.get().exception("failed")
    first, second = lines(capsys)
    assert SECRET not in json.dumps([first, second])
    assert "RuntimeError: [hidden]" in second["exception"]


def test_the_environments_secrets_are_known_as_soon_as_it_is_read(
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings.read({"HF_TOKEN": SECRET})
    log.configure()
    log.get().info("x", said=f"Bearer {SECRET}")
    assert SECRET not in json.dumps(lines(capsys))


def test_short_words_are_not_taken_for_secrets() -> None:
    log.hide("a", "cat")
    assert log.redact("a cat") == "a cat"


def test_a_picture_never_gets_into_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure()
    picture = base64.b64encode(random.Random(0).randbytes(100_000)).decode()
    log.get().info("x", images=[{"base64": picture}])
    (line,) = lines(capsys)
    assert len(json.dumps(line)) < 21_000
    assert line["images"][0]["base64"].endswith(f"({len(picture)} characters)")


def test_what_libraries_log_or_warn_of_comes_the_same_way(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log.configure()
    log.hide(SECRET)
    logging.getLogger("some.library").warning("careful with %s", SECRET)
    logging.getLogger("some.library").info("chatter")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    (line,) = lines(capsys)
    assert line["event"] == "careful with [hidden]"
    assert line["logger"] == "some.library"
    assert line["level"] == "warning"


@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_what_has_no_secret_is_logged_as_it_is(value: Any) -> None:
    plain = repr(value).lower()
    if not any(word in plain for word in log.SECRET_WORDS):
        assert repr(log.redact(value)) == repr(value)


def test_a_librarys_logger_keeps_to_our_handler_and_any_other_is_its_owners() -> None:
    """Libraries attach handlers, levels and walls at import, before or after `configure`."""
    logging.setLoggerClass(logging.Logger)
    early, second, foreign = (
        logging.getLogger(name) for name in ("torch.made_early", "torch.second", "other.made_early")
    )
    for logger in (early, second, foreign):
        for kind in (logging.StreamHandler, logging.NullHandler, logging.StreamHandler):
            logger.addHandler(kind())
        logger.propagate = False
    log.configure()
    for logger in (early, second):
        assert [type(handler) for handler in logger.handlers] == [logging.NullHandler]
        assert logger.propagate
    assert len(foreign.handlers) == 3
    assert not foreign.propagate
    late = logging.getLogger("diffusers.made_late")
    late.addHandler(logging.StreamHandler())
    late.propagate = False
    switched = logging.getLogger("torch.made_late.__artifact")
    other = logging.getLogger("some.application")
    for logger in (switched, other):
        logger.addHandler(logging.StreamHandler())
        logger.propagate = False
        logger.setLevel(logging.DEBUG)
    assert late.handlers == []
    assert late.propagate
    for logger in (switched, other):
        assert len(logger.handlers) == 1
        assert not logger.propagate
        assert logger.level == logging.DEBUG
    logging.getLogger("transformers").setLevel(logging.DEBUG)
    logging.getLogger("torch").setLevel(logging.INFO)
    assert logging.getLogger("transformers").level == logging.ERROR
    assert logging.getLogger("torch").level == logging.INFO
    logging.getLogger("torch").setLevel(logging.WARNING)


def test_six_characters_may_be_a_secret() -> None:
    log.hide("12345", "abcdef")
    assert log.redact("12345 abcdef") == "12345 [hidden]"


@pytest.mark.parametrize(
    "secret",
    [
        *("a b/c+d=", 'quo"ted', "back\\slash", "tab\there", "it's \\ x"),
        *("""it's "quoted" twice""", "a bell \x07"),
    ],
)
def test_a_secret_is_hidden_however_it_is_written(secret: str) -> None:
    log.hide(secret)
    for written in (secret, quote(secret, safe=""), json.dumps(secret)[1:-1], repr(secret)[1:-1]):
        assert log.redact(f"<{written}>") == "<[hidden]>"


def test_the_longer_of_two_secrets_is_hidden_completely() -> None:
    log.hide("secret", "secret-and-more", "a-secret")
    assert log.redact("secret-and-more a-secret") == "[hidden] [hidden]"


def test_a_text_is_cut_after_20000_characters() -> None:
    assert log.redact("a" * 20_000) == "a" * 20_000
    assert log.redact("a" * 20_001) == "a" * 20_000 + "... (20001 characters)"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ({"token": "x", "n": 1.5}, {"token": "[hidden]", "n": 1.5}),
        ({"Password": ""}, {"Password": ""}),
        ({"secret": 7, "api_key": 1.5}, {"secret": 7, "api_key": 1.5}),
        ({"secret": ["a"]}, {"secret": "[hidden]"}),
        ({"a": ("b", 1), 5: {"c"}}, {"a": ["b", 1], "5": ["c"]}),
        (frozenset({1}), [1]),
        (b"bytes", "b'bytes'"),
        (None, None),
        (True, True),
    ],
)
def test_values_keep_their_shape(value: object, shown: object) -> None:
    assert log.redact(value) == shown


@pytest.mark.parametrize("level", ["DEBUG", "INFO", "WARNING", "ERROR"])
def test_a_level_lets_through_itself_and_what_is_above(
    level: str, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["debug", "info", "warning", "error"]
    log.configure(level)
    for name in names:
        getattr(log.get(), name)(name)
        getattr(logging.getLogger("some.library"), name)(name)
    shown = lines(capsys)
    ours = [line["event"] for line in shown if "logger" not in line]
    theirs = [line["event"] for line in shown if line.get("logger") == "some.library"]
    assert ours == names[names.index(level.lower()) :]
    assert theirs == names[max(2, names.index(level.lower())) :]


@pytest.mark.parametrize("name", ["bitsandbytes", "diffusers", "transformers", "py.warnings"])
def test_chatty_libraries_are_heard_from_errors_on(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    log.configure()
    logger = logging.getLogger(name)
    logger.warning("chatter")
    logger.error("trouble")
    assert [line["event"] for line in lines(capsys) if line.get("logger") == name] == ["trouble"]


@pytest.mark.parametrize("name", ["diffusers", "huggingface_hub", "torch", "transformers"])
def test_the_libraries_that_bring_a_handler_write_through_ours(name: str) -> None:
    log.configure()
    for logger in (logging.getLogger(name), logging.getLogger(f"{name}.part")):
        before = list(logger.handlers)
        logger.addHandler(logging.StreamHandler())
        logger.propagate = False
        assert logger.handlers == before
        assert logger.propagate
    other = logging.getLogger(f"{name}ish.part")
    other.propagate = False
    assert not other.propagate


def test_a_handler_of_another_kind_may_stay() -> None:
    log.configure()
    logger = logging.getLogger("torch.with_a_handler")
    mine = logging.NullHandler()
    logger.addHandler(mine)
    assert mine in logger.handlers


def test_what_a_job_logs_through_a_library_carries_its_id(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log.configure()
    with structlog.contextvars.bound_contextvars(job_id="job-1"):
        logging.getLogger("some.library").warning("careful")
    (line,) = lines(capsys)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "careful",
        "job_id": "job-1",
        "level": "warning",
        "logger": "some.library",
    }


def test_configuring_twice_writes_once(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure()
    log.configure()
    logging.getLogger("some.library").warning("once")
    log.get().info("once")
    assert [line["event"] for line in lines(capsys)] == ["once", "once"]
