"""What the worker adds around the model for one 1024 x 1024 edit: by phase and in total.

    python bench/overhead.py [--jobs 200] [--out bench/results/overhead.json]

Every job fetches a reference picture from a loopback site, and a stand-in family returns a fixed
noisy picture at once, so that only the worker's own time remains. For comparison, the same job is
done the naive way: requests, Pillow's defaults at the same quality, json, all in the handler's
thread. The two take turns, so that anything else on the machine affects both. The event loop's lag
is how late a 2 ms tick comes while jobs run; CPU time is that of all threads of the process. Prints
tables and writes the figures as JSON.
"""

import argparse
import asyncio
import base64
import contextlib
import functools
import http.server
import io
import json
import math
import multiprocessing
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Self

import requests
from PIL import Image

from worker import log, settings
from worker.doors.runpod import wire
from worker.edge import reply
from worker.jobs.serve import Worker
from worker.media import images
from worker.media.deliver import deliver
from worker.media.fetch import fetch_all
from worker.media.header import Format
from worker.media.picture import Picture
from worker.seam import Control, Made, Served
from worker.tasks.picture import PictureOffer, PictureWish
from worker.tasks.request import Request, parse

SIDE: Final = 1024
QUALITY: Final = 95
TICK_S: Final = 0.002
FORMATS: Final[tuple[Format, ...]] = ("png", "jpeg", "webp")
RESULTS: Final = Path(__file__).parent / "results"
OFFER: Final = PictureOffer(
    steps=8,
    true_cfg_scale=1.0,
    negative_prompt=" ",
    lightning_steps=(),
    area=SIDE * SIDE,
    max_pixels=SIDE * SIDE,
    max_references=3,
    sizes={},
)
SERVED: Final = Served(
    id="standin",
    repository="bench/standin",
    revision="local",
    precision="none",
    licence="apache-2.0",
    offers={"text-to-image": OFFER, "edit": OFFER},
)

Samples = dict[str, list[float]]


def noisy_picture(seed: int) -> Image.Image:
    """Return a picture that compresses like a photograph: soft shapes under fine noise."""
    rng = random.Random(seed)
    shapes = Image.frombytes("RGB", (24, 24), rng.randbytes(3 * 24 * 24))
    soft = shapes.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    noise = Image.frombytes("RGB", (SIDE, SIDE), rng.randbytes(3 * SIDE * SIDE))
    return Image.blend(soft, noise, 0.05)


class StandIn:
    """A model that returns its picture at once."""

    served = SERVED

    def __init__(self, picture: Image.Image) -> None:
        self._picture = picture

    def make_key(self, wish: PictureWish) -> None:
        """Share no forward."""
        del wish

    def read_ahead(self, wish: PictureWish) -> PictureWish:
        """Return it as it is."""
        return wish

    def make(self, wishes: Sequence[PictureWish], controls: Sequence[Control]) -> list[Made]:
        """Return the fixed picture for each."""
        for wish, control in zip(wishes, controls, strict=True):
            control.report("denoise", wish.steps, wish.steps)
        return [Made(Picture(self._picture), {}) for _ in wishes]

    def warm(self) -> None:
        """Have nothing to load."""

    def release(self) -> None:
        """Free nothing: the picture is not the model's."""


class StandIns:
    """The models of a worker that has only the stand-in."""

    served = (SERVED,)

    def __init__(self, picture: Image.Image) -> None:
        self._model = StandIn(picture)

    def take(self, model_id: str) -> StandIn:
        """Return the stand-in."""
        assert model_id == SERVED.id
        return self._model

    def find_open(self, model_id: str) -> StandIn:
        """Return the stand-in."""
        return self.take(model_id)

    def list_addable(self, task: str) -> Sequence[str]:
        """Know no other model."""
        del task
        return ()

    def report_health(self) -> Mapping[str, object]:
        """Report nothing."""
        return {}


def _serve(folder: str, port: Any) -> None:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Log nothing."""

    handler = functools.partial(Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        port.put(server.server_port)
        server.serve_forever()


@contextlib.contextmanager
def site(data: bytes) -> Iterator[int]:
    """Serve /reference.png on loopback from a separate process; yield the port."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "reference.png").write_bytes(data)
        ports: Any = context.Queue()
        process = context.Process(target=_serve, args=(folder, ports), daemon=True)
        process.start()
        try:
            yield ports.get(timeout=60)
        finally:
            process.kill()
            process.join()


class Lag:
    """How late the event loop's ticks are, in milliseconds; an async context manager."""

    def __init__(self) -> None:
        self.most = 0.0

    async def _tick(self) -> None:
        while True:
            due = time.perf_counter() + TICK_S
            await asyncio.sleep(TICK_S)
            self.most = max(self.most, (time.perf_counter() - due) * 1000)

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._tick())
        await asyncio.sleep(TICK_S)
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.sleep(TICK_S)
        self._task.cancel()


class Clock:
    """Milliseconds by phase, one sample per job, and this process's CPU milliseconds."""

    def __init__(self) -> None:
        self.samples: Samples = {}
        self.cpu: Samples = {}

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time one phase of one job."""
        start, cpu = time.perf_counter(), time.process_time()
        yield
        self.samples.setdefault(name, []).append((time.perf_counter() - start) * 1000)
        self.cpu.setdefault(name, []).append((time.process_time() - cpu) * 1000)


async def by_phase(
    job_input: dict[str, Any], picture: Image.Image, chosen: settings.Settings, clock: Clock
) -> None:
    """Do a job the worker's way, each phase timed separately."""
    with clock.phase("parse"):
        request = parse(job_input, (SERVED,), chosen)
    assert isinstance(request, Request)
    task, delivery = request.task, request.delivery
    with clock.phase("fetch"):
        fetched = await fetch_all(request.asked.sources, chosen)
    with clock.phase("decode"):
        settled = await task.settle(request.asked, fetched, chosen, print)
    (wish,) = request.make_wishes(settled.wish)
    assert isinstance(wish, PictureWish)
    assert (wish.width, wish.height) == (SIDE, SIDE)
    with clock.phase(f"encode {delivery.form}"):
        encoded = await asyncio.to_thread(
            Picture(picture).encode, delivery.form, delivery.quality, {}
        )
    with clock.phase(f"base64 {delivery.form}"):
        entries = await deliver(
            [encoded],
            delivery.response_format,
            upload_urls=(),
            bucket=None,
            job_id="bench",
            settings=chosen,
        )
    with clock.phase(f"reply {delivery.form}"):
        output = reply.make_success(
            task.key,
            [{**entry, "seed": wish.seed} for entry in entries],
            wish,
            request.model,
            timings_ms={},
            peak_vram_mb=0,
            adjusted=settled.adjusted,
        )
        await asyncio.to_thread(reply.measure, output, chosen.max_reply_bytes, task.advice)


async def naive(job_input: dict[str, Any], picture: Image.Image, clock: Clock) -> None:
    """Do the same job as a simple handler would: one thread, Pillow's defaults, no checks."""
    output_format = job_input["output_format"]
    with clock.phase("fetch"):
        data = requests.get(job_input["image_url"], timeout=20).content  # noqa: ASYNC210 - naive
    with clock.phase("decode"):
        Image.open(io.BytesIO(data)).convert("RGB")
    with clock.phase(f"encode {output_format}"):
        buffer = io.BytesIO()
        quality = {} if output_format == "png" else {"quality": QUALITY}
        picture.save(buffer, output_format.upper(), **quality)
    with clock.phase(f"base64 {output_format}"):
        text = base64.b64encode(buffer.getvalue()).decode()
    with clock.phase(f"reply {output_format}"):
        json.dumps({"images": [{"base64": text, "seed": job_input["seed"]}]})


async def measured(
    work: Callable[[], Awaitable[Any]], name: str, clock: Clock, lags: dict[str, float]
) -> None:
    """Time one complete job and record the event loop's worst lag during it."""
    async with Lag() as lag:
        with clock.phase(name):
            await work()
    lags[name] = max(lags.get(name, 0.0), lag.most)


def percentile(values: list[float], share: float) -> float:
    """Return the smallest value that a `share` of all do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


async def run(jobs: int, output_format: Format, port: int) -> dict[str, Any]:
    """Do `jobs` jobs of one format each way, in turns; return milliseconds."""
    chosen = settings.read({"ALLOWED_IMAGE_NETWORKS": f"127.0.0.1/32:{port}"})
    picture = noisy_picture(2)
    handle = wire.make_handler(Worker(chosen, StandIns(picture)).handle, chosen)
    ours, theirs, whole, lags = Clock(), Clock(), Clock(), dict[str, float]()
    for index in range(jobs + 3):
        if index == 3:  # the first jobs import and connect
            ours, theirs, whole, lags = Clock(), Clock(), Clock(), {}
        job_input = {
            "prompt": "the same cat with a hat",
            "image_url": f"http://127.0.0.1:{port}/reference.png",
            "seed": index,
            "output_format": output_format,
            "output_quality": QUALITY,
        }
        await by_phase(job_input, picture, chosen, ours)
        job = {"id": f"job-{index}", "input": job_input}
        await measured(functools.partial(handle, job), "worker", whole, lags)
        await measured(functools.partial(naive, job_input, picture, theirs), "naive", whole, lags)
    answer = await handle({"id": "last", "input": job_input})
    assert "error" not in answer, answer
    return {
        "worker_phases_ms": summary(ours.samples),
        "naive_phases_ms": summary(theirs.samples),
        "whole_job_ms": summary(whole.samples),
        "whole_job_cpu_ms": summary(whole.cpu),
        "event_loop_lag_max_ms": {name: round(most, 1) for name, most in lags.items()},
        "picture_bytes": len(base64.b64decode(answer["images"][0]["base64"])),
    }


def summary(samples: Samples) -> dict[str, dict[str, float]]:
    """Return p50 and p99 of every phase."""
    return {
        name: {"p50": round(statistics.median(v), 2), "p99": round(percentile(v, 0.99), 2)}
        for name, v in samples.items()
    }


def machine() -> dict[str, Any]:
    """Describe the machine without its name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.partition(":")[2].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        cpu = platform.machine()
    return {
        "cpu": cpu,
        "cores": multiprocessing.cpu_count(),
        "python": platform.python_version(),
        "pillow": version("pillow"),
    }


def table(result: Mapping[str, Any]) -> None:
    """Print one format's figures."""
    print(f"{'ms':<14}{'worker p50':>12}{'p99':>9}{'naive p50':>12}{'p99':>9}")
    ours, theirs = result["worker_phases_ms"], result["naive_phases_ms"]
    rows = [(name, ours[name], theirs.get(name)) for name in ours]
    for name, figures in (("whole job", "whole_job_ms"), ("its CPU time", "whole_job_cpu_ms")):
        rows.append((name, result[figures]["worker"], result[figures]["naive"]))
    for name, mine, other in rows:
        cells = f"{other['p50']:>12.1f}{other['p99']:>9.1f}" if other else f"{'-':>12}{'-':>9}"
        print(f"{name:<14}{mine['p50']:>12.1f}{mine['p99']:>9.1f}{cells}")
    lag = result["event_loop_lag_max_ms"]
    print(f"{'loop lag, max':<14}{lag['worker']:>12.1f}{'':>9}{lag['naive']:>12.1f}\n")


def main() -> None:
    """Run the bench."""
    parser = argparse.ArgumentParser(description="What the worker adds around the model.")
    parser.add_argument("--jobs", type=int, default=200, help="jobs per format")
    parser.add_argument("--out", type=Path, default=RESULTS / "overhead.json", help="results")
    given = parser.parse_args()
    log.configure("ERROR")
    data = images.encode(noisy_picture(1), "png")
    results = {"jobs": given.jobs, "machine": machine(), "reference_bytes": len(data)}
    with site(data) as port:
        for output_format in FORMATS:
            results[output_format] = asyncio.run(run(given.jobs, output_format, port))
            table(results[output_format])
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
