"""Boot, then RunPod's loop around the worker, guarded: every job taken gets its answer."""

import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from worker import log
from worker.edge import reply
from worker.errors import StartFailed, WorkerError
from worker.loop import sdk
from worker.seam import Models
from worker.settings import Settings, where_we_run

# How long a worker whose start cannot succeed by trying again answers jobs with the reason: long
# enough for the operator to read it in a reply, short enough not to be paid for unnoticed.
REFUSE_S: Final = 300.0
FAILED: Final = 1

Handler = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


def run(
    settings: Settings, boot: Callable[[Settings], Models], *, refuse_s: float = REFUSE_S
) -> int:
    """Boot and serve jobs until told to leave; return the exit code.

    Serves in the SDK's four ways: the platform's jobs, `--rp_serve_api`, `--test_input` and
    test_input.json. 0 after SIGTERM, SIGINT or REFRESH_WORKER; not 0 after a fatal error, a failed
    local test, or a start that failed. On the platform it does not return: it ends the process.
    """
    return _finished(_run(settings, boot, refuse_s), settings)


def _run(settings: Settings, boot: Callable[[Settings], Models], refuse_s: float) -> int:
    log.configure(settings.log_level)
    signal.signal(signal.SIGTERM, _leave_boot)
    try:
        models = boot(settings)
    except SystemExit:
        return 0
    except WorkerError as error:
        return _not_started(error, settings, refuse_s)
    except Exception:  # noqa: BLE001 - what is not known to pass would fail at every start
        return _not_started(reply.bug("start failed"), settings, refuse_s)
    from worker.jobs.serve import Worker  # noqa: PLC0415 - the model's imports come first

    loop = _Loop(settings)
    worker = Worker(settings, models, loop.announce if settings.on_platform else None)

    async def handle(job: dict[str, Any]) -> dict[str, Any]:
        try:
            return await worker.handle(job)
        finally:
            if worker.fatal is not None:
                loop.fail()

    return loop.serve(handle)


def refuse(error: WorkerError, *, refuse_s: float = REFUSE_S) -> int:
    """Answer the platform's jobs with why there is not even a valid environment, then exit."""
    log.configure()
    settings = where_we_run()
    return _finished(_not_started(error, settings, refuse_s), settings)


def _not_started(error: WorkerError, settings: Settings, refuse_s: float) -> int:
    """Answer jobs with the reason for a while, where a restart would fail for it again."""
    log.get().error("start failed", error_code=error.code, reason=error.message)
    if error.retryable or not settings.on_platform:
        return FAILED
    answer = StartFailed(f"the start failed: {error.code}: {error.message}")

    async def handle(job: dict[str, Any]) -> dict[str, Any]:
        log.get().warning("job refused", job_id=job["id"], error_code=answer.code)
        return reply.failure(answer)

    loop = _Loop(settings, seconds=refuse_s)
    loop.serve(handle)
    return FAILED


def _leave_boot(*_: object) -> None:
    """End on SIGTERM before any job was taken; as process 1 nothing ends us but our own handler."""
    raise SystemExit(0)


class _Loop:
    """One run of the SDK's loop, and the ways to end it."""

    def __init__(self, settings: Settings, *, seconds: float | None = None) -> None:
        self._settings = settings
        self._seconds = seconds
        self._scaler: Any = None
        self._failed = False

    def serve(self, handle: Handler) -> int:
        """Run the SDK's start() to its end; return the exit code."""
        settings = self._settings
        serverless = sdk.load()
        sdk.route_log(settings.log_level)
        sdk.tie_heartbeat()
        from worker.loop import scaler  # noqa: PLC0415 - it imports the SDK

        scaler.install(self._made)
        # A second job taken beside the first would be lost with the pod that the first one's
        # answer stops.
        two = settings.prefetch and not settings.refresh_worker
        config: dict[str, Any] = {
            "refresh_worker": settings.refresh_worker,
            "concurrency_modifier": lambda _: 2 if two else 1,
        }
        config["handler"] = handle if settings.on_platform else _shown(handle, config)
        try:
            serverless.start(config)
        except SystemExit as end:
            return end.code if isinstance(end.code, int) else int(end.code is not None)
        except Exception:  # noqa: BLE001 - a broken loop must not look like a clean end
            log.get().exception("loop failed")
            self._failed = True
        return FAILED if self._failed else 0

    def fail(self) -> None:
        """End after the answers to the jobs that were taken, with a code that tells of failure."""
        self._failed = True
        if self._scaler is not None:
            self._scaler.leave()

    async def announce(self, job_id: str, update: Mapping[str, Any]) -> None:
        """Post one update of a job."""
        if self._scaler is not None:
            await self._scaler.progress(job_id, update)

    def _made(self, scaler: Any) -> None:
        self._scaler = scaler
        log.get().info("ready")
        if self._seconds is not None:
            scaler.leave_after(self._seconds)


def _shown(handle: Handler, config: Mapping[str, Any]) -> Handler:
    """Print a local test's reply to standard output, without its pictures."""

    async def shown(job: dict[str, Any]) -> dict[str, Any]:
        answer = await handle(job)
        if not config["rp_args"]["rp_serve_api"]:
            sys.stdout.write(json.dumps(_without_pictures(answer), ensure_ascii=False) + "\n")
            sys.stdout.flush()
        return answer

    return shown


def _without_pictures(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_pictures(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_pictures(item) for item in value]
    if isinstance(value, str) and len(value) > 10_000:  # noqa: PLR2004 - twice the longest prompt
        return f"<{len(value)} characters>"
    return value


def _finished(code: int, settings: Settings) -> int:
    """Return the exit code, or on the platform end the process with it at once.

    Python's own teardown of torch took 6 s on a busy machine, and that of a lost device can hang
    for ever; there is nothing left to tear down but the heartbeat.
    """
    if not settings.on_platform:
        return code
    log.get().info("ended", code=code)
    for child in multiprocessing.active_children():
        child.kill()
        child.join()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
