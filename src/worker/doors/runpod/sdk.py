"""RunPod's SDK, imported fast, and every patch of it: log, heartbeat, loop and posting.

Each patch relies on internals of the SDK: `load` checks them all before any patch is made.
"""

import ctypes
import os
import pkgutil
import platform
import signal
from collections.abc import Callable
from typing import Any, Final

import cpuinfo  # type: ignore[import-untyped] # it ships no types

from worker import log
from worker.doors.runpod.post import transmit

# The SDK's levels in the order of logging's; any other, such as its TIP, is INFO.
SDK_LEVELS: Final = {"TRACE": 5, "DEBUG": 10, "WARN": 30, "ERROR": 40}
# How a line begins in which the SDK prints a local test's result, prompts and pictures included.
RESULT: Final = "Job result:"
PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h
# What the patches replace or rely on, in runpod.serverless.modules.
NEEDED: Final = (
    "rp_scale:JobScaler.get_jobs",
    "rp_scale:JobScaler.handle_job",
    "rp_scale:JobScaler.handle_shutdown",
    "rp_scale:JobScaler.is_alive",
    "rp_scale:JobScaler.kill_worker",
    "rp_scale:JobScaler.monitor_stop_signals",
    "rp_scale:JobScaler.run",
    "rp_scale:JobScaler.set_scale",
    "rp_scale:JobScaler.start",
    "rp_scale:JobScaler.stop_job",
    "rp_http:JOB_DONE_URL",
    "rp_http:JOB_STREAM_URL",
    "rp_http:_transmit",
    "rp_job:_job_get_url",
    "rp_logger:RunPodLogger.log",
    "rp_ping:Heartbeat.process_loop",
)


def load() -> Any:
    """Import and return runpod.serverless.

    At import its debugger gets the processor's name from cpuinfo, which takes 1.1 s of each cold
    start; what `platform` knows is enough. Raises RuntimeError if the SDK lacks what the patches
    need.
    """
    slow = cpuinfo.get_cpu_info
    cpuinfo.get_cpu_info = lambda: {"brand_raw": platform.machine()}
    try:
        import runpod.serverless  # noqa: PLC0415 - here, where it is fast
    finally:
        cpuinfo.get_cpu_info = slow
    for name in NEEDED:
        try:
            found = pkgutil.resolve_name(f"runpod.serverless.modules.{name}")
        except (ImportError, AttributeError):
            found = None
        if found is None:
            raise RuntimeError(f"this runpod has no {name}: its loop cannot be guarded")
    return runpod.serverless


def patch(level: str, adopt: Callable[[Any], None]) -> None:
    """Patch the SDK that load() returned; `level` is our log's, `adopt` gets start()'s loop."""
    route_log(level)
    tie_heartbeat()
    guard_loop(adopt)


def route_log(level: str) -> None:
    """Write what the SDK logs to our log: from the higher of INFO and `level`, never a result.

    At DEBUG, its own default, it logs complete results, pictures included.
    """
    from runpod.serverless.modules.rp_logger import RunPodLogger  # noqa: PLC0415 - after load()

    least = max(log.LEVELS[level], log.LEVELS["INFO"])

    def forward(message: Any, message_level: str = "INFO", job_id: str | None = None) -> None:
        number = SDK_LEVELS.get(message_level, 20)
        text = str(message)
        if number < least or text.startswith(RESULT):
            return
        job = {} if job_id is None else {"job_id": job_id}
        log.get().log(number, "sdk", message=text, **job)

    RunPodLogger().log = forward


_ping_loop: Callable[..., None] | None = None


def _ping_until_orphaned(*arguments: Any, **named: Any) -> None:
    """Run the SDK's ping loop in the heartbeat's process, which ends when its parent does.

    A heartbeat that outlives a killed worker makes the platform send jobs to a dead one.
    """
    parent = os.getppid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the fork has the worker's handlers
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent died before it could be watched
        return
    assert _ping_loop is not None  # noqa: S101 - tie_heartbeat() set it
    _ping_loop(*arguments, **named)


def tie_heartbeat() -> None:
    """Make the heartbeat's process end with this one, however this one ends."""
    global _ping_loop  # noqa: PLW0603 - a process target must be a module's function
    from runpod.serverless.modules.rp_ping import Heartbeat  # noqa: PLC0415 - after load()

    _ping_loop = Heartbeat.process_loop
    Heartbeat.process_loop = staticmethod(_ping_until_orphaned)


def guard_loop(adopt: Callable[[Any], None]) -> None:
    """Make start() run the guarded loop and post results by `transmit`."""
    from runpod.serverless.modules import rp_http, rp_scale  # noqa: PLC0415 - after load()

    from worker.doors.runpod.scaler import GuardedScaler  # noqa: PLC0415 - it imports the SDK

    def make(config: dict[str, Any]) -> GuardedScaler:
        scaler = GuardedScaler(config)
        adopt(scaler)
        return scaler

    rp_scale.JobScaler = make
    rp_http._transmit = transmit  # noqa: SLF001 - send_result calls it; the only place to replace it
