"""HTTP as a door: it listens first, opens once the worker is warm, and leaves without a loss."""

import contextlib
import queue
import signal
from collections.abc import Callable
from typing import Any

from worker import log
from worker.doors.http.app import make_app, make_checks
from worker.doors.http.desk import Desk
from worker.doors.http.server import Server
from worker.errors import WorkerError
from worker.jobs.job import Handle
from worker.settings import Settings

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Http:
    """The door of a worker that is called by HTTP, in one run.

    The exit code is 0 after SIGTERM or SIGINT.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._server = Server()
        # reentrant: a signal's handler may interrupt what waits for it
        self._reasons: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._desk: Desk | None = None

    def listen(self) -> None:
        """Answer health checks from now on; see Door. Raises OSError where the port is taken."""
        settings = self._settings

        def make_apps() -> list[Any]:
            self._desk = Desk(settings, self._ask_to_leave)
            main = (settings.http_host.strip("[]"), settings.http_port)
            found: list[Any] = [(main, make_app(settings, self._desk))]
            if settings.port_health not in (None, settings.http_port):
                checks = (main[0], settings.port_health)
                found.append((checks, make_checks(settings, self._desk)))
            return found

        self._server.start(make_apps)
        log.get().info("listens", host=settings.http_host, port=settings.http_port)

    def serve(self, handle: Handle, until: Callable[[], bool]) -> int:
        """Serve jobs until asked to leave; see Door."""
        desk = self._require_desk()

        async def open_desk() -> None:
            desk.open_for(handle, until)

        self._server.call(open_desk())
        log.get().info("ready")
        self._wait(None)
        self._leave(desk)
        return 0

    def refuse(self, error: WorkerError, seconds: float) -> None:
        """Answer every request with why the start failed; see Door."""
        if self._desk is None:
            self.listen()
        desk = self._require_desk()

        async def close_desk() -> None:
            desk.close_for(error)

        self._server.call(close_desk())
        self._wait(seconds)
        self._leave(desk)

    def _require_desk(self) -> Desk:
        if self._desk is None:
            raise RuntimeError("the door does not listen yet")
        return self._desk

    def _wait(self, seconds: float | None) -> None:
        """Wait until asked to leave, by a signal or by a job after which no more can be done."""
        for one in SIGNALS:
            signal.signal(one, self._note_signal)
        with contextlib.suppress(queue.Empty):
            self._reasons.get(timeout=seconds)

    def _note_signal(self, signum: int, frame: object) -> None:
        del frame
        log.get().info("leaving", signal=signal.Signals(signum).name)
        self._ask_to_leave()

    def _ask_to_leave(self) -> None:
        self._reasons.put(None)

    def _leave(self, desk: Desk) -> None:
        """Refuse new work, finish what was taken, then close."""

        async def finish() -> None:
            await desk.finish()

        self._server.call(finish())
        self._server.stop()
