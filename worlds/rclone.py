"""A real S3 server (rclone's) on loopback, whose buckets are folders; `make stores` installs it."""

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final, Self

from worlds.bucket import ACCESS, HOST, SECRET

BINARY: Final = Path(sys.executable).with_name("rclone")
STARTED: Final = re.compile(r"Starting s3 server on \[http://[0-9.]+:([0-9]+)/")


class Rclone:
    """The server with one bucket, addressed by path or by host; a context manager.

    It checks signatures, but no region. `virtual` makes it take the bucket's name from the first
    label of the host.
    """

    def __init__(self, bucket: str, *, virtual: bool) -> None:
        self._virtual = virtual
        self._folder = tempfile.TemporaryDirectory(prefix="rclone-")
        self._bucket = Path(self._folder.name) / bucket
        self._bucket.mkdir()

    def __enter__(self) -> Self:
        command = [str(BINARY), "serve", "s3", "--config", "", "--addr", f"{HOST}:0"]
        command += ["--auth-key", f"{ACCESS},{SECRET}", "--vfs-cache-mode", "off"]
        command += [f"--force-path-style={str(not self._virtual).lower()}", self._folder.name]
        log = Path(self._folder.name).with_suffix(".log")
        with log.open("w") as stream:
            self._server = subprocess.Popen(command, stderr=stream)
        while not (started := STARTED.search(log.read_text())):
            assert self._server.poll() is None, log.read_text()
        log.unlink()
        self.port = int(started[1])
        return self

    def __exit__(self, *_: object) -> None:
        self._server.kill()
        self._server.wait()
        self._folder.cleanup()

    def objects(self) -> dict[str, bytes]:
        """Return every object of the bucket by its key."""
        files = (path for path in self._bucket.rglob("*") if path.is_file())
        return {str(path.relative_to(self._bucket)): path.read_bytes() for path in files}
