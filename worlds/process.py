"""A subprocess in a clean environment: its output goes to files, and no child of it survives."""

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Self


class Process:
    """A subprocess with only the given environment and its output in files; a context manager.

    A mark in the environment identifies it and its descendants: at the end of the context those
    still alive are killed, orphans included.
    """

    def __init__(
        self,
        command: Sequence[str],
        environ: Mapping[str, str],
        *,
        cwd: Path | None = None,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="worker-")
        folder = Path(self._folder.name)
        self.stdout_path, self.stderr_path = folder / "stdout", folder / "stderr"
        self._mark = f"WORKER_WORLD={uuid.uuid4().hex}"
        inherited = ("PATH", "LANG", "LD_LIBRARY_PATH", "OMP_NUM_THREADS")
        full = {name: os.environ[name] for name in inherited if name in os.environ}
        full.setdefault("OMP_NUM_THREADS", "1")
        # An empty home keeps the developer's own RunPod credentials out.
        full |= {"HOME": self._folder.name, "TMPDIR": self._folder.name, "PYTHONUNBUFFERED": "1"}
        name, _, value = self._mark.partition("=")
        full |= {**environ, name: value}
        self._files: list[IO[bytes]] = [
            self.stdout_path.open("wb"),
            self.stderr_path.open("wb"),
        ]
        self.started = time.monotonic()
        self._process = subprocess.Popen(
            list(command),
            env=full,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=self._files[0],
            stderr=self._files[1],
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for pid in self.relatives():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait(60)
        for file in self._files:
            file.close()
        self._folder.cleanup()

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it is still running."""
        return self._process.poll() is None

    def send(self, signum: int) -> None:
        """Send it a signal."""
        self._process.send_signal(signum)

    def wait(self, timeout_s: float = 60.0) -> int:
        """Wait until it exits, and return its exit code."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"still running after {timeout_s} s\n{self.stderr}") from None

    @property
    def stdout(self) -> str:
        """What it has written to standard output."""
        return self.stdout_path.read_text("utf-8", errors="replace")

    @property
    def stderr(self) -> str:
        """What it has written to standard error."""
        return self.stderr_path.read_text("utf-8", errors="replace")

    def log(self, event: str) -> list[dict[str, Any]]:
        """Return its log lines of one event."""
        lines = []
        for line in self.stderr.splitlines():
            with contextlib.suppress(ValueError):
                entry = json.loads(line)
                if isinstance(entry, dict) and entry.get("event") == event:
                    lines.append(entry)
        return lines

    def relatives(self) -> list[int]:
        """Return the ids of this process and all its descendants that are alive, oldest first."""
        alive = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    marked = self._mark.encode() in (entry / "environ").read_bytes().split(b"\0")
                    # proc_pid_stat(5): the state follows the name, the start time 19 words later
                    state = (entry / "stat").read_text().rpartition(")")[2].split()
                    if marked and state[0] != "Z":
                        alive.append((int(state[19]), int(entry.name)))
        return [pid for _, pid in sorted(alive)]
