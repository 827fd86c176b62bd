"""What the settings say about HTTP: whether it is served, where, and to whom."""

import os

import pytest
import structlog

from worker import entrance, settings
from worker.doors.http.door import Http
from worker.doors.runpod.loop import RunPod
from worker.errors import InvalidSettings

QUEUE = {"RUNPOD_WEBHOOK_GET_JOB": "https://platform.test/job-take/$ID"}
ENDPOINT = {"RUNPOD_ENDPOINT_ID": "e"}
POD = {"RUNPOD_POD_ID": "p", "API_KEYS": "a-key-of-sixteen"}


def refused(environ: dict[str, str]) -> list[tuple[str, str]]:
    with pytest.raises(InvalidSettings) as error:
        settings.read(environ)
    return [(detail.field, detail.message) for detail in error.value.details]


@pytest.mark.parametrize(
    ("environ", "http"),
    [
        ({}, False),
        ({"PORT": "80"}, True),
        ({"PORT_HEALTH": "80"}, True),
        ({"PORT": "80", **QUEUE}, False),
        ({"SERVE": "http"}, True),
        ({"SERVE": "HTTP", **QUEUE}, True),
        ({"SERVE": "queue", "PORT": "80"}, False),
        (QUEUE, False),
        (ENDPOINT, False),
    ],
    ids=str,
)
def test_the_door_is_http_where_that_is_said_or_a_port_is_set_without_a_queue(
    environ: dict[str, str], http: bool
) -> None:
    chosen = settings.read(environ)
    assert chosen.serves_http is http
    assert type(entrance.open_door(chosen)) is (Http if http else RunPod)


@pytest.mark.parametrize(
    ("environ", "is_said"),
    [
        ({"PORT": "80", **QUEUE}, True),
        ({"PORT": "80", "SERVE": "queue"}, False),
        ({"PORT": "80"}, False),
        (QUEUE, False),
    ],
    ids=str,
)
def test_a_port_that_nothing_listens_on_is_said_unless_that_was_chosen(
    environ: dict[str, str], is_said: bool
) -> None:
    chosen = settings.read(environ)
    with structlog.testing.capture_logs() as lines:
        entrance.open_door(chosen)
    assert any("PORT is not used" in line["event"] for line in lines) is is_said


@pytest.mark.parametrize(
    ("environ", "place"),
    [
        ({"SERVE": "http"}, ("127.0.0.1", 8000)),
        ({"SERVE": "http", "PORT": "9"}, ("127.0.0.1", 9)),
        ({"SERVE": "http", **ENDPOINT}, ("0.0.0.0", 80)),  # noqa: S104 - what is checked
        ({"SERVE": "http", **POD}, ("0.0.0.0", 80)),  # noqa: S104 - the same
        ({"SERVE": "http", **POD, "HOST": "::1", "PORT": "7"}, ("::1", 7)),
    ],
    ids=str,
)
def test_it_is_served_on_loopback_and_at_runpod_on_every_address(
    environ: dict[str, str], place: tuple[str, int]
) -> None:
    chosen = settings.read(environ)
    assert (chosen.http_host, chosen.http_port) == place


@pytest.mark.parametrize(
    ("environ", "platform", "balanced"),
    [
        ({"SERVE": "http"}, False, False),
        ({"SERVE": "http", **ENDPOINT}, True, True),
        ({"PORT": "80", **ENDPOINT}, True, True),
        (ENDPOINT, False, False),
        (QUEUE | ENDPOINT, True, False),
        ({"SERVE": "http", **POD}, False, False),
    ],
    ids=str,
)
def test_a_balanced_worker_is_one_of_an_endpoint_without_a_queue(
    environ: dict[str, str], platform: bool, balanced: bool
) -> None:
    chosen = settings.read(environ)
    assert (chosen.on_platform, chosen.is_load_balanced) == (platform, balanced)
    assert chosen.has_playground is not balanced
    assert settings.read({**environ, "PLAYGROUND": "1"}).has_playground


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("[::1]", True),
        ("_[::1]", False),
        ("LOCALHOST", True),
        ("192.168.0.1", False),
        ("::", False),
        ("localhost.example", False),
    ],
)
def test_this_machine_alone_is_loopback(host: str, loopback: bool) -> None:
    assert settings.read({"HOST": host}).is_loopback is loopback


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("API_KEYS", "too-short"),
        ("API_KEYS", "fifteen-letters"),
        ("API_KEYS", "a-key-of-sixteen, short"),
        ("API_KEYS", "a key of sixteen letters"),
        ("API_KEYS", "none, a-key-of-sixteen"),
        ("CORS_ORIGINS", "*"),
        ("CORS_ORIGINS", "example.com"),
        ("CORS_ORIGINS", "https://example.com/path"),
        ("CORS_ORIGINS", "https://a.example_"),
        ("HEALTH_CHECK_PATH", "ping"),
        ("HEALTH_CHECK_PATH", "/{x}"),
        ("PORT", "0"),
        ("PORT", "70000"),
        ("SERVE", "both"),
        ("HTTP_QUEUE", "-1"),
    ],
)
def test_a_wrong_value_is_named(variable: str, value: str) -> None:
    assert [field for field, _ in refused({variable: value})] == [variable]


def test_keys_are_read_without_blanks_and_none_means_that_there_is_none() -> None:
    keys = settings.read({"API_KEYS": " a-key-of-sixteen ,another-key-of-more"}).http_keys
    assert keys == ("a-key-of-sixteen", "another-key-of-more")
    assert settings.read({"API_KEYS": "none"}).http_keys == ()
    assert settings.read({"CORS_ORIGINS": "https://A.example/"}).cors_origins == (
        "https://a.example",
    )


def test_what_can_be_read_of_a_wrong_environment_still_opens_the_right_door(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The reason of a failed start must be told where callers are."""
    given = {"SERVE": "http", "PORT": "many", "HEALTH_CHECK_PATH": "/up", "HOST": "10.0.0.1"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    found = settings.read_platform()
    assert (found.serves_http, found.health_check_path) == (True, "/up")
    assert (found.http_host, found.http_port) == ("127.0.0.1", 8000), "no key: for nobody else"
    assert not settings.read_platform({"SERVE": "queue"}).serves_http


KEY = {"API_KEYS": "a-key-of-sixteen"}


@pytest.mark.parametrize(
    ("environ", "place"),
    [
        ({"SERVE": "http", **ENDPOINT}, (True, True, ("0.0.0.0", 80), ())),  # noqa: S104 - RunPod's
        ({"SERVE": "http", **POD}, (True, False, ("0.0.0.0", 80), ("a-key-of-sixteen",))),  # noqa: S104 - the same
        ({"PORT": "81"}, (True, False, ("127.0.0.1", 81), ())),
        ({"PORT_HEALTH": "82"}, (True, False, ("127.0.0.1", 8000), ())),
        (
            {"SERVE": "http", "HOST": "10.0.0.1", **KEY, "PORT": "many"},
            (True, False, ("10.0.0.1", 8000), ("a-key-of-sixteen",)),
        ),
        (QUEUE, (False, False, ("127.0.0.1", 8000), ())),
    ],
    ids=str,
)
def test_all_that_says_where_this_runs_is_read_of_a_wrong_environment(
    monkeypatch: pytest.MonkeyPatch,
    environ: dict[str, str],
    place: tuple[bool, bool, tuple[str, int], tuple[str, ...]],
) -> None:
    monkeypatch.setattr(os, "environ", {"MAX_PIXELS": "many", **environ})
    found = settings.read_platform()
    address = (found.http_host, found.http_port)
    assert (found.serves_http, found.is_load_balanced, address, found.http_keys) == place
    assert found.port_health == (82 if "PORT_HEALTH" in environ else None)


def test_a_caller_of_an_endpoint_reads_what_it_needs_and_listens_on_loopback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of the rest of the environment it takes nothing, whether that is right or wrong."""
    environ = {
        "RUNPOD_API_KEY": "rp_a-key",
        "RUNPOD_ENDPOINT_BASE_URL": "https://api.example/v2",
        "ALLOWED_HOSTS": "a.example",
        "PORT": "81",
        "LOG_LEVEL": "ERROR",
        "HOST": "0.0.0.0",  # noqa: S104 - what is not taken
        "MAX_BODY_BYTES": "1024",
        "MAX_PIXELS": "many",
        **QUEUE,
    }
    monkeypatch.setattr(os, "environ", environ)
    found = settings.read_caller()
    assert found.runpod_api_key is not None
    assert found.runpod_api_key.get_secret_value() == "rp_a-key"
    assert found.runpod_endpoint_base_url == "https://api.example/v2"
    assert (found.allowed_hosts, found.log_level) == (("a.example",), "ERROR")
    assert (found.serves_http, found.http_host, found.http_port) == (True, "127.0.0.1", 81)
    assert found.max_body_bytes == 10_000_000, "what RunPod's queue accepts"
    assert settings.read_caller(82).http_port == 82
