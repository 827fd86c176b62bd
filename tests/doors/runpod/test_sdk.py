"""The guard was written against one version of the SDK; another must be read before it is used."""

import asyncio
import hashlib
import inspect
import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

import aiohttp
import cpuinfo  # type: ignore[import-untyped] # it ships no types
import pytest
import structlog
from aiohttp import web
from aiohttp.test_utils import TestServer

from worker import settings
from worker.doors.runpod import local, scaler, sdk
from worlds.pod import Pod

sdk.load()

from runpod import serverless  # noqa: E402 - after load(), which makes its import fast
from runpod.serverless import worker as sdk_worker  # noqa: E402
from runpod.serverless.modules import rp_http, rp_job, rp_logger, rp_ping, rp_scale  # noqa: E402

# The code that the guard replaces, calls or is called by, as it was when the guard was written.
# Another hash: read what has changed, fix src/worker/doors/runpod, and only then this.
KNOWN = {
    "serverless.start": (serverless.start, "aa3f846dcfc5da4f"),
    "worker.run_worker": (sdk_worker.run_worker, "ce0b9b3f79f9f9d3"),
    "JobScaler": (rp_scale.JobScaler, "b9b75d9270a3ae4f"),
    "rp_job.handle_job": (rp_job.handle_job, "849f93639768bc87"),
    "rp_job.run_job": (rp_job.run_job, "3d5c3ab8a46d71fd"),
    "rp_job._job_get_url": (rp_job._job_get_url, "08b9c30905c64480"),
    "rp_job.get_stop_signals": (rp_job.get_stop_signals, "031a55cb85064132"),
    "rp_http._handle_result": (rp_http._handle_result, "ce88ccb812bcc41f"),
    "rp_http._transmit": (rp_http._transmit, "fc9d60458af96c8a"),
    "Heartbeat": (rp_ping.Heartbeat, "aa0c15420df377b2"),
    "RunPodLogger": (rp_logger.RunPodLogger, "41935b62649a8f88"),
}


@pytest.mark.parametrize("name", KNOWN)
def test_the_sdk_is_the_one_that_the_guard_was_written_for(name: str) -> None:
    code, known = KNOWN[name]
    assert hashlib.sha256(inspect.getsource(code).encode()).hexdigest()[:16] == known


def test_the_guard_refuses_an_sdk_without_what_it_replaces(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(rp_scale.JobScaler, "kill_worker")
    with pytest.raises(RuntimeError, match="kill_worker"):
        sdk.load()


UNGUARDED = """
import runpod
from runpod.serverless.modules.rp_scale import JobScaler

run_jobs = JobScaler.run_jobs

async def telling(scaler, session):
    await run_jobs(scaler, session)
    print("the runner has ended", flush=True)

JobScaler.run_jobs = telling

async def handle(job):
    return {"done": job["input"]}

runpod.serverless.start({"handler": handle})
"""


def test_the_sdk_alone_loses_a_job_that_comes_after_sigterm() -> None:
    """Why there is a guard; once this fails, the SDK may do without."""
    with (
        Pod(hold_s=60.0) as pod,
        pod.worker([sys.executable, "-c", UNGUARDED], {"RUNPOD_LOG_LEVEL": "INFO"}) as worker,
    ):
        first = pod.answer(pod.submit({"n": 1}))
        assert first.output == {"done": {"n": 1}}
        pod.until(lambda: pod.seen("poll")[-1].at > first.done)
        worker.send(signal.SIGTERM)
        pod.until(lambda: "the runner has ended" in worker.stdout)
        lost = pod.submit({"n": 2})
        pod.until(lambda: pod.seen("taken", lost))
        time.sleep(1)
        assert worker.running
        assert pod.jobs[lost].answers == 0


BREAKING = """
import sys
from worker import log, settings
from worker.doors.runpod import loop, sdk

async def handle(job):
    raise AssertionError

def start(config):
    raise ConnectionError("no platform")

sdk.load().start = start
log.configure("INFO")
sys.exit(loop.RunPod(settings.read({})).serve(handle, lambda: False))
"""


def test_a_loop_that_breaks_ends_the_worker_with_its_reason_in_the_log() -> None:
    """A broken loop must not look like a clean end."""
    words = [sys.executable, "-c", BREAKING]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "loop failed" in done.stderr
    assert "ConnectionError: no platform" in done.stderr


ENDING = """
import cpuinfo
import platform
import sys
from worker import settings
from worker.doors.runpod import loop, sdk

def ask_slowly():
    raise AssertionError

async def handle(job):
    raise AssertionError

cpuinfo.get_cpu_info = ask_slowly
serverless = sdk.load()
from runpod.serverless.modules import rp_scale
from runpod.serverless.utils import rp_debugger

assert rp_debugger.PROCESSOR == platform.machine()
whole = rp_scale.JobScaler
for start in (
    *(lambda _, code=code: sys.exit(code) for code in (0, 3, None, "why")),
    lambda _: None,
):
    rp_scale.JobScaler = whole
    serverless.start = start
    print(loop.RunPod(settings.read({})).serve(handle, lambda: False))
"""


def test_the_loops_exit_code_is_the_sdks_and_nothing_is_asked_of_the_processor() -> None:
    """What is no number is a failure, as it is for Python; cpuinfo takes a second to answer."""
    words = [sys.executable, "-c", ENDING]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["0", "3", "0", "1", "0"]


LOCAL = """
import asyncio
import os
from worker import settings
from worker.doors.runpod import loop, sdk

async def handle(job):
    return {"word": "\u732b", "given": job.input, "posts": job.listener, "sends": job.sink}

def start(config):
    for serves in (True, False):
        config["rp_args"] = {"rp_serve_api": serves}
        answer = asyncio.run(config["handler"]({"id": "a", "input": serves}))
        assert answer["given"] is serves
    os._exit(0)

sdk.load().start = start
loop.RunPod(settings.read({})).serve(handle, lambda: True)
"""


def test_a_local_tests_reply_is_printed_at_once_whatever_becomes_of_the_worker() -> None:
    """Nobody takes its progress or its parts; the SDK's API server prints nothing."""
    words = [sys.executable, "-X", "utf8", "-c", LOCAL]
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(words, capture_output=True, timeout=60, check=True, env=environ)
    line = '{"word": "\u732b", "given": false, "posts": null, "sends": null}\n'
    assert done.stdout.decode() == line


ORPHANED = """
import os
import signal
from worker.doors.runpod import sdk

signal.signal(signal.SIGTERM, print)
signal.signal(signal.SIGINT, print)
sdk._ping_loop = lambda *given, **named: print("pings", given, named)
for parents in ([7, 7], [7, 1]):
    os.getppid = iter(parents).__next__
    sdk._ping_until_orphaned(parents[1], b=1)
assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
"""


def test_a_heartbeat_begins_only_while_its_parent_lives_and_has_no_handlers_of_it() -> None:
    words = [sys.executable, "-c", ORPHANED]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "pings (7,) {'b': 1}\n"


def test_the_sdk_logs_through_our_log_and_never_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    sdk_log: Any = rp_logger.RunPodLogger()
    monkeypatch.setattr(sdk_log, "log", sdk_log.log)  # what route_log replaces is put back
    sdk.route_log("DEBUG")
    with structlog.testing.capture_logs() as lines:
        sdk_log.debug("Handler output: the picture")
        sdk_log.info("Job result: the picture")
        sdk_log.warn("Started.", request_id="job-1")
    assert lines == [
        {"event": "sdk", "message": "Started.", "job_id": "job-1", "log_level": "warning"}
    ]


@pytest.mark.parametrize(
    ("variable", "value", "level"),
    [
        ("RUNPOD_LOG_LEVEL", "WARN", "WARNING"),
        ("RUNPOD_LOG_LEVEL", "debug", "DEBUG"),
        ("RUNPOD_LOG_LEVEL", "TRACE", "DEBUG"),
        ("RUNPOD_LOG_LEVEL", "NOTSET", "ERROR"),
        ("LOG_LEVEL", "warning", "WARNING"),
    ],
)
def test_the_sdks_names_of_log_levels_are_understood(variable: str, value: str, level: str) -> None:
    assert settings.read({variable: value}).log_level == level


@pytest.mark.parametrize(
    ("level", "heard"),
    [
        ("DEBUG", ["INFO", "TIP", "WARN", "ERROR", "unheard-of"]),
        ("INFO", ["INFO", "TIP", "WARN", "ERROR", "unheard-of"]),
        ("WARNING", ["WARN", "ERROR"]),
        ("ERROR", ["ERROR"]),
    ],
)
def test_the_sdk_is_heard_from_info_or_the_level_on(
    level: str, heard: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sdk_log: Any = rp_logger.RunPodLogger()
    monkeypatch.setattr(sdk_log, "log", sdk_log.log)
    sdk.route_log(level)
    with structlog.testing.capture_logs() as lines:
        for name in ("TRACE", "DEBUG", "INFO", "TIP", "WARN", "ERROR", "unheard-of"):
            sdk_log.log(name, name)
    assert [line["message"] for line in lines] == heard
    levels = {"INFO": "info", "TIP": "info", "WARN": "warning", "ERROR": "error"}
    assert [line["log_level"] for line in lines] == [levels.get(name, "info") for name in heard]
    assert all(set(line) == {"event", "message", "log_level"} for line in lines)


def test_loading_the_sdk_leaves_what_it_replaces_as_it_was() -> None:
    before = cpuinfo.get_cpu_info
    assert sdk.load() is serverless
    assert cpuinfo.get_cpu_info is before


@pytest.mark.parametrize("name", sdk.NEEDED)
def test_the_guard_needs_every_member_that_it_names(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"runpod.serverless.modules.{name.replace(':', '.')}", None)
    with pytest.raises(RuntimeError, match=name):
        sdk.load()


def test_the_guard_needs_the_place_where_results_are_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(rp_http, "_transmit")
    with pytest.raises(RuntimeError, match="_transmit"):
        sdk.load()


def test_only_long_texts_of_a_local_tests_reply_are_left_out() -> None:
    reply = {"images": [{"base64": "x" * 10_001, "n": 1}], "prompt": "y" * 10_000, "z": None}
    assert local.omit_pictures(reply) == {
        "images": [{"base64": "<10001 characters>", "n": 1}],
        "prompt": "y" * 10_000,
        "z": None,
    }


@pytest.mark.parametrize("began", [0.0, 1000.0])
@pytest.mark.parametrize(
    ("waited_s", "is_started"), [(0.0, False), (9.99, False), (10.0, True), (60.0, True)]
)
def test_a_cancel_that_comes_before_its_job_is_remembered_for_ten_seconds(
    began: float, waited_s: float, *, is_started: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same id may come back later, and is then another try."""
    now = [began]
    monkeypatch.setattr(
        "worker.doors.runpod.scaler.time", SimpleNamespace(monotonic=lambda: now[0])
    )
    begun: list[str] = []

    async def handle(_: object, __: object, job: dict[str, Any]) -> None:
        await asyncio.sleep(0)
        begun.append(job["id"])

    monkeypatch.setattr(rp_scale.JobScaler, "handle_job", handle)

    async def case() -> None:
        guard = scaler.GuardedScaler({"handler": lambda _: {}})
        assert await guard.stop_job("a")
        now[0] += waited_s
        assert await guard.stop_job("b")
        for name in ("a", "b", "c"):
            task = asyncio.create_task(guard.handle_job(None, {"id": name}))  # type: ignore[arg-type] # no post is made
            await asyncio.wait({task})
            # what was remembered is used up
        # a job that has ended is none that runs: what comes by its id is stopped like any other
        assert await guard.stop_job("c")
        for name in ("b", "c"):
            again = asyncio.create_task(guard.handle_job(None, {"id": name}))  # type: ignore[arg-type] # no post is made
            await asyncio.wait({again})

    asyncio.run(case())
    assert begun == [*(["a"] if is_started else []), "c", "b"]


def test_a_cancel_of_a_job_that_runs_stops_it_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def handle(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(rp_scale.JobScaler, "handle_job", handle)

    async def case() -> None:
        guard = scaler.GuardedScaler({"handler": lambda _: {}})
        task = asyncio.create_task(guard.handle_job(None, {"id": "a"}))  # type: ignore[arg-type] # no post is made
        guard.jobs_tasks["a"] = task
        await asyncio.sleep(0)
        assert await guard.stop_job("a") is True
        await asyncio.wait({task})
        assert task.cancelled()

    asyncio.run(case())


def test_a_worker_that_has_not_begun_can_be_asked_to_leave() -> None:
    """A signal may come between any two bytecodes, and a limit before the first poll."""
    asked: list[int] = []

    async def take(count: int) -> list[Any]:
        asked.append(count)
        return []

    async def case() -> None:
        for is_signal in (True, False):
            guard = scaler.GuardedScaler({"handler": lambda _: {}})
            if is_signal:
                guard.handle_shutdown(signal.SIGTERM, None)
            else:
                guard.leave()
            guard._taker = SimpleNamespace(take=take)  # type: ignore[assignment] # what is asked of it
            await guard.get_jobs(None)  # type: ignore[arg-type] # no post is made

    asyncio.run(case())
    assert asked == []


def test_a_job_that_is_handed_out_twice_is_done_once_and_those_after_it_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun: list[str] = []
    asked: list[int] = []
    given = [["a", "a", "b"], ["b", "c"]]

    async def handle(guard: Any, _: object, job: dict[str, Any]) -> None:
        begun.append(job["id"])
        if len(begun) == 3:
            guard.job_progress.clear()
            raise KeyError

    monkeypatch.setattr(rp_scale.JobScaler, "handle_job", handle)

    async def case() -> None:
        modify = {"concurrency_modifier": lambda _: 4}
        guard = scaler.GuardedScaler({"handler": lambda _: {}, **modify})

        async def take(count: int) -> list[Any]:
            asked.append(count)
            if not given:
                guard.leave()
                return []
            return [{"id": name, "input": {}} for name in given.pop(0)]

        guard._taker = SimpleNamespace(take=take, leave=lambda: None)  # type: ignore[assignment] # what is asked of it
        with structlog.testing.capture_logs() as lines:
            await guard.get_jobs(None)  # type: ignore[arg-type] # no post is made
            await asyncio.gather(*guard.jobs_tasks.values(), return_exceptions=True)
        assert [line["event"] for line in lines if line["log_level"] == "error"] == ["answer lost"]
        twice = [line["job_id"] for line in lines if line["event"] == "job handed out twice"]
        assert twice == ["a", "b"]

    asyncio.run(case())
    assert sorted(begun) == ["a", "b", "c"]
    assert asked == [4, 2, 1]


def test_what_is_posted_of_a_job_on_the_way_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[tuple[Any, ...]] = []
    statuses = [200, 500, 200]

    async def answer(request: web.Request) -> web.Response:
        kinds = [request.headers.get(name) for name in ("X-Request-ID", "Content-Type")]
        got.append((request.path_qs, *kinds, json.loads(await request.text())))
        return web.Response(status=statuses.pop(0))

    async def case() -> None:
        app = web.Application()
        app.router.add_post("/{tail:.*}", answer)
        guard = scaler.GuardedScaler({"handler": lambda _: {}})
        async with TestServer(app) as server, aiohttp.ClientSession() as session:
            guard._session = session
            for kind in ("DONE", "STREAM"):
                url = str(server.make_url(f"/{kind}/$ID")) + "?gpu=x"
                monkeypatch.setattr(rp_http, f"JOB_{kind}_URL", url.replace("%24", "$"))
            await guard.post_progress("j-1", {"step": 1})
            with pytest.raises(aiohttp.ClientResponseError):
                await guard.post_progress("j-1", {"step": 2})
            await guard.post_item("j-1", {"index": 0})

    asyncio.run(case())
    form = "application/x-www-form-urlencoded"
    assert got == [
        (
            *("/DONE/j-1?gpu=x&isStream=false", "j-1", form),
            {"status": "IN_PROGRESS", "output": {"step": step}},
        )
        for step in (1, 2)
    ] + [("/STREAM/j-1?gpu=x&isStream=false", None, form, {"output": {"index": 0}})]


def test_an_error_of_the_sdk_itself_is_logged_and_a_cancel_is_none() -> None:
    async def fail() -> None:
        raise KeyError

    async def case() -> list[Any]:
        with structlog.testing.capture_logs() as lines:
            for work in (fail(), asyncio.sleep(0), asyncio.sleep(9)):
                task: asyncio.Task[None] = asyncio.ensure_future(work)
                task.add_done_callback(scaler._log_failure)
                await asyncio.sleep(0.001)
                task.cancel()
                await asyncio.wait({task})
                await asyncio.sleep(0)
        return lines

    (line,) = asyncio.run(case())
    assert (line["event"], line["reason"], line["log_level"]) == (
        "answer lost",
        "KeyError",
        "error",
    )
