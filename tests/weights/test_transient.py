"""Only what is known to pass is tried again: every failure of a request by its kind, as a table."""

import errno
import json
import re
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest
import requests
import urllib3
from huggingface_hub.errors import LocalTokenNotFoundError, OfflineModeIsEnabled

from worker import settings
from worker.errors import HubUnreachable, WeightsUnavailable, WorkerError
from worker.weights import hub as client
from worker.weights import metadata, push, space
from worker.weights.hub import HUB
from worker.weights.retry import AttemptFailed, Patience, classify_status
from worker.weights.transient import classify_error, is_transient
from worlds.certificates import Authority
from worlds.hub import Hub, running

QUICK = Patience(attempts=3, first_wait_s=0.001, longest_wait_s=0.002, connect_s=20, stall_s=20)


def caused(outer: BaseException, *causes: BaseException) -> BaseException:
    """Chain errors as `raise ... from ...` does."""
    one = outer
    for cause in causes:
        one.__cause__ = cause
        one = cause
    return outer


def tls(reason: str, kind: type[ssl.SSLError] = ssl.SSLError) -> ssl.SSLError:
    error = kind(1, f"[SSL: {reason}] words (_ssl.c:1006)")
    error.reason = reason
    return error


def said_apart(reason: str | None, words: str) -> ssl.SSLError:
    """Return a TLS error whose reason and whose words are not the same."""
    error = ssl.SSLError(1, words)
    error.reason = reason  # type: ignore[assignment] # where OpenSSL gives none
    return error


def in_circles(error: Exception) -> Exception:
    """Return an error whose cause has it as its own."""
    other = requests.ConnectionError("y")
    error.__cause__, other.__cause__ = other, error
    return error


def wrapped(error: Exception) -> requests.exceptions.SSLError:
    """Wrap a TLS error as urllib3 and requests do."""
    pool = urllib3.HTTPSConnectionPool("hub.example")
    inner = urllib3.exceptions.MaxRetryError(pool, "/", urllib3.exceptions.SSLError(error))
    return requests.exceptions.SSLError(inner)


def tunnel(status: int) -> requests.exceptions.ProxyError:
    said = OSError(f"Tunnel connection failed: {status} said the proxy")
    pool = urllib3.HTTPSConnectionPool("hub.example", 443)
    inner = urllib3.exceptions.ProxyError("Unable to connect to proxy", said)
    return requests.exceptions.ProxyError(urllib3.exceptions.MaxRetryError(pool, "/", inner))


AGAIN = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
TRANSIENT: dict[str, BaseException] = {
    "httpx: reset": httpx.ReadError("reset"),
    "httpx2: reset": httpx2.ReadError("reset"),
    "httpx2: refused": caused(httpx2.ConnectError("x"), OSError(errno.ECONNREFUSED, "refused")),
    "httpx: connecting takes too long": httpx.ConnectTimeout("slow"),
    "httpx2: reading takes too long": httpx2.ReadTimeout("slow"),
    "httpx2: hung up": httpx2.RemoteProtocolError("peer closed connection"),
    "httpx2: a body that cannot be unpacked": httpx2.DecodingError("incorrect header check"),
    "httpx2: the name server does not answer": caused(httpx2.ConnectError("x"), AGAIN),
    "httpx2: TLS was cut": caused(httpx2.ConnectError("x"), tls("EOF", ssl.SSLEOFError)),
    "httpx2: a proxy has no way on": httpx2.ProxyError("502 Bad Gateway"),
    "httpx2: a proxy is asked too often": httpx2.ProxyError("429 Too Many Requests"),
    "httpx2: a proxy is not there": httpx2.ProxyError("[Errno 111] Connection refused"),
    "no JSON": json.JSONDecodeError("Expecting value", "<!doctype html>", 0),
    "no UTF-8": UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    "requests: refused": requests.ConnectionError("refused"),
    "requests: too slow": requests.ReadTimeout("slow"),
    "requests: connecting takes too long": requests.ConnectTimeout("slow"),
    "requests: a chunk is broken": requests.exceptions.ChunkedEncodingError("x"),
    "requests: a body that cannot be unpacked": requests.exceptions.ContentDecodingError("x"),
    "requests: TLS was cut": wrapped(tls("EOF", ssl.SSLEOFError)),
    "requests: TLS was ended": wrapped(tls("END", ssl.SSLZeroReturnError)),
    "requests: a line garbled a record": wrapped(tls("DECRYPTION_FAILED_OR_BAD_RECORD_MAC")),
    "TLS: a record was garbled": wrapped(tls("BAD_RECORD_MAC")),
    "TLS: a record could not be read": wrapped(tls("DECRYPTION_FAILED")),
    "TLS: only its reason says how": wrapped(said_apart("BAD_RECORD_MAC", "words")),
    "TLS: only its words say how": wrapped(said_apart(None, "[SSL: BAD_RECORD_MAC] words")),
    "requests: an error of the system without a number": requests.ConnectionError(OSError("x")),
    "each the cause of the other": in_circles(requests.ConnectionError("x")),
    "requests: a proxy has no way on": tunnel(503),
    "requests: a proxy is not there": requests.exceptions.ProxyError("cannot connect"),
    "urllib3: hung up": urllib3.exceptions.ProtocolError("x", ConnectionResetError(104, "x")),
    "reset": ConnectionResetError(errno.ECONNRESET, "reset"),
    "no route": OSError(errno.EHOSTUNREACH, "no route"),
    "no network": OSError(errno.ENETUNREACH, "unreachable"),
    "too slow": TimeoutError("slow"),
}
FINAL: dict[str, BaseException] = {
    "offline": OfflineModeIsEnabled("offline mode is enabled"),
    "no token": LocalTokenNotFoundError("no token"),
    "a bug": TypeError("argument after ** must be a mapping"),
    "a bug while handling a reset": caused(TypeError("x"), httpx2.ReadError("reset")),
    "an answer without a key": KeyError("id"),
    "an endpoint that is none": ValueError("Port out of range 0-65535"),
    "a token that no header takes": UnicodeEncodeError("ascii", "é", 0, 1, "not in range"),
    "a name that is none": UnicodeError("label empty or too long"),
    "httpx: no such scheme": httpx.UnsupportedProtocol("foo://"),
    "httpx2: no such scheme": httpx2.UnsupportedProtocol("foo://"),
    "httpx2: a header that is none": httpx2.LocalProtocolError("illegal header value"),
    "httpx2: no address": httpx2.InvalidURL("invalid port"),
    "httpx2: round and round": httpx2.TooManyRedirects("20"),
    "httpx2: a proxy wants a password": httpx2.ProxyError("407 Proxy Authentication Required"),
    "httpx2: a proxy forbids it": httpx2.ProxyError("403 Forbidden"),
    "httpx2: a proxy does not know CONNECT": httpx2.ProxyError("501 Not Implemented"),
    "httpx2: a certificate": caused(
        httpx2.ConnectError("x"), tls("CERTIFICATE_VERIFY_FAILED", ssl.SSLCertVerificationError)
    ),
    "a certificate, without a reason": ssl.SSLCertVerificationError("x"),
    "httpx: a certificate, in words": httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] x"),
    "httpx: no TLS there, in words": httpx.ConnectError("[SSL: WRONG_VERSION_NUMBER] x"),
    "requests: no address, as a cause": caused(
        requests.ConnectionError("x"), requests.exceptions.InvalidURL("x")
    ),
    "a number that is no errno": socket.herror(errno.ECONNRESET, "x"),
    "a cause after one that comes twice": caused(
        requests.ConnectionError(*2 * [ConnectionResetError(errno.ECONNRESET, "x")]),
        tls("CERTIFICATE_VERIFY_FAILED", ssl.SSLCertVerificationError),
    ),
    "httpx2: no TLS there": caused(httpx2.ConnectError("x"), tls("WRONG_VERSION_NUMBER")),
    "requests: a certificate": wrapped(
        tls("CERTIFICATE_VERIFY_FAILED", ssl.SSLCertVerificationError)
    ),
    "requests: no TLS there": wrapped(tls("WRONG_VERSION_NUMBER")),
    "requests: TLS failed, and nobody says how": requests.exceptions.SSLError("x"),
    "requests: no address": requests.exceptions.InvalidURL("x"),
    "requests: no such scheme": requests.exceptions.InvalidSchema("x"),
    "requests: no scheme": requests.exceptions.MissingSchema("x"),
    "requests: a header that is none": requests.exceptions.InvalidHeader("x"),
    "requests: a proxy's address that is none": requests.exceptions.InvalidProxyURL("x"),
    "requests: a proxy wants a password": tunnel(407),
    "requests: a proxy forbids it": tunnel(403),
    "requests: a proxy does not know this HTTP": tunnel(505),
    "urllib3: no address": urllib3.exceptions.LocationParseError("x"),
    "no certificates to check by": OSError("Could not find a suitable TLS CA certificate bundle"),
    "the disk is full": OSError(errno.ENOSPC, "full"),
    "no file": FileNotFoundError(errno.ENOENT, "no such file"),
    "something else": Exception("something else"),
}


@pytest.mark.parametrize("custom_host", [False, True])
@pytest.mark.parametrize("kind", TRANSIENT)
def test_what_the_line_and_the_other_side_do_for_a_while_is_tried_again(
    kind: str, *, custom_host: bool
) -> None:
    error = classify_error(TRANSIENT[kind], "org/model", custom_host=custom_host)
    assert isinstance(error, AttemptFailed)
    assert "hub" in error.reason


@pytest.mark.parametrize("custom_host", [False, True])
@pytest.mark.parametrize("kind", FINAL)
def test_everything_else_is_final_and_says_what_to_change(kind: str, *, custom_host: bool) -> None:
    error = classify_error(FINAL[kind], "org/model", custom_host=custom_host)
    assert isinstance(error, WeightsUnavailable)
    assert not error.retryable
    assert error.message.startswith("org/model: ")
    assert any(word in error.message for word in ("HF_ENDPOINT", "HF_HUB_OFFLINE", "HTTPS_PROXY"))
    assert "later" not in error.message
    assert "hub.example" not in error.message


@pytest.mark.parametrize("code", [socket.EAI_NONAME, socket.EAI_FAIL])
def test_a_name_that_is_not_known_is_final_where_the_operator_wrote_it(code: int) -> None:
    """The public hub's own name is right: only the network can be in the way of it."""
    for outer in (httpx2.ConnectError("x"), requests.ConnectionError("x")):
        error = caused(outer, socket.gaierror(code, "Name or service not known"))
        assert not is_transient(error, custom_host=True)
        assert is_transient(error, custom_host=False)


def test_only_the_operator_s_own_endpoint_counts_as_custom() -> None:
    hub = client.Hub.from_settings(settings.read({}))
    assert hub.endpoint == HUB
    assert not hub.is_custom
    assert client.Hub.from_settings(settings.read({"HF_ENDPOINT": "https://hub.example"})).is_custom


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 507, 520, 599])
def test_a_busy_or_broken_hub_is_asked_again(status: int) -> None:
    assert isinstance(classify_status(status, None, "x"), AttemptFailed)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 409, 410, 416, 422, 451, 501, 505])
def test_a_refusal_is_final(status: int) -> None:
    error = classify_status(status, None, "x")
    assert isinstance(error, WeightsUnavailable)
    assert not error.retryable


@pytest.mark.parametrize("status", range(400, 600))
def test_a_proxy_s_status_is_tried_again_where_a_hub_s_is(status: int) -> None:
    is_tried = isinstance(classify_status(status, None, "x"), AttemptFailed)
    for error in (tunnel(status), httpx2.ProxyError(f"{status} said the proxy")):
        assert is_transient(error, custom_host=True) == is_tried


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    with running() as given:
        given.add("org/model", {"model_index.json": b"{}", "vae/config.json": b"{}"})
        yield given


def resolve(home: Path, **environ: str) -> Any:
    read = settings.read({"MODEL_DIR": str(home), **environ})
    return metadata.resolve("org/model", None, read, patience=QUICK)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Count the attempts of `metadata`."""
    attempts: list[str] = []
    ask = metadata.ask

    def counting(*given: Any) -> Any:
        attempts.append("asked")
        return ask(*given)

    monkeypatch.setattr(metadata, "ask", counting)
    return attempts


ENDPOINTS = {
    "no TLS there": "",
    "a broken name": "http://a..b",
    "a broken address": "http://[::1",
}


@pytest.mark.parametrize("kind", ENDPOINTS)
def test_a_wrong_endpoint_is_asked_once(
    kind: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = ENDPOINTS[kind] or hub.endpoint.replace("http:", "https:")
    attempts = counted(monkeypatch)
    with pytest.raises(WeightsUnavailable, match="HF_ENDPOINT") as caught:
        resolve(tmp_path, HF_ENDPOINT=endpoint)
    assert not caught.value.retryable
    assert len(attempts) == 1
    assert "127.0.0.1" not in caught.value.message


def test_a_hub_that_is_down_is_asked_as_often_as_patience_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    attempts = counted(monkeypatch)
    with pytest.raises(HubUnreachable):
        resolve(tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert len(attempts) == 3


def test_a_repository_without_files_is_empty_and_stays_so(hub: Hub, tmp_path: Path) -> None:
    hub.add("org/model", {})
    with pytest.raises(WeightsUnavailable, match="empty") as caught:
        resolve(tmp_path, HF_ENDPOINT=hub.endpoint)
    assert not caught.value.retryable
    assert len(hub.requests("info")) == 1


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
@pytest.mark.parametrize("value", ["1", "true", "YES", "on", "please"])
def test_offline_is_said_at_once_and_asks_nobody(
    variable: str, value: str, hub: Hub, tmp_path: Path
) -> None:
    with pytest.raises(WeightsUnavailable, match="HF_HUB_OFFLINE is set") as caught:
        resolve(tmp_path, HF_ENDPOINT=hub.endpoint, **{variable: value})
    assert not caught.value.retryable
    assert not hub.requests()


@pytest.mark.parametrize("value", ["0", "False", "OFF", "no", ""])
def test_a_no_is_not_offline(value: str, hub: Hub, tmp_path: Path) -> None:
    assert resolve(tmp_path, HF_ENDPOINT=hub.endpoint, HF_HUB_OFFLINE=value).files


def test_a_commit_that_is_known_does_not_bring_its_files_offline(hub: Hub, tmp_path: Path) -> None:
    resolve(tmp_path, HF_ENDPOINT=hub.endpoint)
    with pytest.raises(WeightsUnavailable, match="HF_HUB_OFFLINE is set"):
        resolve(tmp_path, HF_ENDPOINT=hub.endpoint, HF_HUB_OFFLINE="1")


def test_the_command_ends_offline_without_an_attempt(hub: Hub, tmp_path: Path) -> None:
    """As huggingface_hub itself reads the variable: at its import."""
    done = subprocess.run(
        [sys.executable, "-m", "worker", "prepare", "org/model", "--out", str(tmp_path)],
        env={
            "PATH": "/usr/bin:/bin",
            "HF_HUB_OFFLINE": "1",
            "HF_ENDPOINT": hub.endpoint,
            "RUNPOD_CACHE_DIR": str(tmp_path / "none"),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "WEIGHTS_UNAVAILABLE: org/model: HF_HUB_OFFLINE is set" in done.stderr
    assert "later" not in done.stderr
    assert "retry" not in done.stdout + done.stderr
    assert not hub.requests()


def test_huggingface_hub_s_own_offline_mode_is_final_too(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have been switched on where this worker's settings do not see it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    attempts = counted(monkeypatch)
    with pytest.raises(WeightsUnavailable, match="HF_HUB_OFFLINE") as caught:
        resolve(tmp_path, HF_ENDPOINT=hub.endpoint)
    assert not caught.value.retryable
    assert len(attempts) == 1
    (tmp_path / "x").write_bytes(b"x")
    read = settings.read({"HF_TOKEN": "hf_x", "HF_ENDPOINT": hub.endpoint})
    with pytest.raises(WeightsUnavailable, match="HF_HUB_OFFLINE") as caught:
        push.push({"x": tmp_path / "x"}, "org/model", read)
    assert not caught.value.retryable


@pytest.mark.parametrize(
    "location",
    ["ftp://elsewhere/x", "file:///etc/passwd", "http://[bad", "mailto:x", "http://h:x/"],
)
def test_a_redirect_to_what_is_no_web_address_is_final(
    location: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = resolve(tmp_path, HF_ENDPOINT=hub.endpoint)
    seen: list[str] = []
    request = requests.Session.request

    def redirected(self: requests.Session, method: str, url: str, **given: Any) -> Any:
        seen.append(url)
        response = request(self, method, url, **given)
        response.status_code = 302
        response.headers["Location"] = location
        return response

    monkeypatch.setattr(requests.Session, "request", redirected)
    with pytest.raises(WeightsUnavailable) as caught:
        snapshot.read_file(snapshot.files[0])
    assert not caught.value.retryable
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, "VOLUME_FULL"),
        (errno.EDQUOT, "VOLUME_FULL"),
        *(
            (number, "WEIGHTS_UNAVAILABLE")
            for number in (
                errno.EACCES,
                errno.EPERM,
                errno.EROFS,
                errno.ENAMETOOLONG,
                errno.ENOTDIR,
                errno.EISDIR,
                errno.EFBIG,
                errno.EIO,
                errno.ESTALE,
                errno.ELOOP,
            )
        ),
    ],
)
def test_what_a_disk_refuses_is_final_and_named(number: int, kind: str, tmp_path: Path) -> None:
    with (
        pytest.raises(WorkerError) as caught,
        space.translate_errors(10, tmp_path, settings.read({"MODEL_DIR": str(tmp_path)})),
    ):
        raise OSError(number, "said by the disk", str(tmp_path))
    assert caught.value.code == kind
    assert not caught.value.retryable
    assert str(tmp_path) not in caught.value.message


def test_a_name_too_long_for_the_disk_is_final(hub: Hub, tmp_path: Path) -> None:
    name = f"vae/{'x' * 300}.json"
    hub.add("org/model", {name: b"{}"})
    snapshot = resolve(tmp_path, HF_ENDPOINT=hub.endpoint)
    with pytest.raises(WeightsUnavailable, match="File name too long") as caught:
        snapshot.fetch_file(snapshot.files[0], tmp_path / "into")
    assert not caught.value.retryable


def test_what_is_not_about_the_disk_stays_what_it_is(tmp_path: Path) -> None:
    for error in (FileNotFoundError(errno.ENOENT, "gone"), OSError("no number")):
        with (
            pytest.raises(type(error)) as caught,
            space.translate_errors(10, tmp_path, settings.read({})),
        ):
            raise error
        assert caught.value is error


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:99999", "http://[::1", "foo://x", "hub"])
def test_an_address_that_is_none_is_final_for_files_too(endpoint: str) -> None:
    hub = client.Hub(endpoint, None)
    with pytest.raises(WeightsUnavailable, match="HF_ENDPOINT") as caught:
        hub.open(f"{endpoint}/x", QUICK, what="vae/config.json")
    assert not caught.value.retryable


@pytest.fixture
def unknown(tmp_path: Path) -> Iterator[str]:
    """The address of a server whose certificate is by an authority that nobody knows."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(Authority(tmp_path).issue("localhost"))
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        server.handle_error = lambda *_: None  # type: ignore[method-assign]  # it is hung up on
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"https://localhost:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def _by_huggingface_hub(endpoint: str) -> None:
    metadata.ask("org/model", None, client.Hub(endpoint, None), QUICK)


def _by_requests(endpoint: str) -> None:
    client.Hub(endpoint, None).open(f"{endpoint}/x", QUICK, what="x")


@pytest.mark.parametrize("ask", [_by_huggingface_hub, _by_requests])
def test_a_certificate_that_nobody_signed_is_final(
    ask: Callable[[str], None], unknown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real handshake."""
    monkeypatch.setenv("NO_PROXY", "localhost")
    with pytest.raises(WeightsUnavailable, match="certificate") as caught:
        ask(unknown)
    assert not caught.value.retryable


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (requests.ReadTimeout("x"), "did not answer in time"),
        (httpx.ReadTimeout("x"), "did not answer in time"),
        (TimeoutError("x"), "did not answer in time"),
        (urllib3.exceptions.ReadTimeoutError(None, "x", "x"), "did not answer in time"),  # type: ignore[arg-type] # of no pool
        (json.JSONDecodeError("x", "x", 0), "not one that a hub gives"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "x"), "not one that a hub gives"),
        (ConnectionResetError(errno.ECONNRESET, "x"), r"hung up \(ConnectionResetError\)"),
    ],
)
def test_what_may_pass_is_told_by_its_kind(error: Exception, said: str) -> None:
    found = classify_error(error, "org/model", custom_host=True)
    assert isinstance(found, AttemptFailed)
    assert re.search(said, found.reason)


SAID = {
    "offline": "HF_HUB_OFFLINE is set",
    "httpx2: a certificate": "certificate was not accepted",
    "requests: TLS failed, and nobody says how": "certificate was not accepted",
    "requests: a proxy forbids it": "the proxy refuses",
    "httpx2: a proxy forbids it": "the proxy refuses",
}


@pytest.mark.parametrize("kind", SAID)
def test_what_stays_is_told_by_its_cause(kind: str) -> None:
    for error in (FINAL[kind], caused(TypeError("outer"), FINAL[kind])):
        found = classify_error(error, "org/model", custom_host=True)
        assert isinstance(found, WeightsUnavailable)
        assert SAID[kind] in found.message


@pytest.mark.parametrize("kind", ["a bug", "requests: no address"])
def test_what_nobody_knows_is_told_by_its_name(kind: str) -> None:
    found = classify_error(FINAL[kind], "org/model", custom_host=True)
    assert isinstance(found, WeightsUnavailable)
    assert f"failed ({type(FINAL[kind]).__name__})" in found.message


def test_a_name_that_does_not_resolve_is_told() -> None:
    error = caused(requests.ConnectionError("x"), socket.gaierror(socket.EAI_NONAME, "x"))
    found = classify_error(error, "org/model", custom_host=True)
    assert isinstance(found, WeightsUnavailable)
    assert "name does not resolve" in found.message
