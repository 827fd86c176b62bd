"""What every door does around its loop: boot, serve or refuse, and end with the right code."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Final, Protocol

from worker import log, settings
from worker.edge import reply
from worker.errors import InvalidSettings, StartFailed, UnfitHost, WorkerError, WorkerNotReady
from worker.jobs.job import Handle
from worker.seam import Models
from worker.settings import Settings

# How long a worker whose start would fail again answers jobs with the reason: long enough for the
# operator to read it in a reply, short enough not to be paid for unnoticed.
REFUSE_S: Final = 300.0
FAILED: Final = 1


class Door(Protocol):
    """One way for jobs to come in and answers to go out; it knows neither models nor tasks."""

    def listen(self) -> None:
        """Be visible to whatever looks for the worker before it is ready; return at once."""

    def serve(self, handle: Handle, until: Callable[[], bool]) -> int:
        """Pass jobs to `handle` and send its answers until asked to leave; return the exit code.

        Once `until()` is true after a job, no more are taken: those that were taken get their
        answers, and serving ends.
        """

    def refuse(self, error: WorkerError, seconds: float) -> None:
        """Answer every job with `error`; return after that many seconds or when asked to leave."""


def run(
    open_door: Callable[[Settings], Door],
    boot: Callable[[Settings], Models],
    *,
    refuse_s: float = REFUSE_S,
    instead: Mapping[str, str] | None = None,
) -> int:
    """Read the environment, boot, and serve jobs until asked to leave; return the exit code.

    `instead` takes precedence over the environment, by the variables' names.

    It is 0 after SIGTERM, SIGINT or any other end that the door calls good, and not 0 after a fatal
    error or a failed start. On the platform this does not return: it ends the process.
    """
    try:
        chosen = settings.read(instead=instead)
    except InvalidSettings as error:
        log.configure()
        chosen = settings.read_platform(instead)
        code = _report_failed_start(error, open_door(chosen), chosen, refuse_s)
    else:
        log.configure(chosen.log_level)
        code = _serve(open_door(chosen), chosen, boot, refuse_s)
    return _finish(code, chosen)


def _serve(
    door: Door, chosen: Settings, boot: Callable[[Settings], Models], refuse_s: float
) -> int:
    signal.signal(signal.SIGTERM, _leave_boot)
    try:
        door.listen()
        models = boot(chosen)
    except SystemExit:
        return 0
    except WorkerError as error:
        return _report_failed_start(error, door, chosen, refuse_s)
    except Exception:  # noqa: BLE001 - an unknown error is taken to fail at every start
        return _report_failed_start(reply.log_bug("start failed"), door, chosen, refuse_s)
    from worker.jobs.serve import Worker  # noqa: PLC0415 - the model's imports come first

    worker = Worker(chosen, models)
    code = door.serve(worker.handle, lambda: worker.fatal is not None)
    return FAILED if worker.fatal is not None else code


def _report_failed_start(error: WorkerError, door: Door, chosen: Settings, refuse_s: float) -> int:
    """Log why the start failed; answer jobs with it for a while if a restart would fail again."""
    log.get().error("start failed", error_code=error.code, reason=error.message)
    if chosen.on_platform and not error.retryable:
        # every worker of the endpoint has the same settings, but not the same machine
        kind = WorkerNotReady if isinstance(error, UnfitHost) else StartFailed
        door.refuse(kind(f"the start failed: {error.code}: {error.message}"), refuse_s)
    return FAILED


def _leave_boot(*_: object) -> None:
    """End on SIGTERM before any job was taken; without a handler process 1 would ignore it."""
    raise SystemExit


def _finish(code: int, chosen: Settings) -> int:
    """Return the exit code, or on the platform end the process with it at once.

    Python's own teardown of torch took 6 s on a busy machine, and with a lost device it can hang;
    all that is left to end is child processes, such as RunPod's heartbeat.
    """
    if not chosen.on_platform:
        return code
    log.get().info("ended", code=code)
    for child in multiprocessing.active_children():
        child.kill()
        child.join()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
