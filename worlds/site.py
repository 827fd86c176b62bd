"""A hostile web site on loopback, with its own name server and a tap on every dialled address.

Its pages misbehave by path (see `Site.serve`); its names resolve to what a test says, even to a new
address each time. 127.0.0.2 stands for the inside of a network: no caller may ever make the worker
connect there.
"""

import asyncio
import contextlib
import socket
import ssl
import struct
import sys
import threading
import zlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import parse_qs, urlsplit

from worlds.certificates import Authority

HOST: Final = "127.0.0.1"
INSIDE: Final = "127.0.0.2"
Answer = list[str] | Callable[[], list[str]]

_taps: list[list[tuple[Any, ...]]] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.connect" and _taps and isinstance(arguments[1], tuple):
        for tap in _taps:
            tap.append(arguments[1])


sys.addaudithook(_audit)


@contextlib.contextmanager
def tapped() -> Iterator[list[tuple[Any, ...]]]:
    """Collect the address of every `connect` that this process makes through Python's sockets."""
    tap: list[tuple[Any, ...]] = []
    _taps.append(tap)
    try:
        yield tap
    finally:
        _taps.remove(tap)


class Names(asyncio.DatagramProtocol):
    """A name server over UDP: A and AAAA from `answers`, NXDOMAIN for every other name."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.asked: list[str] = []
        self._transport: Any = None
        self._answered: dict[bytes, list[str]] = {}

    def connection_made(self, transport: Any) -> None:
        """Keep the transport to answer on."""
        self._transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        """Answer one question."""
        labels, at = [], 12
        while data[at]:
            labels.append(data[at + 1 : at + 1 + data[at]].decode("ascii"))
            at += 1 + data[at]
        kind = struct.unpack(">H", data[at + 1 : at + 3])[0]
        name = ".".join(labels).lower()
        self.asked.append(name)
        answer = self.answers.get(name)
        if answer == ["silence"]:
            return
        if answer == ["trouble"]:  # SERVFAIL: no answer for now
            self._transport.sendto(data[:2] + b"\x81\x82" + data[4:6] + bytes(6) + data[12:], addr)
            return
        if callable(answer):
            # a repeated question, as to a slow server, gets the same answer
            addresses = self._answered.get(data) or self._answered.setdefault(data, answer())
        else:
            addresses = answer or []
        records = b""
        count = 0
        for address in addresses:
            packed = socket.inet_pton(
                socket.AF_INET6 if ":" in address else socket.AF_INET, address
            )
            if (kind == 1 and len(packed) == 4) or (kind == 28 and len(packed) == 16):
                records += struct.pack(">HHHIH", 0xC00C, kind, 1, 0, len(packed)) + packed
                count += 1
        status = 0x8180 if answer is not None else 0x8183
        head = data[:2] + struct.pack(">HHHHH", status, 1, count, 0, 0)
        self._transport.sendto(head + data[12 : at + 5] + records, addr)


class Site:
    """The site, its names and its insides, served from a thread; a context manager.

    `files` maps a path to the bytes it serves; `hits` are the requested paths; `intruders` counts
    connections to the inside; `stored` is what was PUT; `headers` are the last request's. A PUT is
    answered with the next of `put_answers` as it stands (and then nothing more comes if
    `falls_silent`), else with the next of `put_statuses`, else with 200. A name whose answer is
    ["silence"] gets none, and one whose answer is ["trouble"] gets SERVFAIL.
    """

    def __init__(self, folder: Path) -> None:
        authority = Authority(folder)
        self.authority = authority.file
        self._certificate = authority.issue("site.test", "other.test", "*.site.test")
        self.names = Names()
        self.files: dict[str, bytes] = {}
        self.stored: dict[str, bytes] = {}
        self.put_statuses: list[int] = []
        self.put_answers: list[bytes] = []
        self.falls_silent = False
        self.hits: list[str] = []
        self.method = ""
        self.headers: dict[str, str] = {}
        self._arrived = threading.Condition()
        self.intruders = 0
        self.released = threading.Event()  # releases what waits
        self.http_port = self.https_port = self.dns_port = 0
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._ready = threading.Event()
        self._servers: list[asyncio.Server] = []

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(60)

    @property
    def http(self) -> str:
        """The site's address without TLS."""
        return f"http://{HOST}:{self.http_port}"

    @property
    def https(self) -> str:
        """The site's address with TLS, by the name that its certificate is for."""
        return f"https://site.test:{self.https_port}"

    @property
    def environ(self) -> dict[str, str]:
        """The settings that open the site, and nothing else, to the worker."""
        return {
            "ALLOWED_IMAGE_NETWORKS": f"{HOST}/32:{self.http_port},{HOST}/32:{self.https_port}",
            "FETCH_NAMESERVERS": f"{HOST}:{self.dns_port}",
        }

    def wait_for(self, target: str, timeout_s: float = 60) -> None:
        """Wait until `target` has been requested."""
        with self._arrived:
            assert self._arrived.wait_for(lambda: target in self.hits, timeout_s), target

    def allows(self, addresses: Iterable[tuple[Any, ...]]) -> bool:
        """Return whether every dialled address is one that `environ` opens."""
        opened = {(HOST, self.http_port), (HOST, self.https_port)}
        return all(tuple(address[:2]) in opened for address in addresses)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._open())
        self._ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(self._close())
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    async def _close(self) -> None:
        """Close every connection and wait: one left open would cause a warning in the next test."""
        for server in self._servers:
            server.close()
        tasks, writers = set(self._tasks), set(self._writers)
        for writer in writers:
            # Python 3.11.2 raises where a connection with TLS is gone already
            with contextlib.suppress(AttributeError):
                writer.transport.abort()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in writers:
            # a task that was cancelled while it waited for this has cancelled it too
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()
        self._datagrams.close()
        await asyncio.sleep(0)

    async def _listen(self, context: ssl.SSLContext | None) -> int:
        """Listen on one port of HOST and INSIDE that is free at both, and return it."""
        while True:
            outer = await asyncio.start_server(self._accept, HOST, 0, ssl=context, backlog=256)
            port: int = outer.sockets[0].getsockname()[1]
            try:
                inner = await asyncio.start_server(self._intrude, INSIDE, port)
            except OSError:  # another test's hub may use it
                outer.close()
                continue
            self._servers += [outer, inner]
            return port

    async def _open(self) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._certificate)
        self.http_port = await self._listen(None)
        self.https_port = await self._listen(context)
        self._datagrams, _ = await self._loop.create_datagram_endpoint(
            lambda: self.names, local_addr=(HOST, 0)
        )
        self.dns_port = self._datagrams.get_extra_info("sockname")[1]
        for name in ("site.test", "other.test", "a.site.test"):
            self.names.answers[name] = [HOST]

    async def _intrude(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.intruders += 1
        writer.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._writers.add(writer)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            method, target, _ = head.split("\r\n")[0].split(" ", 2)
            self.method = method
            self.headers = {
                name.strip().lower(): value.strip()
                for name, _, value in (line.partition(":") for line in head.split("\r\n")[1:])
            }
            with self._arrived:
                self.hits.append(target)
                self._arrived.notify_all()
            if method == "PUT":
                body = await reader.readexactly(int(self.headers.get("content-length", "0")))
                await self._answer_put(target, body, writer)
            else:
                async for part in self.serve(target):
                    if writer.is_closing():  # over TLS such a write raises nothing
                        break
                    writer.write(part)
                    await writer.drain()
                    # drain may return at once, and then the peer's leaving goes unnoticed
                    await asyncio.sleep(0)
        with contextlib.suppress(OSError, asyncio.CancelledError):
            writer.close()
            await writer.wait_closed()
        self._writers.discard(writer)

    async def _answer_put(self, target: str, body: bytes, writer: asyncio.StreamWriter) -> None:
        if self.put_answers:
            writer.write(self.put_answers.pop(0))
            if self.falls_silent:
                await asyncio.sleep(3600)
            return
        status = self.put_statuses.pop(0) if self.put_statuses else 200
        if status == 200:
            self.stored[target] = body
        if status < 0:  # never answers
            await asyncio.sleep(3600)
        writer.write(_answer(status))

    async def serve(self, target: str) -> AsyncIterator[bytes]:  # noqa: C901, PLR0912, PLR0915 - one case per misdeed
        """Yield the raw bytes that answer a request for `target`."""
        path, query = (
            urlsplit(target).path,
            parse_qs(urlsplit(target).query, keep_blank_values=True),
        )
        picture = self.files.get("/good.png", b"")
        word = path.strip("/").split("/")[0]
        if path in self.files:
            yield _answer(200, self.files[path])
        elif word == "status":
            yield _answer(int(path.rpartition("/")[2]))
        elif word == "to":
            status = int(query.get("status", ["302"])[0])
            yield _answer(status, headers=f"Location: {query['url'][0]}\r\n")
        elif word == "hops":
            left = int(path.rpartition("/")[2])
            where = f"/hops/{left - 1}" if left else "/good.png"
            yield _answer(302, headers=f"Location: {where}\r\n")
        elif word == "nowhere":
            yield _answer(302)
        elif word == "drip":
            yield _head(200, f"Content-Length: {len(picture)}\r\n")
            for at in range(len(picture)):
                yield picture[at : at + 1]
                await asyncio.sleep(0.1)
        elif word == "slow-head":
            for character in "HTTP/1.1 200 OK\r\n" + "X: y\r\n" * 1000:
                yield character.encode()
                await asyncio.sleep(0.1)
        elif word == "silent":
            await asyncio.sleep(3600)
        elif word == "endless":
            yield _head(200, "")
            while True:
                yield bytes(1 << 16)
        elif word == "endless-after":
            yield _head(200, "") + picture
            while True:
                yield bytes(1 << 16)
        elif word == "waits":
            yield _head(200, f"Content-Length: {len(picture)}\r\n") + picture[:40]
            await asyncio.to_thread(self.released.wait, 60)
            yield picture[40:]
        elif word == "endless-chunks":
            yield _head(200, "Transfer-Encoding: chunked\r\n")
            while True:
                yield b"10000\r\n" + bytes(1 << 16) + b"\r\n"
        elif word == "tiny-chunks":
            yield _head(200, "Transfer-Encoding: chunked\r\n")
            while True:
                yield b"1\r\n\x00\r\n" * 4096
        elif word == "claims":
            yield _head(200, f"Content-Length: {query['bytes'][0]}\r\n")
            yield picture
        elif word == "coded":
            body = self.files["/" + path.split("/", 2)[2]]
            lines = "".join(f"Content-Encoding: {name}\r\n" for name in query["as"])
            yield _answer(200, body, headers=lines)
        elif word == "tagged":
            body = self.files["/" + path.split("/", 2)[2]]
            tag = f'"{zlib.crc32(body)}"'
            is_known = self.headers.get("if-none-match") == tag
            status, sent = (304, b"") if is_known else (200, body)
            yield _answer(status, sent, headers=f"ETag: {tag}\r\n")
        elif word == "latin":
            yield _head(302, "Location: /caf\udce9.png\r\n")
        elif word == "short":
            yield _head(200, f"Content-Length: {len(picture) + 10}\r\n") + picture
        elif word == "cut-chunks":
            yield _head(200, "Transfer-Encoding: chunked\r\n")
            yield b"%x\r\n" % len(picture) + picture + b"\r\n"
        elif word == "bad-chunks":
            yield _head(200, "Transfer-Encoding: chunked\r\n") + b"zz\r\n" + picture
        elif word == "both-lengths":
            yield _head(200, "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n") + b"0\r\n\r\n"
        elif word == "two-lengths":
            yield _head(200, "Content-Length: 5\r\nContent-Length: 9\r\n") + b"hello"
        elif word == "no-http":
            yield b"SSH-2.0-OpenSSH_9.6\r\n"
        elif word == "nothing":
            yield b""
        elif word == "header-flood":
            yield b"HTTP/1.1 200 OK\r\n"
            while True:
                yield b"X-Flood: yes\r\n" * 1000
        elif word == "long-header":
            yield b"HTTP/1.1 200 OK\r\nX-Long: " + b"a" * 1_000_000 + b"\r\n\r\n"
        elif word == "continue-flood":
            while True:
                yield b"HTTP/1.1 100 Continue\r\n\r\n" * 100
        elif word == "cookie":
            yield _answer(302, headers="Set-Cookie: a=b\r\nLocation: /good.png\r\n")
        elif word == "upgrade":
            yield b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n"
        elif word == "partial":
            yield _answer(206, picture)
        elif word == "html":
            yield _answer(200, b"<!doctype html><title>Sign in</title>" * 20)
        else:
            yield _answer(404, b"not here")


def make_refusal(status: int, body: bytes, headers: str = "") -> bytes:
    """Return the raw answer of a store that refuses a request."""
    return _answer(status, body, headers)


def _head(status: int, headers: str) -> bytes:
    return f"HTTP/1.1 {status} Status\r\n{headers}Connection: close\r\n\r\n".encode(
        errors="surrogateescape"
    )


def _answer(status: int, body: bytes = b"", headers: str = "") -> bytes:
    return _head(status, f"Content-Length: {len(body)}\r\n{headers}") + body
