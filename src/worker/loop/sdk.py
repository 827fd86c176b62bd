"""RunPod's SDK, imported fast, logging through our log and with a heartbeat that dies with us."""

import ctypes
import os
import platform
import signal
from collections.abc import Callable
from typing import Any, Final

import cpuinfo  # type: ignore[import-untyped] # it ships no types

from worker import log

LEVELS: Final = {"TRACE": 5, "DEBUG": 10, "INFO": 20, "TIP": 20, "WARN": 30, "ERROR": 40}
# What the SDK prints of a local test's result: prompts and pictures.
RESULT: Final = "Job result:"
PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h


def load() -> Any:
    """Import and return runpod.serverless.

    Its debugger asks cpuinfo for the processor's name while it is imported, which takes 1.1 s of
    each cold start; platform knows enough.
    """
    slow = cpuinfo.get_cpu_info
    cpuinfo.get_cpu_info = lambda: {"brand_raw": platform.machine()}
    try:
        import runpod.serverless  # noqa: PLC0415 - here, where it is fast
    finally:
        cpuinfo.get_cpu_info = slow
    return runpod.serverless


def route_log(level: str) -> None:
    """Write what the SDK logs as lines of our log: from INFO or `level`, and never a result.

    At DEBUG, its own default, it logs whole results, pictures included.
    """
    from runpod.serverless.modules.rp_logger import RunPodLogger  # noqa: PLC0415 - after load()

    least = max(log.LEVELS[level], log.LEVELS["INFO"])

    def forward(message: Any, message_level: str = "INFO", job_id: str | None = None) -> None:
        number = LEVELS.get(message_level, 20)
        text = str(message)
        if number < least or text.startswith(RESULT):
            return
        job = {} if job_id is None else {"job_id": job_id}
        log.get().log(number, "sdk", message=text, **job)

    RunPodLogger().log = forward


_ping_loop: Callable[..., None] | None = None


def _ping_until_orphaned(*arguments: Any, **named: Any) -> None:
    """Run the SDK's ping loop in the heartbeat's process, which ends when its parent does.

    A heartbeat that outlives a killed worker makes the platform send jobs to nobody.
    """
    parent = os.getppid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the fork has the worker's handlers
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before it could be watched
        return
    assert _ping_loop is not None  # noqa: S101 - tie_heartbeat() set it
    _ping_loop(*arguments, **named)


def tie_heartbeat() -> None:
    """Let the heartbeat's process end with this one, however this one ends."""
    global _ping_loop  # noqa: PLW0603 - a process target must be a module's function
    from runpod.serverless.modules.rp_ping import Heartbeat  # noqa: PLC0415 - after load()

    _ping_loop = Heartbeat.process_loop
    Heartbeat.process_loop = staticmethod(_ping_until_orphaned)
