"""make demo: jobs through RunPod's API on loopback to the real worker; what they make in out/.

The first makes a picture from text; the second, test_input.json, edits its reference; the third
repaints the white of a mask; the fourth dials a number, which is heard again from its sound. The
worker is handler.py with MODEL=tiny,tiny-speech behind worlds/pod.py; the caller is curl, as on
RunPod (Python where there is no curl).
"""

import base64
import json
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
import wave
from pathlib import Path
from typing import Any

import numpy as np

from worlds.goertzel import Unreadable, read_keys
from worlds.pod import FINAL, KEY, Pod

ROOT = Path(__file__).parent.parent

EXTENSIONS = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp"}
TEXT_JOB = {
    "input": {"prompt": "a large yellow star on a purple background, on the right", "seed": 42}
}
NUMBER = "555 0199"
SPEECH_JOB = {"input": {"text": NUMBER, "voice": "quick", "seed": 42}}
MODELS = "tiny,tiny-speech"
START_S = 300.0
JOB_S = 120.0
POLL_S = 0.3


def call(method: str, url: str, body: str | None = None) -> Any:
    """Call the API as any caller would; return its JSON."""
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    if shutil.which("curl"):
        command = ["curl", "--silent", "--show-error", "--fail", "-X", method, url]
        for name, value in headers.items():
            command += ["-H", f"{name}: {value}"]
        if body is not None:
            command += ["--data-binary", "@-"]
        return json.loads(
            subprocess.run(
                command, input=body, text=True, check=True, stdout=subprocess.PIPE
            ).stdout
        )
    data = None if body is None else body.encode()
    request = urllib.request.Request(url, data, headers, method=method)  # noqa: S310 - loopback
    with urllib.request.urlopen(request) as response:  # noqa: S310
        return json.load(response)


def follow(pod: Pod, job_id: str) -> dict[str, Any]:
    """Poll a job's status, printing what changes, until it is final."""
    shown: Any = None
    end = time.monotonic() + JOB_S
    while time.monotonic() < end:
        state: dict[str, Any] = call("GET", f"{pod.url}/status/{job_id}")
        if state["status"] in FINAL:
            return state
        if (state["status"], state.get("output")) != shown:
            shown = state["status"], state.get("output")
            step = state.get("output")
            where = f"{step['phase']} {step['step']} of {step['steps']}" if step else ""
            print(f"  {state['status']:<12} {where}".rstrip(), flush=True)
        time.sleep(POLL_S)
    raise SystemExit(f"the job did not end within {JOB_S:g} s")


def save(output: dict[str, Any], name: str) -> None:
    """Write what was made and, without its bytes, the output, as out/NAME*."""
    out = ROOT / "out"
    out.mkdir(exist_ok=True)
    for stale in out.glob(f"{name}*"):
        stale.unlink()
    if "audio" in output:
        path = out / f"{name}.wav"
        path.write_bytes(base64.b64decode(output["audio"].pop("base64")))
        print(f"  {path.relative_to(ROOT)}  {output['audio']['duration_s']} s, {_hear(path)}")
    for image in output.get("images", ()):
        path = out / f"{name}-{image['index']}.{EXTENSIONS[image['mime_type']]}"
        path.write_bytes(base64.b64decode(image.pop("base64")))
        size = f"{image['width']} x {image['height']}"
        print(f"  {path.relative_to(ROOT)}  {size}, seed {image['seed']}")
    path = out / f"{name}.json"
    path.write_text(json.dumps(output, indent=2, ensure_ascii=False) + "\n")
    print(f"  {path.relative_to(ROOT)}")


def _hear(path: Path) -> str:
    """Say which keys are heard in a sound."""
    with wave.open(str(path)) as track:
        samples = np.frombuffer(track.readframes(track.getnframes()), "<i2") / 32768
        rate = track.getframerate()
    try:
        return f"heard: {read_keys(samples, rate)}"
    except Unreadable as error:
        return f"not understood: {error}"


def run(pod: Pod, job: str, name: str) -> bool:
    """Post a job, follow it and save its output; return whether it completed."""
    begin = time.monotonic()
    given = json.loads(job)["input"]
    print(f"POST /run  {given.get('prompt', given.get('text'))!r}", flush=True)
    posted = call("POST", f"{pod.url}/run", job)
    result = follow(pod, posted["id"])
    total_s = time.monotonic() - begin
    print(f"  {result['status']}")
    if result["status"] != "COMPLETED":
        print(result.get("error"), file=sys.stderr)
        return False
    save(result["output"], name)
    timings = ", ".join(f"{phase} {ms}" for phase, ms in result["output"]["timings_ms"].items())
    print(f"  {total_s:.2f} s from POST to result; milliseconds: {timings}")
    return True


def main() -> int:
    """Run the demo; return 0 when everything is saved."""
    # an interrupted demo must leave the worker's context too, so that no process stays
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    # one thread, as Process sets it: a model this small gains nothing from more, and loses much if
    # other processes compete for the cores
    environ = {"MODEL": MODELS, "LOG_LEVEL": "WARNING"}
    with Pod() as pod, pod.worker([sys.executable, "handler.py"], environ, cwd=ROOT) as worker:
        print(f"worker starting (MODEL={MODELS}), API at {pod.url}", flush=True)
        start = time.monotonic()
        while not pod.seen("poll"):
            if not worker.running or time.monotonic() - start > START_S:
                print(worker.stderr, file=sys.stderr)
                return 1
            time.sleep(0.05)
        ready_s = time.monotonic() - worker.started
        print(f"  ready after {ready_s:.1f} s")
        edit = (ROOT / "test_input.json").read_text()
        repaint = (ROOT / "docs" / "examples" / "inpaint.json").read_text()
        jobs = {"drawn": json.dumps(TEXT_JOB), "edited": edit, "repainted": repaint}
        jobs["dialled"] = json.dumps(SPEECH_JOB)
        if not all(run(pod, job, f"demo-{name}") for name, job in jobs.items()):
            print(worker.stderr, file=sys.stderr)
            return 1
        worker.send(signal.SIGTERM)
        code = worker.wait(10)
        print(f"worker ended with {code}")
        print("the same in a browser: make playground, then http://127.0.0.1:8000")
        return code


if __name__ == "__main__":
    sys.exit(main())
