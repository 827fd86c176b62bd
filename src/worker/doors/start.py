"""What every door does around its loop: boot, serve or refuse, and end with the right code."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from typing import Final, Protocol

from worker import log, settings
from worker.edge import reply
from worker.errors import InvalidSettings, StartFailed, UnfitHost, WorkerError, WorkerNotReady
from worker.jobs.job import Handle
from worker.seam import Models
from worker.settings import Settings

# How long a worker whose start cannot succeed by trying again answers jobs with the reason: long
# enough for the operator to read it in a reply, short enough not to be paid for unnoticed.
REFUSE_S: Final = 300.0
FAILED: Final = 1


class Door(Protocol):
    """One way for jobs to come in and for answers to go out; it knows no model and no task."""

    def listen(self) -> None:
        """Be seen from here on, where somebody looks before the worker is ready; return at once."""

    def serve(self, handle: Handle, until: Callable[[], bool]) -> int:
        """Give jobs to `handle` and send its answers until told to leave; return the exit code.

        After a job with which `until()` is true no further one is taken: jobs that were taken get
        their answers, and serving ends.
        """

    def refuse(self, error: WorkerError, seconds: float) -> None:
        """Answer every job with `error`, and return after that many seconds or when told to."""


def run(
    open_door: Callable[[Settings], Door],
    boot: Callable[[Settings], Models],
    *,
    refuse_s: float = REFUSE_S,
) -> int:
    """Read the environment, boot, and serve jobs until told to leave; return the exit code.

    0 after SIGTERM, SIGINT or whatever else the door calls a good end; not 0 after a fatal error or
    a start that failed. On the platform it does not return: it ends the process.
    """
    try:
        chosen = settings.read()
    except InvalidSettings as error:
        log.configure()
        chosen = settings.where_we_run()
        code = _not_started(error, open_door(chosen), chosen, refuse_s)
    else:
        log.configure(chosen.log_level)
        code = _run(open_door(chosen), chosen, boot, refuse_s)
    return _finished(code, chosen)


def _run(door: Door, chosen: Settings, boot: Callable[[Settings], Models], refuse_s: float) -> int:
    signal.signal(signal.SIGTERM, _leave_boot)
    try:
        door.listen()
        models = boot(chosen)
    except SystemExit:
        return 0
    except WorkerError as error:
        return _not_started(error, door, chosen, refuse_s)
    except Exception:  # noqa: BLE001 - what is not known to pass would fail at every start
        return _not_started(reply.log_bug("start failed"), door, chosen, refuse_s)
    from worker.jobs.serve import Worker  # noqa: PLC0415 - the model's imports come first

    worker = Worker(chosen, models)
    code = door.serve(worker.handle, lambda: worker.fatal is not None)
    return FAILED if worker.fatal is not None else code


def _not_started(error: WorkerError, door: Door, chosen: Settings, refuse_s: float) -> int:
    """Answer jobs with the reason for a while, where a restart would fail for it again."""
    log.get().error("start failed", error_code=error.code, reason=error.message)
    if chosen.on_platform and not error.retryable:
        # every worker of the endpoint has the same settings, but not the same machine
        kind = WorkerNotReady if isinstance(error, UnfitHost) else StartFailed
        door.refuse(kind(f"the start failed: {error.code}: {error.message}"), refuse_s)
    return FAILED


def _leave_boot(*_: object) -> None:
    """End on SIGTERM before any job was taken; as process 1 nothing ends us but our own handler."""
    raise SystemExit(0)


def _finished(code: int, chosen: Settings) -> int:
    """Return the exit code, or on the platform end the process with it at once.

    Python's own teardown of torch took 6 s on a busy machine, and that of a lost device can hang
    for ever; there is nothing left to tear down but child processes, as RunPod's heartbeat.
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
