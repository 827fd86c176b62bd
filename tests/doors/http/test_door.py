"""The door on loopback: when it opens, how many it lets in, who may call, how it leaves."""

import asyncio
import itertools
import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from aiohttp import web

from worker import settings
from worker.doors.http import server
from worker.doors.http.door import Http
from worker.errors import InvalidSettings, StartFailed
from worlds.doorway import Doorway
from worlds.pod import HANG_S
from worlds.ports import take_port
from worlds.standin import Gate

EVERY = "0.0.0.0"  # noqa: S104 - what is checked
KEY = "a-key-that-nobody-guesses"
# An address of this machine alone where no other test listens: what is closed there stays closed.
ASIDE = "127.88.0.1"


@pytest.fixture(scope="module")
def gates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gates")


@pytest.fixture(scope="module")
def door(gates: Path) -> Iterator[Doorway]:
    """A door at which two may wait."""
    environ = {"STANDIN_GATES": str(gates), "HTTP_QUEUE": "2", "MAX_BODY_BYTES": "200000"}
    with Doorway({**environ, "MAX_IMAGE_BYTES": "50000"}) as door:
        yield door.opened()


@pytest.fixture
def gate(gates: Path) -> Iterator[Gate]:
    gate = Gate(gates, f"gate{next(_numbers)}")
    yield gate
    gate.open()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


_numbers = itertools.count()


def until(is_so: Any) -> None:
    """Wait until something is so."""
    end = time.monotonic() + HANG_S
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.005)


def counts(door: Doorway) -> dict[str, int]:
    """Return the jobs that run and wait."""
    jobs: dict[str, int] = door.get("/health").json()["jobs"]
    return jobs


def held(door: Doorway, gate: Gate, pool: ThreadPoolExecutor, **named: Any) -> Future[Any]:
    """Begin a picture that stays in its first step."""
    body = {"input": {"prompt": f"hold=denoise gate={gate.name}"}}
    future = pool.submit(door.post, "/runsync", body, **named)
    until(lambda: gate.is_reached)
    return future


# Opening and leaving


def test_a_door_is_seen_while_the_worker_starts_and_open_once_it_is_warm(tmp_path: Path) -> None:
    with Doorway({"STANDIN_BOOT": "held", "STANDIN_GATES": str(tmp_path)}) as door:
        door.opened(204)
        assert door.get("/ping").content == b""
        refused = door.post("/runsync", {"input": {"prompt": "x"}})
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "5")
        assert refused.json()["error"]["code"] == "worker_not_ready"
        health = door.get("/health")
        assert (health.status_code, health.json()["workers"]["initializing"]) == (503, 1)
        Gate(tmp_path, "boot").open()
        door.opened(200)
        assert door.post("/runsync", {"input": {"prompt": "x"}}).json()["status"] == "COMPLETED"
        door.process.send(signal.SIGINT)
        assert door.process.wait() == 0


def test_port_alone_opens_the_door_and_a_second_port_answers_health_checks_alone() -> None:
    health = take_port()
    with (
        Doorway({"SERVE": ""}) as first,
        Doorway({"SERVE": "", "PORT_HEALTH": str(health)}) as other,
    ):
        first.opened()
        other.opened()
        address = f"http://127.0.0.1:{health}"
        assert requests.get(f"{address}/ping", timeout=HANG_S).status_code == 200
        assert requests.get(f"{address}/health", timeout=HANG_S).status_code == 404


def test_sigterm_refuses_new_jobs_finishes_those_that_were_taken_and_ends_with_0(
    gates: Path,
) -> None:
    gate = Gate(gates, "leaving")
    with (
        Doorway({"STANDIN_GATES": str(gates)}) as door,
        ThreadPoolExecutor(2) as pool,
    ):
        door.opened()
        running = held(door, gate, pool)
        waiting = pool.submit(door.post, "/runsync", {"input": {"prompt": "x"}})
        until(lambda: counts(door)["inQueue"] == 1)
        door.process.send(signal.SIGTERM)
        door.opened(503)
        refused = door.post("/generate", {"prompt": "x"})
        assert (refused.status_code, refused.headers["x-should-retry"]) == (503, "true")
        gate.open()
        assert running.result().json()["status"] == "COMPLETED"
        assert waiting.result().json()["status"] == "COMPLETED"
        assert door.process.wait() == 0


def test_one_that_leaves_keeps_what_it_has_made_until_it_is_fetched(gates: Path) -> None:
    gate = Gate(gates, "fetching")
    with Doorway({"STANDIN_GATES": str(gates)}) as door:
        door.opened()
        body = {"input": {"prompt": f"hold=denoise gate={gate.name}"}}
        job_id = door.post("/run", body).json()["id"]
        until(lambda: gate.is_reached)
        door.process.send(signal.SIGTERM)
        door.opened(503)
        gate.open()
        until(lambda: door.process.log("job done"))
        until(lambda: door.get(f"/status/{job_id}").json()["status"] == "COMPLETED")
        assert door.process.wait() == 0


def test_a_worker_that_cannot_go_on_answers_what_it_has_and_ends_with_failure(
    gates: Path,
) -> None:
    gate = Gate(gates, "losing")
    with Doorway({"STANDIN_GATES": str(gates)}) as door, ThreadPoolExecutor(2) as pool:
        door.opened()
        body = {"prompt": f"lost hold=lost gate={gate.name}"}
        lost = pool.submit(door.post, "/generate", body)
        until(lambda: counts(door)["inProgress"] == 1)
        waiting = pool.submit(door.post, "/generate", {"prompt": "x"})
        until(lambda: counts(door)["inQueue"] == 1)
        gate.open()
        assert lost.result().json()["error"]["code"] == "device_lost"
        assert waiting.result().status_code == 503
        assert door.process.wait() == 1


@pytest.mark.parametrize("how", ["gated", "environment"])
def test_behind_runpods_balancer_a_start_that_failed_is_the_answer_for_a_while(how: str) -> None:
    broken = {"STANDIN_BOOT": "gated"} if how == "gated" else {"MAX_PIXELS": "many"}
    environ = {"RUNPOD_ENDPOINT_ID": "e", "HOST": "127.0.0.1", "SERVE": "", **broken}
    with Doorway({**environ, "STANDIN_REFUSE_S": "3600"}) as door:
        door.opened(503)
        refused = door.post("/runsync", {"input": {"prompt": "x"}})
        assert refused.status_code == 503
        reason = "standin is gated" if how == "gated" else "MAX_PIXELS"
        assert reason in refused.json()["error"]["message"]
    with Doorway({**environ, "STANDIN_REFUSE_S": "0.1"}) as door:
        assert door.process.wait() == 1


@pytest.fixture
def _signals() -> Iterator[None]:
    """Put back the handlers that a door replaces."""
    before = [(one, signal.getsignal(one)) for one in (signal.SIGTERM, signal.SIGINT)]
    yield
    for one, handler in before:
        signal.signal(one, handler)


@pytest.mark.usefixtures("_signals")
@pytest.mark.parametrize("has_port", [True, False], ids=["its own", "none"])
def test_a_door_that_refuses_is_closed_after_its_time(*, has_port: bool) -> None:
    """Also where the port for health checks is the door's own: it is no second one."""
    port = take_port()
    environ = {"SERVE": "http", "HOST": ASIDE, "PORT": str(port)}
    more = {"PORT_HEALTH": str(port)} if has_port else {}
    Http(settings.read({**environ, **more})).refuse(StartFailed("why"), 0.0)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((ASIDE, port), timeout=HANG_S).close()
    assert "http" not in [one.name for one in threading.enumerate()]


def test_a_door_that_does_not_listen_serves_nobody() -> None:
    with pytest.raises(RuntimeError, match="does not listen yet"):
        Http(settings.read({"SERVE": "http"})).serve(None, lambda: False)  # type: ignore[arg-type] # not called
    with pytest.raises(RuntimeError, match="was not started"):
        server.Server().stop()


def test_a_server_that_cannot_listen_leaves_nothing_behind() -> None:
    port, house = take_port(), server.Server()
    with socket.create_server(("127.0.0.1", port)), pytest.raises(OSError, match="in use"):
        house.start(lambda: [(("127.0.0.1", port), web.Application())])
    assert "http" not in [one.name for one in threading.enumerate()]


def test_a_server_that_stops_closes_every_address_that_it_has() -> None:
    ports, closed, house = (take_port(), take_port()), list[int](), server.Server()

    def make_app(port: int) -> web.Application:
        async def note(_: web.Application) -> None:
            closed.append(port)

        app = web.Application()
        app.on_cleanup.append(note)
        return app

    house.start(lambda: [((ASIDE, port), make_app(port)) for port in ports])
    for port in ports:
        with socket.create_connection((ASIDE, port), timeout=HANG_S) as line:
            line.sendall(b"GET /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            while line.recv(1000):
                pass
    house.stop()
    for port in ports:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((ASIDE, port), timeout=HANG_S).close()
    assert closed == list(ports)


def test_a_port_that_is_taken_is_a_start_that_fails() -> None:
    with Doorway() as first:
        first.opened()
        with Doorway({"PORT": str(first.port)}) as other:
            assert other.process.wait() == 1
            assert other.process.log("start failed")


# The line


def test_so_many_wait_and_the_next_is_sent_away_with_the_seconds_after_which_to_come(
    door: Doorway, gate: Gate, pool: ThreadPoolExecutor
) -> None:
    first = held(door, gate, pool)
    others = []
    for number in (1, 2):
        others.append(pool.submit(door.post, "/runsync", {"input": {"prompt": "x"}}))
        until(lambda number=number: counts(door)["inQueue"] == number)
    refused = door.post("/v1/images/generations", {"prompt": "x"})
    assert refused.status_code == 429
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    assert refused.headers["x-should-retry"] == "true"
    assert refused.json()["error"]["type"] == "rate_limit_error"
    gate.open()
    for future in (first, *others):
        assert future.result().json()["status"] == "COMPLETED"


def test_a_caller_that_hangs_up_stops_its_picture_within_a_step(door: Doorway, gate: Gate) -> None:
    before = len(door.process.log("job cancelled"))
    body = json.dumps({"prompt": f"steps=100 hold=denoise:2 gate={gate.name}"}).encode()
    with door.dial() as line:
        line.sendall(
            b"POST /generate HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            + f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        until(lambda: gate.is_reached)
    gate.open()
    until(lambda: len(door.process.log("job cancelled")) == before + 1)
    assert counts(door)["inProgress"] == 0


def test_one_that_hangs_up_while_it_waits_leaves_the_line(
    door: Doorway, gate: Gate, pool: ThreadPoolExecutor
) -> None:
    running = held(door, gate, pool)
    body = b'{"prompt": "x"}'
    with door.dial() as line:
        line.sendall(
            b"POST /generate HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            + f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        until(lambda: counts(door)["inQueue"] == 1)
    until(lambda: counts(door)["inQueue"] == 0)
    gate.open()
    assert running.result().json()["status"] == "COMPLETED"


def test_a_slow_sender_takes_no_place_in_the_line(door: Doorway) -> None:
    with door.dial() as line:
        line.sendall(
            b"POST /generate HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            b"Content-Length: 100\r\n\r\n{"
        )
        for _ in range(3):
            assert door.post("/generate", {"prompt": "x"}).status_code == 200
            assert counts(door) | {"inProgress": 0, "inQueue": 0} == counts(door)


# Bodies


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "in chunks"])
def test_a_body_over_the_limit_is_refused_however_it_is_sent(door: Doorway, declared: bool) -> None:
    body = b'{"prompt": "' + b"x" * 250_000 + b'"}'
    headers = {"Content-Type": "application/json"}
    data: Any = body if declared else iter([body[:100_000], body[100_000:]])
    refused = door.call("POST", "/generate", data=data, headers=headers)
    assert refused.status_code == 413
    assert refused.json()["error"]["code"] == "request_too_large"


def test_a_part_over_the_limit_of_pictures_is_refused_by_its_name(door: Doorway) -> None:
    files = [("image", ("a.png", b"x" * 60_000, "image/png"))]
    refused = door.call("POST", "/v1/images/edits", files=files, data={"prompt": "x"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (413, "image")


@pytest.mark.parametrize(
    ("files", "fields", "status"), [(16, 64, 400), (17, 64, 413), (16, 65, 413)]
)
def test_a_form_has_so_many_parts(door: Doorway, files: int, fields: int, status: int) -> None:
    """What is wrong with one that has no more is that its files are no pictures."""
    parts: list[Any] = [("image[]", ("a.png", b"x", "image/png"))] * files
    parts += [(f"f{number}", (None, "x")) for number in range(fields - 1)]
    parts.append(("prompt", (None, "x")))
    refused = door.call("POST", "/v1/images/edits", files=parts)
    error = refused.json()["error"]
    assert refused.status_code == status
    assert (error["code"] == "too_many_parts") == (status == 413)


@pytest.mark.parametrize(("size", "status"), [(65_536, 400), (65_537, 413)])
def test_a_field_of_a_form_has_so_many_bytes(door: Doorway, size: int, status: int) -> None:
    """What is wrong with one that is not too long is that there is no picture."""
    files = [("prompt", (None, "x" * size))]
    refused = door.call("POST", "/v1/images/edits", files=files)
    error = refused.json()["error"]
    assert refused.status_code == status
    if status == 413:
        assert (error["code"], error["param"]) == ("request_too_large", "prompt")
        assert error["message"] == "prompt may have at most 65536 bytes"


@pytest.mark.parametrize(
    ("content_type", "body", "status"),
    [
        ("text/plain", b'{"prompt": "x"}', 415),
        ("application/x-www-form-urlencoded", b"prompt=x", 415),
        (None, b'{"prompt": "x"}', 415),
        ("application/json", b"{", 400),
        ("application/json", b"", 400),
        ("application/json", b"\xff\xfe", 400),
        ("application/json", b"[" * 100_000, 400),
    ],
)
def test_a_body_must_be_json_and_say_so(
    door: Doorway, content_type: str | None, body: bytes, status: int
) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    refused = door.call("POST", "/generate", data=body, headers=headers)
    assert refused.status_code == status
    assert refused.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("coding", ["gzip", "X-GZIP", "deflate", "br", "zstd", "utf-8, gzip"])
def test_a_compressed_body_is_refused(door: Doorway, coding: str) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": coding}
    assert door.call("POST", "/generate", data=b"\x1f\x8b", headers=headers).status_code == 415


@pytest.mark.parametrize("coding", ["", "identity", "none", "utf-8", "aws-chunked"])
def test_a_coding_that_is_no_compression_says_nothing(door: Doorway, coding: str) -> None:
    """The body is read, and found to ask for nothing."""
    headers = {"Content-Type": "application/json", "Content-Encoding": coding}
    assert door.call("POST", "/generate", data=b"{}", headers=headers).status_code == 400


@pytest.mark.parametrize(
    "line",
    [
        *("Content-Transfer-Encoding: binary", "Content-Transfer-Encoding: 8BIT"),
        *("Content-Transfer-Encoding: 7bit", "Content-Encoding: identity", "Content-Encoding:"),
    ],
)
def test_a_part_may_say_that_its_bytes_are_as_they_are(door: Doorway, line: str) -> None:
    """As some clients do; what is wrong is that the form has no picture."""
    body = PART.replace(b"\r\n\r\n", f"\r\n{line}\r\n\r\n".encode()) + b"--b--\r\n"
    refused = door.call("POST", "/v1/images/edits", data=body, headers=MULTIPART)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "images")


MULTIPART = {"Content-Type": "multipart/form-data; boundary=b"}
PART = b'--b\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nx\r\n'


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no boundary at all",
        PART,
        PART[:-4],
        b"--b\r\n\r\nx\r\n--b--\r\n",
        b'--b\r\nContent-Disposition: form-data; name=""\r\n\r\nx\r\n--b--\r\n',
        PART.replace(b"\r\n\r\n", b"\r\nContent-Transfer-Encoding: base64\r\n\r\n") + b"--b--\r\n",
        PART.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n") + b"--b--\r\n",
        PART.replace(b"\r\n\r\n", b"\r\nContent-Type: multipart/mixed; boundary=c\r\n\r\n")
        + b"--b--\r\n",
        PART.replace(b"\r\nx", b"\r\n\xff") + b"--b--\r\n",
    ],
    ids=range(10),
)
def test_a_form_that_is_broken_or_not_complete_is_refused(door: Doorway, body: bytes) -> None:
    refused = door.call("POST", "/v1/images/edits", data=body, headers=MULTIPART)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_form")


def test_a_form_without_a_boundary_is_refused(door: Doorway) -> None:
    headers = {"Content-Type": "multipart/form-data"}
    refused = door.call("POST", "/v1/images/edits", data=PART, headers=headers)
    assert refused.status_code == 400


# Who may call


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("evil.example", 421),
        ("evil.example:8000", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost.evil.example", 421),
        ("", 421),
        ("localhost:1", 200),
        ("127.0.0.1", 200),
        ("[::1]:8000", 200),
        ("192.168.1.7:8000", 200),
        ("LOCALHOST", 200),
    ],
)
def test_a_name_that_leads_here_from_elsewhere_is_not_the_doors(
    door: Doorway, host: str, status: int
) -> None:
    """DNS rebinding: the page of evil.example would be of the door's own origin."""
    assert door.get("/health", headers={"Host": host}).status_code == status


def test_a_name_that_the_operator_allows_is() -> None:
    with Doorway({"ALLOWED_HOSTS": "box.example"}) as door:
        door.opened()
        assert door.get("/health", headers={"Host": "BOX.example:80"}).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({}, 200),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["json", "form"])
def test_no_page_of_another_origin_makes_pictures_here(
    door: Doorway, headers: dict[str, str], status: int, kind: str
) -> None:
    if kind == "json":
        response = door.post("/generate", {"prompt": "x"}, headers=headers)
        assert response.status_code == status
    else:
        files = [("prompt", (None, "x"))]
        response = door.call("POST", "/v1/images/edits", files=files, headers=headers)
        assert response.status_code == (status if status == 403 else 400)
    assert "Access-Control-Allow-Origin" not in response.headers


def test_the_doors_own_page_may_and_so_may_an_origin_that_the_operator_names() -> None:
    with Doorway({"CORS_ORIGINS": "https://app.example"}) as door:
        door.opened()
        body = {"prompt": "x"}
        assert door.post("/generate", body, headers={"Origin": door.url}).status_code == 200
        headers = {"Origin": "https://app.example"}
        allowed = door.post("/generate", body, headers=headers)
        assert allowed.status_code == 200
        assert allowed.headers["Access-Control-Allow-Origin"] == "https://app.example"
        asked = door.call("OPTIONS", "/generate", headers=headers)
        assert asked.status_code == 204
        assert "content-type" in asked.headers["Access-Control-Allow-Headers"]
        other = door.call("OPTIONS", "/generate", headers={"Origin": "https://evil.example"})
        assert other.status_code == 405


def test_a_door_with_keys_answers_those_who_have_one() -> None:
    with Doorway({"API_KEYS": f"another-key-of-mine, {KEY}"}) as door:
        door.opened()
        assert door.get("/ping").status_code == 200
        for headers in (
            {},
            {"Authorization": "Bearer wrong-wrong-wrong-wrong"},
            {"Authorization": KEY},
            {"Authorization": f"Bearer {KEY}x"},
            {"x-api-key": KEY[:-1]},
            {"x-api-key": "\xff\xfe"},
        ):
            for path in ("/health", "/metrics", "/openapi.json", "/v1/models"):
                refused = door.get(path, headers=headers)
                assert (refused.status_code, refused.headers["WWW-Authenticate"]) == (401, "Bearer")
        assert refused.json()["error"]["type"] == "authentication_error"
        for headers in (
            {"Authorization": f"Bearer {KEY}"},
            {"Authorization": f"bearer {KEY}"},
            {"x-api-key": KEY},
            {"x-api-key": "another-key-of-mine", "Authorization": "Bearer of-the-gateway"},
        ):
            assert door.get("/health", headers={**headers, "Host": "any.example"}).ok
        assert KEY not in door.process.stderr


@pytest.mark.parametrize(
    ("environ", "opens"),
    [
        ({"HOST": EVERY}, False),
        ({"HOST": EVERY, "API_KEYS": "none"}, True),
        ({"HOST": EVERY, "API_KEYS": KEY}, True),
        ({"HOST": "localhost"}, True),
        ({"RUNPOD_POD_ID": "a-pod"}, False),
        ({"RUNPOD_POD_ID": "a-pod", "RUNPOD_ENDPOINT_ID": "e"}, True),
    ],
    ids=str,
)
def test_without_a_key_a_door_opens_on_loopback_alone_unless_that_is_said(
    environ: dict[str, str], opens: bool
) -> None:
    given = {"SERVE": "http", **environ}
    if opens:
        settings.read(given)
        return
    with pytest.raises(InvalidSettings, match="API_KEYS: is required"):
        settings.read(given)


# Connections


def test_so_many_connections_are_open_at_once(door: Doorway) -> None:
    """A door that runs out of descriptors would answer nobody."""
    lines = [door.dial() for _ in range(300)]
    try:
        assert lines[-1].recv(100).startswith(b"HTTP/1.1 503")
    finally:
        for line in lines:
            line.close()
    until(lambda: door.get("/health").status_code == 200)


def test_256_connections_are_let_in_also_when_all_come_at_once() -> None:
    """Before any of them is connected: the system accepts many before it says so."""
    loop: Any = SimpleNamespace(time=lambda: 0.0, call_later=lambda *_: None)
    runner: Any = SimpleNamespace(server=lambda: SimpleNamespace(transport=None))
    connect = server.Connections(runner, loop)
    turned_away = [isinstance(connect(), server.TurnedAway) for _ in range(257)]
    assert turned_away == [False] * 256 + [True]


@pytest.mark.parametrize(
    ("begun", "now", "is_connected", "is_full"),
    [
        (0.05, 0.1, False, True),
        (0.0, 0.1, False, False),
        (0.0, 1000.0, True, True),
    ],
)
def test_those_that_were_let_in_count_while_they_connect_and_while_they_are_connected(
    begun: float, now: float, *, is_connected: bool, is_full: bool
) -> None:
    """One that is not connected a tenth of a second later will not be."""
    clock = [begun]
    loop: Any = SimpleNamespace(time=lambda: clock[0], call_later=lambda *_: None)
    transport = object() if is_connected else None
    runner: Any = SimpleNamespace(server=lambda: SimpleNamespace(transport=transport))
    connect = server.Connections(runner, loop)
    for _ in range(256):
        connect()
    clock[0] = now
    assert isinstance(connect(), server.TurnedAway) is is_full


def test_a_connection_that_never_begins_a_request_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "HEAD_S", 0.3)
    port, house = take_port(), server.Server()
    house.start(lambda: [(("127.0.0.1", port), web.Application())])
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=HANG_S) as busy:
            with socket.create_connection(("127.0.0.1", port), timeout=HANG_S) as silent:
                busy.sendall(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n")
                silent.sendall(b"GET /x HTTP/1.1\r\nHos")
                assert silent.recv(100) == b""
            assert busy.recv(100).startswith(b"HTTP/1.1 404")
            busy.sendall(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n")
            until(lambda: b"HTTP/1.1 404" in busy.recv(1000))
    finally:
        house.stop()


def test_a_head_may_be_long_and_a_connection_that_idles_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "KEEP_ALIVE_S", 0.3)
    port, house = take_port(), server.Server()
    house.start(lambda: [(("127.0.0.1", port), web.Application())])
    try:
        for head in (
            b"GET /x HTTP/1.1\r\nX-A: " + b"a" * 12_000,
            b"GET /" + b"a" * 12_000 + b" HTTP/1.1",
        ):
            with socket.create_connection(("127.0.0.1", port), timeout=HANG_S / 2) as line:
                line.sendall(head + b"\r\nHost: a\r\n\r\n")
                answer = b""
                while part := line.recv(1000):
                    answer += part
                assert answer.startswith(b"HTTP/1.1 404")
    finally:
        house.stop()


@pytest.mark.parametrize(("size", "status"), [(16_384, b"404"), (16_385, b"400")])
def test_an_address_may_have_16_kb(size: int, status: bytes) -> None:
    port, house = take_port(), server.Server()
    house.start(lambda: [(("127.0.0.1", port), web.Application())])
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=HANG_S) as line:
            path = b"/".ljust(size, b"a")
            line.sendall(b"GET " + path + b" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            assert line.recv(100).split()[1] == status
    finally:
        house.stop()


def test_a_door_that_is_never_left_keeps_no_process_alive() -> None:
    port, house = take_port(), server.Server()
    house.start(lambda: [(("127.0.0.1", port), web.Application())])
    try:
        assert [one.daemon for one in threading.enumerate() if one.name == "http"] == [True]
    finally:
        house.stop()


def test_a_response_that_never_ends_is_waited_for_in_vain_and_not_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "FLUSH_S", 0.2)
    begun = threading.Event()

    async def hang(_: web.Request) -> web.Response:
        begun.set()
        await asyncio.Event().wait()
        return web.Response()

    def begin() -> list[tuple[tuple[str, int], web.Application]]:
        app = web.Application()
        app.router.add_get("/x", hang)
        return [(("127.0.0.1", port), app)]

    port, house = take_port(), server.Server()
    house.start(begin)
    with socket.create_connection(("127.0.0.1", port), timeout=HANG_S) as line:
        line.sendall(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n")
        assert begun.wait(HANG_S)
        start = time.monotonic()
        house.stop()
        assert 0.2 <= time.monotonic() - start < 30


def test_many_callers_at_once_each_get_their_own_answer(door: Doorway) -> None:
    answers: dict[int, Any] = {}

    def call(number: int) -> None:
        with requests.Session() as session:
            while True:
                body = {"prompt": "x", "seed": number}
                response = session.post(f"{door.url}/generate", json=body, timeout=HANG_S)
                if response.status_code not in (429, 503):
                    break
                time.sleep(0.05)
        answers[number] = response.json()["seed"]

    threads = [threading.Thread(target=call, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {number: number for number in range(12)}
