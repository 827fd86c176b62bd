"""HTTP/1.1 as attackers write it: each request has one clear meaning, or is refused."""

import json
import re
import socket
import threading
from collections.abc import Iterator

import pytest

from worlds.doorway import Doorway

BODY = b'{"prompt": "x"}'
CHUNKS = b"f\r\n" + BODY + b"\r\n0\r\n\r\n"
SECRET = b"Authorization: Bearer of-somebody-else"


@pytest.fixture(scope="module")
def door() -> Iterator[Doorway]:
    with Doorway() as door:
        yield door.opened()
        assert b"of-somebody-else".decode() not in door.process.stderr
        assert "Traceback" not in door.process.stderr


def post(head: bytes, body: bytes = BODY) -> bytes:
    lines = (b"POST /generate HTTP/1.1", b"Host: 127.0.0.1", b"Content-Type: application/json")
    return b"\r\n".join((*lines, SECRET, head)) + b"\r\n\r\n" + body


def get(*head: bytes, line: bytes = b"GET /health HTTP/1.1") -> bytes:
    return b"\r\n".join((line, b"Host: 127.0.0.1", *head)) + b"\r\n\r\n"


def statuses(door: Doorway, request: bytes) -> list[int]:
    """Return the status of each response to a request and to the next on its connection.

    The next is a health check that ends the connection, if the first has not.
    """
    received = door.send(request + get(b"Connection: close", line=b"GET /ping HTTP/1.1"))
    return [int(code) for code in re.findall(rb"HTTP/\d\.\d (\d{3}) ", received)]


SMUGGLED = [
    post(b"Content-Length: 15\r\nTransfer-Encoding: chunked", CHUNKS),
    post(b"Content-Length: 15\r\nContent-Length: 16"),
    post(b"Content-Length: 15\r\nContent-Length: 15"),
    post(b"Content-Length: 15, 15"),
    post(b"Content-Length: +15"),
    post(b"Content-Length: -1"),
    post(b"Content-Length: 0xf"),
    post(b"Content-Length : 15"),
    post(b"Transfer-Encoding: identity"),
    post(b"Transfer-Encoding: xchunked", CHUNKS),
    post(b"Transfer-Encoding: chunked, chunked", CHUNKS),
    post(b"Transfer-Encoding: gzip, chunked", CHUNKS),
    post(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", CHUNKS),
    post(b"Transfer-Encoding: chunked", b"zz\r\n" + BODY + b"\r\n0\r\n\r\n"),
    post(b"Transfer-Encoding: chunked", b"-1\r\n" + BODY + b"\r\n0\r\n\r\n"),
    post(b"Transfer-Encoding: chunked", CHUNKS[:-2] + b"Content-Length: 5\r\n\r\n"),
    post(b"Content-Length: 15\r\nX-A: b\r\n folded"),
    post(b"Content-Length: 15\r\nX-A: a\0b"),
    post(b"Content-Length: 15\r\nHost: evil.example"),
    post(b"Content-Length: 15").replace(b"\r\n", b"\n"),
]


@pytest.mark.parametrize("request_", SMUGGLED, ids=range(len(SMUGGLED)))
def test_a_request_with_two_meanings_is_refused_and_ends_its_connection(
    door: Doorway, request_: bytes
) -> None:
    """What comes after it would be another request to some, a part of this one to others."""
    assert statuses(door, request_) == [400]


@pytest.mark.parametrize(
    "request_",
    [
        get(line=b"GET /" + b"a" * 20_000 + b" HTTP/1.1"),
        get(b"X: " + b"a" * 20_000),
        get(*[b"X: a"] * 5000),
        get(line=b"GET http://evil.example/health HTTP/1.1"),
        get(line=b"GET /health HTTP/1.2"),
        get(b"X: a\rY: b"),
        get(line=b"GET /status/\xff\xfe HTTP/1.1"),
        b"GET /health HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
        bytes(range(256)),
    ],
    ids=range(11),
)
def test_what_is_too_long_or_no_http_is_refused(door: Doorway, request_: bytes) -> None:
    assert statuses(door, request_)[0] in (400, 414, 421, 431)


@pytest.mark.parametrize("line", [b"CONNECT a:1 HTTP/1.1", b"TRACE /health HTTP/1.1"])
def test_other_methods_do_nothing(door: Doorway, line: bytes) -> None:
    assert statuses(door, get(b"Connection: close", line=line))[0] in (400, 404, 405)


def test_a_compressed_body_that_nobody_reads_is_not_unpacked(door: Doorway) -> None:
    """What is no gzip would end the connection, and little that is one may become gigabytes."""
    head = b"Content-Encoding: gzip\r\nContent-Length: 15"
    assert statuses(door, get(head) + BODY) == [200, 200]


def test_a_request_in_pieces_is_one_request(door: Doorway) -> None:
    whole = post(b"Content-Length: 15\r\nConnection: close")
    with door.dial() as line:
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for place in range(0, len(whole), 7):
            line.sendall(whole[place : place + 7])
        assert line.recv(100).startswith(b"HTTP/1.1 200")


def test_requests_one_after_another_on_a_connection_are_answered_in_order(door: Doorway) -> None:
    pair = get(line=b"GET /ping HTTP/1.1") + get(line=b"GET /nope HTTP/1.1")
    with door.dial() as line:
        line.sendall(pair + get(b"Connection: close", line=b"GET /ping HTTP/1.1"))
        received = b""
        while data := line.recv(65536):
            received += data
    assert [int(code) for code in re.findall(rb"HTTP/1\.1 (\d+)", received)] == [200, 404, 200]


def test_a_body_that_ends_too_early_is_no_job(door: Doorway) -> None:
    before = door.get("/health").json()["worker"]["jobs"]["done"]
    for head in (b"Content-Length: 100", b"Transfer-Encoding: chunked"):
        body = BODY if b"Length" in head else CHUNKS[:-5]
        with door.dial() as line:
            line.sendall(post(head, body))
            line.shutdown(socket.SHUT_WR)
            assert line.recv(100) in (b"", b"HTTP/1.1 400")
    jobs = door.get("/health").json()["worker"]["jobs"]
    assert jobs["done"] == before + 1  # the report itself is the one


def test_an_expectation_is_met_and_another_is_not(door: Doorway) -> None:
    head = b"Content-Length: 15\r\nConnection: close\r\nExpect: "
    with door.dial() as line:
        line.sendall(post(head + b"100-continue", b""))
        assert line.recv(100).startswith(b"HTTP/1.1 100")
        line.sendall(BODY)
        assert b"HTTP/1.1 200" in line.recv(1000)
    with door.dial() as line:
        line.sendall(post(head + b"200-ok"))
        assert b"HTTP/1.1 417" in line.recv(1000)


def test_threads_of_abuse_leave_the_door_open_and_nothing_behind(door: Doorway) -> None:
    def abuse() -> None:
        for request in SMUGGLED:
            with door.dial() as line:
                line.sendall(request[: len(request) * 2 // 3])

    threads = [threading.Thread(target=abuse) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    reply = door.post("/generate", json.loads(BODY)).json()
    assert reply["image"]
    assert door.get("/health").json()["jobs"]["inProgress"] == 0
