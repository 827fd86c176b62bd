"""A hub's addresses: the token goes to that origin alone, redirects are followed within bounds."""

import io
import socket
from collections.abc import Iterator

import pytest
import requests

from worker import settings
from worker.errors import WeightsUnavailable
from worker.weights import hub as client
from worker.weights.retry import AttemptFailed, Missing, Patience
from worlds.hub import Fault, Hub, running

PATIENCE = Patience(connect_s=30, stall_s=30)
FILES = {"a b/ü#1.json": b"{}", "weights.safetensors": b"x" * 100}


@pytest.fixture
def world() -> Iterator[Hub]:
    with running() as given:
        given.add("org/name", FILES)
        yield given


@pytest.fixture
def hub(world: Hub) -> client.Hub:
    return client.Hub(world.endpoint, "hf_secret")


def url(world: Hub, hub: client.Hub, path: str) -> str:
    return hub.make_address("org/name", world.branches["org/name"]["main"], path)


@pytest.mark.parametrize(
    ("endpoint", "asked", "gets"),
    [
        ("https://hub.example", "https://hub.example/x", True),
        ("https://hub.example", "https://hub.example:443/x", True),
        ("https://hub.example:443", "https://hub.example/x", True),
        ("http://hub.example:80", "http://hub.example/x", True),
        ("http://hub.example", "http://hub.example:80/x", True),
        ("https://hub.example", "https://HUB.example/x", True),
        ("https://hub.example:8443", "https://hub.example:8443/x", True),
        ("https://hub.example", "https://hub.example:444/x", False),
        ("https://hub.example", "https://hub.example:80/x", False),
        ("http://hub.example", "http://hub.example:443/x", False),
        ("https://hub.example", "http://hub.example/x", False),
        ("http://hub.example", "https://hub.example/x", False),
        ("https://hub.example", "https://cdn.hub.example/x", False),
        ("https://hub.example", "https://hub.example.evil.example/x", False),
    ],
)
def test_the_token_goes_to_the_hubs_own_origin_alone(endpoint: str, asked: str, gets: bool) -> None:
    headers = client.Hub(endpoint, "hf_secret").make_headers(asked)
    assert headers.get("Authorization") == ("Bearer hf_secret" if gets else None)
    assert headers["Accept-Encoding"] == "identity"


def test_without_a_token_nothing_is_sent() -> None:
    assert "Authorization" not in client.Hub("https://a.example", None).make_headers(
        "https://a.example"
    )


def test_the_hub_is_the_operators_or_the_public_one() -> None:
    assert client.Hub.from_settings(settings.read({})) == client.Hub("https://huggingface.co", None)
    variables = {"HF_ENDPOINT": "https://mirror.example/hf_/", "HF_TOKEN": "hf_secret"}
    made = client.Hub.from_settings(settings.read(variables))
    assert made == client.Hub("https://mirror.example/hf_", "hf_secret")
    assert made.make_address("o/n", "c", "a b/ü.json").endswith(
        "/hf_/o/n/resolve/c/a%20b/%C3%BC.json"
    )


@pytest.mark.parametrize("path", FILES)
def test_an_address_leads_to_its_file(world: Hub, hub: client.Hub, path: str) -> None:
    response = hub.open(url(world, hub, path), PATIENCE, what=path)
    assert response.content == FILES[path]


def test_a_span_and_a_method_are_asked_for(world: Hub, hub: client.Hub) -> None:
    at = url(world, hub, "weights.safetensors")
    response = hub.open(at, PATIENCE, what="x", span="bytes=3-7", accept=(206,))
    assert (response.status_code, len(response.content)) == (206, 5)
    assert hub.open(at, PATIENCE, what="x", method="HEAD").content == b""
    assert world.requests()[-1].method == "HEAD"


@pytest.mark.parametrize("location", ["/elsewhere", "http://127.0.0.1:1/x"])
@pytest.mark.parametrize("status", [299, 400, 404])
def test_only_a_redirect_is_followed(
    world: Hub, hub: client.Hub, status: int, location: str
) -> None:
    """A Location beside any other status is no place to go."""
    world.misbehave(
        Fault("status", "bytes", times=None, status=status, headers={"Location": location})
    )
    with pytest.raises((AttemptFailed, WeightsUnavailable), match=str(status)):
        hub.open(url(world, hub, "a b/ü#1.json"), PATIENCE, what="a file")
    assert len(world.requests()) == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_every_kind_of_redirect_is_followed(world: Hub, hub: client.Hub, status: int) -> None:
    target = url(world, hub, "weights.safetensors")
    world.misbehave(Fault("status", "bytes", "a b/*", status=status, headers={"Location": target}))
    response = hub.open(url(world, hub, "a b/ü#1.json"), PATIENCE, what="x")
    assert response.content == FILES["weights.safetensors"]


def test_a_redirect_without_a_location_is_no_answer(world: Hub, hub: client.Hub) -> None:
    world.misbehave(Fault("status", "bytes", times=None, status=302))
    with pytest.raises(AttemptFailed, match="302"):
        hub.open(url(world, hub, "a b/ü#1.json"), PATIENCE, what="x")


@pytest.mark.parametrize(("times", "arrives"), [(5, True), (6, False)])
def test_five_redirects_are_followed_and_no_more(
    world: Hub, hub: client.Hub, times: int, arrives: bool
) -> None:
    world.misbehave(Fault("redirect-loop", "bytes", times=times))
    at = url(world, hub, "a b/ü#1.json")
    if arrives:
        assert hub.open(at, PATIENCE, what="x").content == b"{}"
    else:
        with pytest.raises(AttemptFailed, match="more than 5 times"):
            hub.open(at, PATIENCE, what="x")
    assert len(world.requests()) == 6


@pytest.mark.parametrize("location", ["ftp://a.example/x", "file:///etc/passwd", "data:,x"])
def test_a_redirect_to_what_is_no_web_address_is_not_followed(
    world: Hub, hub: client.Hub, location: str
) -> None:
    world.misbehave(Fault("status", "bytes", status=302, headers={"Location": location}))
    with pytest.raises((AttemptFailed, WeightsUnavailable), match="web address"):
        hub.open(url(world, hub, "a b/ü#1.json"), PATIENCE, what="x")


class Elsewhere(requests.adapters.BaseAdapter):
    """The web as one redirect sees it: from its start to a place, where all ends with 200."""

    def __init__(self, location: str) -> None:
        super().__init__()
        self.location = location
        self.asked: list[str] = []

    def send(self, request: requests.PreparedRequest, **_: object) -> requests.Response:  # type: ignore[override]  # the rest is the connection's
        """Answer the first request with the redirect."""
        self.asked.append(str(request.url))
        response = requests.Response()
        response.status_code = 302 if len(self.asked) == 1 else 200
        response.request, response.url = request, str(request.url)
        response.headers["Location"] = self.location
        response.raw = io.BytesIO()
        return response

    def close(self) -> None:
        """Hold nothing."""


@pytest.mark.parametrize(
    ("start", "location", "there"),
    [
        ("https://a.example/x/y", "http://a.example/z", None),
        ("https://a.example/x/y", "HTTP://b.example/z", None),
        ("https://a.example/x/y", "//b.example/z", "https://b.example/z"),
        ("https://a.example/x/y", "z", "https://a.example/x/z"),
        ("https://a.example/x/y", "https://b.example/z", "https://b.example/z"),
        ("http://a.example/x/y", "https://b.example/z", "https://b.example/z"),
        ("http://a.example/x/y", "http://b.example/z", "http://b.example/z"),
    ],
)
def test_a_redirect_never_leads_from_https_to_http(
    start: str, location: str, there: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    web = Elsewhere(location)
    monkeypatch.setattr(requests.Session, "get_adapter", lambda *_, **__: web)
    hub = client.Hub("https://a.example", "hf_secret")
    if there is None:
        with pytest.raises((AttemptFailed, WeightsUnavailable), match="from https to http"):
            hub.open(start, PATIENCE, what="x")
        assert web.asked == [start]
    else:
        assert hub.open(start, PATIENCE, what="x").url == there
        assert web.asked == [start, there]


def test_a_status_of_the_storage_is_a_passing_fault_and_one_of_the_hub_is_final(
    world: Hub, hub: client.Hub
) -> None:
    """A signature runs out; the hub itself says what is so."""
    at = url(world, hub, "weights.safetensors")
    world.misbehave(Fault("status", "bytes", status=404))
    with pytest.raises(AttemptFailed, match="storage answered 404"):
        hub.open(at, PATIENCE, what="the file")
    world.misbehave(Fault("status", "resolve", status=404))
    with pytest.raises(Missing, match="the file"):
        hub.open(at, PATIENCE, what="the file")


def test_the_hub_may_say_how_long_to_wait(world: Hub, hub: client.Hub) -> None:
    world.misbehave(
        Fault("status", "resolve", status=429, headers={"Retry-After": "7"}),
        Fault("status", "resolve", status=503),
    )
    waits = []
    for _ in range(2):
        with pytest.raises(AttemptFailed) as caught:
            hub.open(url(world, hub, "weights.safetensors"), PATIENCE, what="x")
        waits.append(caught.value.wait_s)
    assert waits == [7, None]


def test_an_answer_that_was_not_asked_for_is_none(world: Hub, hub: client.Hub) -> None:
    at = url(world, hub, "weights.safetensors")
    with pytest.raises(AttemptFailed, match="206"):
        hub.open(at, PATIENCE, what="x", span="bytes=0-3")


def test_the_connection_serves_the_next_request(world: Hub, hub: client.Hub) -> None:
    """A redirect's short body is read, so that headers by range cost no new connection each."""
    at = url(world, hub, "weights.safetensors")
    for _ in range(4):
        hub.open(at, PATIENCE, what="x").content  # noqa: B018 - read to its end
    assert len(world.connections) == 2, "one to the hub, one to the storage"


@pytest.mark.parametrize("status", [300, 399])
def test_every_status_that_redirects_is_one(world: Hub, hub: client.Hub, status: int) -> None:
    target = url(world, hub, "weights.safetensors")
    world.misbehave(Fault("status", "bytes", "a b/*", status=status, headers={"Location": target}))
    response = hub.open(url(world, hub, "a b/ü#1.json"), PATIENCE, what="x")
    assert response.content == FILES["weights.safetensors"]


def test_a_request_that_the_hub_calls_bad_is_final(world: Hub, hub: client.Hub) -> None:
    world.misbehave(Fault("status", "resolve", status=400))
    with pytest.raises(WeightsUnavailable, match="400"):
        hub.open(url(world, hub, "weights.safetensors"), PATIENCE, what="x")


def test_who_asks_says_so(hub: client.Hub) -> None:
    assert hub.make_headers("http://elsewhere.example") == {
        "Accept-Encoding": "identity",
        "User-Agent": "worker",
    }


@pytest.mark.parametrize("status", [404, 204, 300, 302])
def test_an_answer_that_is_not_read_holds_no_connection(
    monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    closed: list[str] = []
    web = Elsewhere("/x")
    send = web.send

    def answer(request: requests.PreparedRequest, **_: object) -> requests.Response:
        response = send(request)
        if len(web.asked) == 1:
            response.status_code = status
            monkeypatch.setattr(response, "close", lambda: closed.append("first"))
        return response

    monkeypatch.setattr(web, "send", answer)
    monkeypatch.setattr(requests.Session, "get_adapter", lambda *_, **__: web)
    hub = client.Hub("https://a.example", None)
    if status in client.REDIRECTION:
        assert hub.open("https://a.example/y", PATIENCE, what="x").url == "https://a.example/x"
    else:
        with pytest.raises((AttemptFailed, WeightsUnavailable)):
            hub.open("https://a.example/y", PATIENCE, what="x")
    assert closed


@pytest.mark.parametrize(
    ("endpoint", "start", "is_final"),
    [
        ("https://mirror.example", "https://mirror.example/x", True),
        ("https://mirror.example", "https://storage.example/x", False),
        (client.HUB, f"{client.HUB}/x", False),
    ],
)
def test_a_name_that_is_not_known_is_the_operators_where_they_wrote_it(
    monkeypatch: pytest.MonkeyPatch, endpoint: str, start: str, *, is_final: bool
) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise requests.ConnectionError from socket.gaierror(socket.EAI_NONAME, "not known")

    monkeypatch.setattr(requests.Session, "request", unknown)
    with pytest.raises(WeightsUnavailable if is_final else AttemptFailed):
        client.Hub(endpoint, None).open(start, PATIENCE, what="x")


def test_an_answer_that_does_not_begin_is_given_up_after_its_time(
    world: Hub, hub: client.Hub
) -> None:
    world.misbehave(Fault("stall-before", "bytes"))
    with pytest.raises(AttemptFailed, match="in time"):
        hub.open(url(world, hub, "a b/ü#1.json"), Patience(connect_s=30, stall_s=0.3), what="x")
