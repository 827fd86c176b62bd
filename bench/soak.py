"""Ten thousand jobs through the real loop: every answer is right, and nothing grows.

`python bench/soak.py --jobs 10000` runs a worker with a stand-in model (worlds/standin.py)
behind the loopback platform: 5 % bad jobs, 1 % slow or dead URLs, 2 % cancelled, 10 % edits. It
fails when an answer is missing, doubled or wrong, or when memory, descriptors or threads still grow
in the second half of the run.

glibc gives each thread its own heap and keeps freed picture memory there: 27 MB after the first
jobs and 43 MB after 3,000, while the bytes in use stay within 2 MB and Python's objects within 1 %.
That is no leak and would hide one, so the measured worker has ONE_HEAP.
"""

import argparse
import base64
import contextlib
import io
import itertools
import json
import random
import signal
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))

from worlds.pod import Job, Pod
from worlds.process import Process
from worlds.standin import COMMAND

AHEAD = 8  # jobs that wait in the platform's queue
FETCH_TOTAL_S = 8
SLOW_S = 1.0
# One heap for all threads, with pictures outside it: see mallopt(3).
ONE_HEAP = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "131072"}
# How much more the worker may have at the end than in the middle: 1 kB of memory for each of 5,000
# jobs, and a connection or a thread that comes and goes.
GROWTH = {"memory": 5.0, "descriptors": 2.0, "threads": 2.0}

OK, CANCELLED = "OK", "CANCELLED"


@dataclass(frozen=True, slots=True)
class Trial:
    """One job and its expected outcome: OK, CANCELLED or an error code."""

    job_input: Any
    expected: str
    kind: str


@dataclass(slots=True)
class Sample:
    """What the worker uses at one moment: MB of memory, descriptors, threads."""

    memory: float
    descriptors: int
    threads: int


@dataclass(slots=True)
class Findings:
    """The results of a run."""

    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    overhead_ms: list[float] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    seconds: float = 0.0


def png(side: int) -> bytes:
    """Return a small reference picture."""
    file = io.BytesIO()
    Image.linear_gradient("L").resize((side, side)).convert("RGB").save(file, "PNG")
    return file.getvalue()


@contextlib.contextmanager
def site(picture: bytes) -> Iterator[int]:
    """Serve a site whose /slow answers late and whose /dead never ends; yield its port."""

    class Site(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "image/png")
            self.send_header("Content-Length", str(len(picture)))
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(picture[:20])
                if self.path == "/slow":
                    time.sleep(SLOW_S)
                    self.wfile.write(picture[20:])
                else:
                    self.rfile.read(1)  # until the client hangs up

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """Ignore a client that hung up, which is what it does at /dead."""

    with Server(("127.0.0.1", 0), Site) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def make_trials(count: int, seed: int, port: int, picture: bytes) -> Iterator[Trial]:
    """Yield the jobs of a run, the same for the same seed."""
    rng = random.Random(seed)
    reference = base64.b64encode(picture).decode()
    bad: list[tuple[Any, str]] = [
        ({"prompt": "", "width": 3}, "INVALID_INPUT"),
        (["prompt"], "INVALID_INPUT"),
        ({"prompt": "x", "seed": "zero"}, "INVALID_INPUT"),
        ({"prompt": "x", "image": "!" * 400}, "INVALID_INPUT"),
        ({"prompt": "x", "model": "another"}, "MODEL_NOT_SERVED"),
        ({"prompt": "x", "image": "http://169.254.169.254/latest"}, "IMAGE_FETCH_REFUSED"),
        ({"prompt": "x", "image": reference[: len(reference) // 2 // 4 * 4]}, "IMAGE_UNREADABLE"),
        ({"prompt": "nan"}, "BAD_PICTURE"),
        ({"prompt": "bug"}, "INTERNAL"),
    ]
    for number in range(count):
        chance = rng.random()
        prompt = f"job {number} steps={rng.randint(2, 6)} pause=0.002"
        if chance < 0.05:
            job_input, code = bad[rng.randrange(len(bad))]
            yield Trial(job_input, code, "bad")
        elif chance < 0.06:
            dead = rng.random() < 0.3
            url = f"http://127.0.0.1:{port}/{'dead' if dead else 'slow'}"
            code = "IMAGE_FETCH_FAILED" if dead else OK
            yield Trial({"prompt": prompt, "image_url": url}, code, "slow URL")
        elif chance < 0.08:
            yield Trial({"prompt": f"job {number} steps=200 pause=0.02"}, CANCELLED, "cancelled")
        elif chance < 0.18:
            yield Trial({"prompt": prompt, "image": reference}, OK, "edit")
        else:
            size = "512x512" if rng.random() < 0.05 else "64x64"
            job_input = {"prompt": prompt, "size": size, "num_images": rng.choice([1, 1, 1, 2])}
            job_input["output_format"] = rng.choice(["png", "jpeg", "webp"])
            yield Trial(job_input, OK, "text-to-image")


def sample(worker: Process) -> Sample:
    """Measure the worker as it is now."""
    folder = Path(f"/proc/{worker.pid}")
    lines = (folder / "status").read_text().splitlines()
    status = {name: value for name, _, value in (line.partition(":") for line in lines)}
    return Sample(
        memory=int(status["VmRSS"].split()[0]) / 1024,
        descriptors=len(list((folder / "fd").iterdir())),
        threads=int(status["Threads"]),
    )


def check(job: Job, trial: Trial, findings: Findings) -> None:
    """Compare one final job with its expected outcome."""
    if trial.expected == CANCELLED:
        outcome = job.status
        right = job.status == CANCELLED and job.answers == 0
    else:
        outcome = OK if job.status == "COMPLETED" else str((job.output or {}).get("error_code"))
        right = outcome == trial.expected and job.answers == 1
    findings.outcomes[f"{trial.kind}: {outcome}"] += 1
    if not right:
        findings.wrong.append(f"{trial}: {outcome}, {job.answers} answers, {job.error}")
    if outcome == OK and trial.kind == "text-to-image":
        timings = job.output["timings_ms"]
        findings.overhead_ms.append(timings["total"] - timings["denoise"])


def drive(
    pod: Pod, worker: Process, coming: Iterator[Trial], findings: Findings, every: int
) -> None:
    """Keep a few jobs queued until all are checked; measure the worker now and then."""
    waiting: dict[str, Trial] = {}
    stopping: set[str] = set()
    done = 0
    while True:
        while len(waiting) < AHEAD and (trial := next(coming, None)) is not None:
            waiting[pod.submit(trial.job_input)] = trial
        if not waiting:
            return
        for job_id, trial in list(waiting.items()):
            job = pod.jobs[job_id]
            if trial.expected == CANCELLED and job_id not in stopping and job.taken:
                stopping.add(job_id)
                pod.cancel(job_id)
            # until its worker has received the signal, a cancelled job may still be answered
            if job.final and (job_id not in stopping or pod.has_heard(job_id)):
                check(job, waiting.pop(job_id), findings)
                stopping.discard(job_id)
                pod.forget(job_id)
                done += 1
                if done % every == 0:
                    findings.samples.append(sample(worker))
        pod.change(1.0)


def run(count: int, seed: int = 0) -> Findings:
    """Run `count` jobs and return the findings."""
    findings = Findings()
    picture = png(64)
    with site(picture) as port, Pod(hold_s=5.0, keep=False) as pod:
        environ = {
            "PREFETCH": "true",
            "ALLOW_HTTP_IMAGES": "true",
            "ALLOWED_IMAGE_NETWORKS": f"127.0.0.1/32:{port}",
            "FETCH_TOTAL_S": str(FETCH_TOTAL_S),
            **ONE_HEAP,
        }
        with pod.worker(COMMAND, environ) as worker:
            pod.until(lambda: pod.seen("poll"), 60)
            start = time.monotonic()
            drive(
                pod, worker, make_trials(count, seed, port, picture), findings, max(1, count // 200)
            )
            findings.seconds = time.monotonic() - start
            worker.send(signal.SIGTERM)
            code = worker.wait()
            for event in ("answer lost", "answer refused", "job handed out twice", "loop failed"):
                if worker.log(event):
                    findings.wrong.append(f"the worker's log says: {event}")
            if code or worker.relatives():
                findings.wrong.append(f"exit code {code}, still running: {worker.relatives()}")
    if (total := sum(findings.outcomes.values())) != count:
        findings.wrong.append(f"{count - total} jobs without an end")
    return findings


def tenth(samples: list[Sample], name: str, part: int) -> float:
    """Return the median of one tenth of the samples."""
    step = max(1, len(samples) // 10)
    chosen = samples[part * step : (part + 1) * step] or samples[-1:]
    return float(statistics.median(getattr(one, name) for one in chosen))


def growth(series: Sequence[float]) -> float:
    """Return how much a series grows over its second half, outliers ignored.

    This is the Theil-Sen slope, the median of the slopes between all pairs of values, times the
    half's length: up to 29 % of the values may be outliers (Sen, Journal of the American
    Statistical Association 63, 1968).
    """
    half = list(enumerate(series))[len(series) // 2 :]
    slopes = [(b - a) / (j - i) for (i, a), (j, b) in itertools.combinations(half, 2)]
    return statistics.median(slopes) * (len(half) - 1) if slopes else 0.0


def find_leaks(samples: Sequence[Sample]) -> list[str]:
    """Return a message for each figure that grows over the second half of the run."""
    problems = []
    for name, limit in GROWTH.items():
        more = growth([getattr(sample, name) for sample in samples])
        if more > limit:
            problems.append(f"{name} grew by {more:.1f} in the second half; the limit is {limit}")
    return problems


def main() -> int:
    """Run, print the table, and return 1 if anything was wrong or grew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    findings = run(given.jobs, given.seed)
    total = sum(findings.outcomes.values())
    print(f"\n{total} jobs answered or cancelled in {findings.seconds:.0f} s")
    for outcome, number in sorted(findings.outcomes.items()):
        print(f"  {outcome:<40} {number:>6}")
    overhead = sorted(findings.overhead_ms)
    p50, p99 = (overhead[int(len(overhead) * part)] for part in (0.5, 0.99))
    print(f"overhead of a text-to-image job: p50 {p50:.0f} ms, p99 {p99:.0f} ms")
    for name in GROWTH:
        tenths = " ".join(f"{tenth(findings.samples, name, part):.0f}" for part in range(10))
        more = growth([getattr(sample, name) for sample in findings.samples])
        unit = " (MB)" if name == "memory" else ""
        print(f"{name}{unit} by tenths of the run: {tenths}; in the second half {more:+.1f}")
    problems = [*findings.wrong, *find_leaks(findings.samples)]
    for problem in problems[:20]:
        print(f"WRONG: {problem}")
    print(json.dumps({"jobs": total, "wrong": len(problems), "p50_ms": p50, "p99_ms": p99}))
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
