"""An image's own command as process 1, on loopback alone: it must do what an endpoint asks of it.

    unshare --net --mount python -m tools.image_worker ROOT CONFIG SOURCE

ROOT is the mounted image and CONFIG Docker's description of it as JSON; SOURCE is where the weights
must come from. Nothing but CONFIG's environment and the platform's variables reaches the worker.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Self

from worlds.pod import Pod

HERE: Final = Path(__file__).resolve().parent.parent
START_S: Final = 600.0
LEAVE_S: Final = 60.0
# off the platform, the SDK's own fitness checks would fail: there is no GPU and no network
OFF_PLATFORM: Final = {
    "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
    "RUNPOD_SKIP_GPU_CHECK": "true",
}
# RunPod's tests of the worker, and the variables that they are run with
LISTING: Final = json.loads((HERE / ".runpod" / "tests.json").read_text())
TESTED: Final[Mapping[str, str]] = {row["key"]: row["value"] for row in LISTING["config"]["env"]}


# what Triton compiles for a launch is C that includes Python.h
EXTENSION: Final = """
from triton.runtime.build import compile_module_from_src
compile_module_from_src('''
#include <Python.h>
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "built", NULL, -1, NULL};
PyMODINIT_FUNC PyInit_built(void) { return PyModule_Create(&module); }
''', "built")
"""


def say(text: str) -> None:
    """Print one line at once, so that a long run can be followed."""
    print(f"image-check: {text}", flush=True)


class Worker:
    """The image's command as process 1 of its own namespace; a context manager that ends it."""

    def __init__(self, root: Path, config: Mapping[str, Any], environ: Mapping[str, str]) -> None:
        self._log = root.with_name(f"{root.name}.log")
        alone = ("unshare", "--pid", "--fork", "--kill-child", f"--mount-proc={root}/proc")
        inside = ("chroot", str(root), "env", f"--chdir={config['WorkingDir']}")
        own = dict(variable.split("=", 1) for variable in config["Env"])
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*alone, *inside, *config["Cmd"]],
                env={"HOME": "/root", **own, **environ},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    @property
    def printed(self) -> str:
        """What it has printed so far."""
        return self._log.read_text("utf-8", errors="replace")

    @property
    def running(self) -> bool:
        """Whether it is still running."""
        return self._process.poll() is None

    def find_process(self) -> int:
        """Return process 1 as this namespace numbers it; raises SystemExit if it is another."""
        unshare = self._process.pid
        (child,) = Path(f"/proc/{unshare}/task/{unshare}/children").read_text().split()
        status = Path(f"/proc/{child}/status").read_text()
        numbers = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()
        if numbers[-1] != "1":
            raise SystemExit(f"image-check: not process 1: {' '.join(numbers)}")
        return int(child)

    def wait(self, timeout_s: float) -> None:
        """Wait for its end; raises SystemExit unless it ends in time and with 0."""
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.fail(f"still running after {timeout_s:g} s")
        if code:
            self.fail(f"the worker ended with {code}")

    def fail(self, reason: str) -> None:
        """Raise SystemExit with a reason and what the worker printed."""
        raise SystemExit(f"image-check: {reason}\n{self.printed[-6000:]}")


def find_reply(printed: str) -> dict[str, Any]:
    """Return the reply among the worker's lines; raises SystemExit when there is none."""
    for line in printed.splitlines():
        if line.startswith('{"images"'):
            answer: dict[str, Any] = json.loads(line)
            return answer
    raise SystemExit(f"image-check: no reply with pictures in the output\n{printed[-6000:]}")


def describe(output: Mapping[str, Any]) -> str:
    """Return the sizes of a reply's pictures; raises SystemExit if one of them is missing.

    The worker itself refuses to reply with a flat or broken picture.
    """
    images = output["images"]
    if not (images and all(image.get("base64") for image in images)):
        raise SystemExit(f"image-check: a reply without a picture: {output}")
    return ", ".join(f"{image['width']}x{image['height']}" for image in images)


def check_doctor(root: Path, config: Mapping[str, Any]) -> None:
    """Ask the doctor in the image, as docs/deploy.md does; it must find nothing that is fatal."""
    with Worker(root, {**config, "Cmd": ["python", "-m", "worker", "doctor"]}, {}) as doctor:
        doctor.wait(START_S)
        say(f"the doctor: {len(doctor.printed.splitlines())} lines, ended with 0")


def check_compiler(root: Path, config: Mapping[str, Any]) -> None:
    """Let the image's Triton build an extension, as it does on a GPU before its first kernel."""
    command = ["python", "-c", EXTENSION]
    with Worker(root, {**config, "Cmd": command}, {}) as triton:
        triton.wait(START_S)
        say("Triton built an extension and loaded it")


def check_test_input(root: Path, config: Mapping[str, Any]) -> None:
    """Start it as a user of the image would: it answers test_input.json and ends with 0.

    With the models of the platform's tests, so that the next start finds what this one prepares.
    """
    begin = time.monotonic()
    with Worker(root, config, {**OFF_PLATFORM, **TESTED}) as worker:
        worker.wait(START_S)
        reply = find_reply(worker.printed)
    model = f"{reply['model']['id']} {reply['model']['precision']}"
    seconds = time.monotonic() - begin
    say(f"test_input.json answered in {seconds:.1f} s: {describe(reply)} by {model}, ended with 0")


def check_jobs(root: Path, config: Mapping[str, Any], source: str) -> None:
    """Serve the platform's jobs: every one of .runpod/tests.json, then SIGTERM, which ends it."""
    health = {"name": "health", "input": {"op": "health"}, "timeout": START_S * 1000}
    begin = time.monotonic()
    with Pod() as pod, Worker(root, config, {**pod.environment(), **TESTED}) as worker:
        pod.until(lambda: pod.seen("poll") or not worker.running, START_S)
        if not worker.running:
            worker.fail("the worker ended before its first job")
        say(f"polls for jobs after {time.monotonic() - begin:.1f} s")
        for test in (*LISTING["tests"], health):
            job = pod.answer(pod.submit(test["input"]), test["timeout"] / 1000)
            if job.status != "COMPLETED":
                worker.fail(f"{test['name']}: {job.status}: {job.error}")
            shown = describe(job.output) if "images" in job.output else "its facts"
            say(f"{test['name']}: {shown} in {job.done - job.taken:.1f} s")
        found = {(model["source"], model["bundle"]) for model in job.output["models"].values()}
        if found != {(source, True)}:
            worker.fail(f"the weights came from {found}, not from a bundle: {source}")
        os.kill(worker.find_process(), signal.SIGTERM)
        begin = time.monotonic()
        worker.wait(LEAVE_S)
        say(f"process 1 ended {time.monotonic() - begin:.1f} s after SIGTERM, with 0")


def main() -> None:
    """Check a root's worker; the namespaces of mounts and network must be this process's own."""
    root, config, source = Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3]
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    subprocess.run(["mount", "--rbind", "/dev", str(root / "dev")], check=True)
    check_doctor(root, config)
    check_compiler(root, config)
    check_test_input(root, config)
    check_jobs(root, config, source)


if __name__ == "__main__":
    main()
