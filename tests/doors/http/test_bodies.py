"""A request's body as it is read: its limits, its time, and what a form's fields become."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.streams import StreamReader
from aiohttp.test_utils import TestServer, make_mocked_request

from worker import settings
from worker.doors.http import body
from worker.doors.http.around import make_guarded_app
from worker.doors.http.body import read_form, read_json
from worker.doors.http.guard import Guard
from worker.doors.http.responses import Refused, make_json

HANG_S = 20.0
MOST, MOST_IMAGE = 100_000, 60_000
CHOSEN = settings.read({"MAX_BODY_BYTES": str(MOST), "MAX_IMAGE_BYTES": str(MOST_IMAGE)})
SWITCHES = frozenset({"fast", "lightning"})
JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "multipart/form-data; boundary=b"}

Call = Callable[[aiohttp.ClientSession, int], Awaitable[Any]]


def called(call: Call) -> Any:
    """Return what a caller gets of one who answers each body with what it is read as."""

    async def show_json(request: web.Request) -> web.Response:
        return make_json(await read_json(request, CHOSEN))

    async def show_form(request: web.Request) -> web.Response:
        return make_json(await read_form(request, CHOSEN, SWITCHES))

    async def case() -> Any:
        app = make_guarded_app(Guard(CHOSEN, ()))
        app.add_routes([web.post("/json", show_json), web.post("/form", show_form)])
        async with (
            asyncio.timeout(HANG_S),
            TestServer(app) as server,
            aiohttp.ClientSession(str(server.make_url("/"))) as session,
        ):
            assert server.port is not None
            return await call(session, server.port)

    return asyncio.run(case())


def posted(path: str, data: Any, headers: Any) -> tuple[int, Any]:
    """Return the status and the JSON of the answer to one body."""

    async def call(session: aiohttp.ClientSession, _: int) -> tuple[int, Any]:
        async with session.post(path, data=data, headers=headers) as response:
            return response.status, await response.json()

    return called(call)  # type: ignore[no-any-return] # what `call` returns


def part(name: str, data: bytes, *, is_file: bool = False) -> bytes:
    more = '; filename="a"' if is_file else ""
    head = f'--b\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'
    return head.encode() + data + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--b--\r\n"


async def in_chunks(*chunks: bytes) -> AsyncIterator[bytes]:
    """Yield bytes whose number nobody declares."""
    for chunk in chunks:
        yield chunk


async def stall(*chunks: bytes) -> AsyncIterator[bytes]:
    """Yield bytes and never end."""
    for chunk in chunks:
        yield chunk
    await asyncio.Event().wait()


def test_fields_of_a_form_are_texts_but_for_files_switches_and_lists() -> None:
    """One that is given again, or whose name ends with [], is a list; a word of a switch is not."""
    texts = {"prompt": b"true", "fast": b"TRUE", "lightning": b"false", "n": b"2"}
    files = [("image", b"1"), ("image", b"2"), ("image", b"3"), ("images[]", b"4")]
    parts = [part(name, text) for name, text in texts.items()]
    parts += [part(name, data, is_file=True) for name, data in files]
    one, two, three, four = (base64.b64encode(data).decode() for _, data in files)
    expected = {"prompt": "true", "fast": True, "lightning": False, "n": "2"}
    expected |= {"image": [one, two, three], "images[]": [four]}
    assert posted("/form", form(*parts), FORM) == (200, expected)


@pytest.mark.parametrize("is_declared", [True, False], ids=["declared", "in chunks"])
@pytest.mark.parametrize(("size", "status"), [(MOST, 200), (MOST + 1, 413)])
def test_a_body_has_so_many_bytes(size: int, status: int, *, is_declared: bool) -> None:
    data = json.dumps("x" * (size - 2)).encode()
    assert len(data) == size
    found, answer = posted("/json", data if is_declared else in_chunks(data), JSON)
    assert found == status
    if status == 413:
        message = f"the body may have at most {MOST} bytes"
        assert (answer["error"]["message"], answer["error"]["param"]) == (message, None)


@pytest.mark.parametrize(("path", "headers"), [("/json", JSON), ("/form", FORM)])
def test_a_body_that_is_declared_too_large_is_refused_before_it_comes(
    path: str, headers: dict[str, str]
) -> None:
    async def call(_: aiohttp.ClientSession, port: int) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {MOST + 1}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        writer.write("\r\n".join([*lines, "", ""]).encode())
        line = await reader.readline()
        writer.close()
        await writer.wait_closed()
        return line

    assert called(call).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(("size", "status"), [(MOST - MOST_IMAGE, 200), (MOST - 59_999, 413)])
def test_the_parts_of_a_form_have_no_more_bytes_than_a_body(size: int, status: int) -> None:
    """Also where their number is not declared."""
    files = [part("image", bytes(count), is_file=True) for count in (MOST_IMAGE, size)]
    found, answer = posted("/form", in_chunks(form(*files)), FORM)
    assert found == status
    if status == 413:
        assert answer["error"]["message"] == f"image may have at most {size - 1} bytes"


@pytest.mark.parametrize("size", [MOST_IMAGE, MOST_IMAGE + 1])
@pytest.mark.parametrize("name", ["other", *body.FILE_FIELDS])
def test_a_picture_as_text_has_so_many_bytes_as_one_that_is_a_file(name: str, size: int) -> None:
    found, _ = posted("/form", form(part(name, b"x" * size)), FORM)
    assert found == (413 if name != "other" and size > MOST_IMAGE else 200)


def test_fields_that_may_have_pictures_as_text_are_those_that_are_read_as_pictures() -> None:
    names = {"image", "image[]", "images", "images[]", "mask", "image_2", "image_3", "image_4"}
    assert set(body.FILE_FIELDS) == names


def test_of_a_long_name_there_are_60_characters() -> None:
    data = form(part("n" * 61, bytes(65_537)))
    _, answer = posted("/form", data, FORM)
    error = answer["error"]
    assert error["param"] == "n" * 60
    assert error["message"] == f"{'n' * 60} may have at most 65536 bytes"


@pytest.mark.parametrize(
    ("path", "headers", "chunks"),
    [
        ("/json", JSON, [b"{"]),
        ("/form", FORM, [b"--b\r\n"]),
        ("/form", FORM, [form(part("prompt", b"x"))]),
    ],
    ids=["json", "form", "all but its end"],
)
def test_a_body_that_does_not_come_in_time_is_refused(
    path: str, headers: dict[str, str], chunks: Sequence[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body, "SEND_S", 0.25)

    async def call(session: aiohttp.ClientSession, _: int) -> tuple[int, Any]:
        async with session.post(path, data=stall(*chunks), headers=headers) as response:
            return response.status, await response.json()

    status, answer = called(call)
    assert (status, answer["error"]["code"]) == (408, "request_timeout")
    assert answer["error"]["message"] == "the body did not arrive within 0.25 s"


@pytest.mark.parametrize("codings", [("gzip", "identity"), ("identity", "gzip")])
def test_a_compression_is_found_in_any_of_several_headers(codings: tuple[str, str]) -> None:
    headers = [*JSON.items(), *(("Content-Encoding", coding) for coding in codings)]
    assert posted("/json", b"1", headers)[0] == 415


@pytest.mark.parametrize(
    ("headers", "code"), [(JSON, "invalid_body"), (FORM, "invalid_form")], ids=["json", "form"]
)
def test_a_body_that_the_server_finds_broken_is_refused(headers: dict[str, str], code: str) -> None:
    async def case() -> str:
        protocol = BaseProtocol(asyncio.get_running_loop())
        stream = StreamReader(protocol, 2**16, loop=asyncio.get_running_loop())
        stream.set_exception(web.RequestPayloadError())
        request = make_mocked_request("POST", "/", headers, payload=stream)
        is_json = headers == JSON
        reading = read_json(request, CHOSEN) if is_json else read_form(request, CHOSEN, SWITCHES)
        with pytest.raises(Refused) as refused:
            await reading
        assert refused.value.status == 400
        return refused.value.code

    assert asyncio.run(case()) == code
