"""A worker that serves HTTP on loopback, in a process of its own, and those who call it."""

import contextlib
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import requests

from worlds.pod import HANG_S
from worlds.ports import take_port
from worlds.process import Process
from worlds.standin import COMMAND


class Doorway:
    """The process and its address; a context manager."""

    def __init__(
        self,
        environ: Mapping[str, str] | None = None,
        command: Sequence[str] = COMMAND,
        *,
        cwd: Path | None = None,
    ) -> None:
        self.port = take_port()
        self.process = Process(
            command, {"PORT": str(self.port), "SERVE": "http", **(environ or {})}, cwd=cwd
        )
        self.session = requests.Session()
        self.session.trust_env = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *given: object) -> None:
        self.session.close()
        self.process.__exit__(*given)

    @property
    def url(self) -> str:
        """The door's address."""
        return f"http://127.0.0.1:{self.port}"

    def call(self, method: str, path: str, **named: Any) -> requests.Response:
        """Send one request, and return the response."""
        return self.session.request(method, self.url + path, timeout=HANG_S, **named)

    def get(self, path: str, **named: Any) -> requests.Response:
        """Get a path."""
        return self.call("GET", path, **named)

    def post(self, path: str, body: Any, **named: Any) -> requests.Response:
        """Post JSON."""
        return self.call("POST", path, json=body, **named)

    def ping(self) -> int | None:
        """Return the status of a health check, None while nothing listens."""
        try:
            return self.get("/ping").status_code
        except requests.ConnectionError:
            return None

    def opened(self, status: int = 200) -> Self:
        """Wait until a health check has that status."""
        end = time.monotonic() + HANG_S
        while self.ping() != status:
            assert self.process.running, self.process.stderr
            assert time.monotonic() < end, self.process.stderr
            time.sleep(0.02)
        return self

    def dial(self) -> socket.socket:
        """Return a connection of one's own."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=HANG_S)

    def send(self, data: bytes) -> bytes:
        """Send bytes on a connection of one's own, and return all that comes until it is closed."""
        received = b""
        with self.dial() as line, contextlib.suppress(ConnectionError):
            line.sendall(data)
            while more := line.recv(65536):
                received += more
        return received
