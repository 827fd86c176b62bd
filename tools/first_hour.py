"""The first hour of a newcomer: README and docs, command by command, in a fresh Debian.

    make first-hour

Needs root and Debian or Ubuntu, as tools/image_check.py does. What calls RunPod's API reaches the
worker of the fresh root: worlds/pod.py is api.runpod.ai there, behind TLS. A command that fails, a
picture that is none, or a block that is neither run nor marked ends it with 1.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Final, Self

from tools.blocks import CALLERS, Block, list_blocks
from tools.debian import Buildah
from worlds.certificates import Authority
from worlds.pod import KEY, Pod

HERE: Final = Path(__file__).resolve().parent.parent
FOLDER: Final = HERE / "out" / "first-hour"
SUITE: Final = "bookworm"
# What README says that the project needs, and what the pages say that a caller needs.
README_NEEDS: Final = ("bash", "make", "git", "python3")
CALLER_NEEDS: Final = ("curl", "jq", "nodejs", "npm")
OURS: Final = ("ca-certificates", "socat")
PROJECT: Final = "/root/worker"
CALLS: Final = "/root/calls"
CERTIFICATES: Final = "/root/certificates"
TRUST: Final = "trust.pem"
SYSTEM_TRUST: Final = "/etc/ssl/certs/ca-certificates.crt"
PNG: Final = b"\x89PNG\r\n\x1a\n"
START_S: Final = 300.0
BLOCK_S: Final = 3600.0  # a command that has not ended by then never will


def say(text: str) -> None:
    """Print one line at once, so that a long run can be followed."""
    print(f"first-hour: {text}", flush=True)


def read_pages() -> list[Block]:
    """Return the blocks of README and docs/, in the order in which they are read."""
    pages = [HERE / "README.md", *sorted((HERE / "docs").glob("*.md"))]
    return [
        block
        for page in pages
        for block in list_blocks(page.relative_to(HERE).as_posix(), page.read_text("utf-8"))
    ]


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a process and what it started, and wait for it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class Newcomer:
    """A fresh Debian with this project's last commit, and a worker there once it is called."""

    def __init__(self, buildah: Buildah) -> None:
        self._buildah = buildah
        debian = buildah.make_debian(SUITE)
        host = "--add-host=api.runpod.ai:127.0.0.1"
        self._container = buildah.call("from", "--pull-never", host, debian)
        self._root = Path(buildah.call("mount", self._container))
        self._api: Pod | None = None
        self._open = contextlib.ExitStack()
        self._started: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        packages = " ".join((*OURS, *README_NEEDS, *CALLER_NEEDS))
        self.run(f"apt-get update -qq && apt-get install -qqy {packages} >/dev/null", "/")
        target = self._root / PROJECT.removeprefix("/")
        words = ("git", "clone", "--quiet", "--no-local", str(HERE), str(target))
        subprocess.run(words, check=True)
        for folder in (CALLS, CERTIFICATES):
            (self._root / folder.removeprefix("/")).mkdir()
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._started:
            end_group(process)
        self._open.close()

    def _start(self, folder: str, *words: str) -> subprocess.Popen[bytes]:
        return self._buildah.start(self._container, folder, *words, start_new_session=True)

    def _finish(self, folder: str, *words: str) -> None:
        """Wait for a command; raises SubprocessError if it fails or does not end."""
        process = self._start(folder, *words)
        try:
            code = process.wait(BLOCK_S)
        finally:
            end_group(process)
        if code:
            raise subprocess.CalledProcessError(code, words[-1])

    def run(self, script: str, folder: str = PROJECT) -> None:
        """Run a script as a newcomer would; raises SubprocessError if a command fails."""
        self._finish(folder, "bash", "-euo", "pipefail", "-c", script)

    def call(self, block: Block) -> None:
        """Run a block as a caller; its jobs must complete, and its pictures must be pictures.

        Raises SubprocessError or ValueError.
        """
        if self._api is None:
            self._api = self._serve()
        trust = f"{CERTIFICATES}/{TRUST}"
        names = ("CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS")
        environ = [f"{name}={trust}" for name in names]
        environ += [f"ENDPOINT_ID={self._api.endpoint}", f"RUNPOD_API_KEY={KEY}"]
        environ += [f"PATH={PROJECT}/.venv/bin:/usr/bin:/bin"]
        calls = self._root / CALLS.removeprefix("/")
        if block.language in CALLERS:
            script = f"block.{CALLERS[block.language]}"
            (calls / script).write_text(block.text)
            words = ["python" if block.language == "python" else "node", script]
        else:
            words = ["bash", "-euo", "pipefail", "-c", block.text]
        self._finish(CALLS, "env", *environ, *words)
        if failed := [job.error for job in self._api.jobs.values() if job.status != "COMPLETED"]:
            raise ValueError(f"jobs failed: {failed}")
        for picture in calls.glob("*.png"):
            if not picture.read_bytes().startswith(PNG):
                raise ValueError(f"{picture.name} is not a picture: {picture.read_bytes()[:80]!r}")

    def _serve(self) -> Pod:
        folder = self._root / CERTIFICATES.removeprefix("/")
        pem = Authority(folder).issue("api.runpod.ai")
        authority, known = folder / "authority.pem", os.environ.get("SSL_CERT_FILE", SYSTEM_TRUST)
        (folder / TRUST).write_bytes(authority.read_bytes() + Path(known).read_bytes())
        pod = self._open.enter_context(Pod())
        environ = [
            f"{k}={v}" for k, v in {**pod.environment(), "MODEL": "tiny,tiny-speech"}.items()
        ]
        worker = (f"{PROJECT}/.venv/bin/python", "handler.py")
        process = self._start(PROJECT, "env", *environ, *worker)
        self._started.append(process)
        port = pod.base.rpartition(":")[2].partition("/")[0]
        listen = f"OPENSSL-LISTEN:443,bind=127.0.0.1,reuseaddr,fork,verify=0,cert={CERTIFICATES}"
        tls = ("socat", f"{listen}/{pem.name}", f"TCP:127.0.0.1:{port}")
        self._started.append(self._start("/", *tls))
        pod.until(lambda: pod.seen("poll") or process.poll() is not None, START_S)
        if not pod.seen("poll"):
            raise subprocess.CalledProcessError(process.wait(), worker)
        return pod


def main() -> int:
    """Run or skip every block, and return 1 if one failed."""
    parser = argparse.ArgumentParser(description="Run README and docs in a fresh Debian.")
    parser.add_argument("--keep", action="store_true", help="keep the root in out/first-hour")
    given = parser.parse_args()
    uses = [(block, block.choose_use()) for block in read_pages()]
    failed = []
    begin = time.monotonic()
    with Buildah(FOLDER, keep=given.keep) as buildah, Newcomer(buildah) as newcomer:
        say(f"a fresh Debian after {time.monotonic() - begin:.0f} s")
        for block, use in uses:
            line = block.text.partition("\n")[0][:80]
            if use == "skip":
                say(f"{block.place}: skipped, {block.reason}: {line}")
            elif use in {"run", "call"}:
                say(f"{block.place}: {line}")
                start = time.monotonic()
                try:
                    newcomer.run(block.text) if use == "run" else newcomer.call(block)
                except (subprocess.SubprocessError, ValueError) as error:
                    failed.append(block.place)
                    say(f"{block.place}: FAILED: {error}")
                say(f"{block.place}: {time.monotonic() - start:.1f} s")
    counts = ", ".join(f"{count} {use}" for use, count in Counter(use for _, use in uses).items())
    say(f"{counts}; {time.monotonic() - begin:.0f} s; failed: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
