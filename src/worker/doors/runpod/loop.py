"""RunPod's queue as a door: the SDK's loop, guarded, so that every job taken gets its answer."""

from collections.abc import Callable, Mapping
from typing import Any

from worker import log
from worker.doors.runpod import local, sdk, wire
from worker.doors.runpod.wire import Handler
from worker.edge import reply
from worker.errors import WorkerError
from worker.jobs.job import Handle
from worker.settings import Settings


class RunPod:
    """One run of the SDK's loop, and the ways to end it.

    It serves in the SDK's four ways: the platform's jobs, `--rp_serve_api`, `--test_input` and
    test_input.json. The exit code is 0 after SIGTERM, SIGINT or REFRESH_WORKER, and not 0 after a
    failed local test.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._scaler: Any = None

    def listen(self) -> None:
        """Do nothing: a worker of a queue is not visible before it takes a job."""

    def serve(self, handle: Handle, until: Callable[[], bool]) -> int:
        """Serve the SDK's jobs; see Door."""
        has_queue = self._settings.has_queue
        answer = wire.make_handler(
            handle,
            self._settings,
            self._announce if has_queue else None,
            self._send if has_queue else None,
        )

        async def serve_one(given: dict[str, Any]) -> dict[str, Any]:
            try:
                return await answer(given)
            finally:
                if until():
                    self._leave()

        return self._run(serve_one)

    def refuse(self, error: WorkerError, seconds: float) -> None:
        """Answer the platform's jobs with why they cannot be done; see Door."""

        async def refuse_one(given: dict[str, Any]) -> dict[str, Any]:
            log.get().warning("job refused", job_id=given["id"], error_code=error.code)
            return reply.format_answer(reply.make_failure(error))

        self._run(refuse_one, seconds)

    def _run(self, handle: Handler, seconds: float | None = None) -> int:
        """Run the SDK's start() to its end, or for `seconds`; return the exit code."""

        def adopt(scaler: Any) -> None:
            self._scaler = scaler
            log.get().info("ready")
            if seconds is not None:
                scaler.leave_after(seconds)

        settings = self._settings
        serverless = sdk.load()
        sdk.patch(settings.log_level, adopt)
        config: dict[str, Any] = {
            "refresh_worker": settings.refresh_worker,
            "concurrency_modifier": lambda _: settings.jobs_at_once,
        }
        config["handler"] = handle if settings.has_queue else local.add_printing(handle, config)
        try:
            serverless.start(config)
        except SystemExit as end:
            return end.code if isinstance(end.code, int) else int(end.code is not None)
        except Exception:  # noqa: BLE001 - a broken loop must not look like a clean end
            log.get().exception("loop failed")
            return 1
        return 0

    def _leave(self) -> None:
        """Take no further job, and end once those that were taken have their answers."""
        if self._scaler is not None:
            self._scaler.leave()

    async def _announce(self, job_id: str, update: Mapping[str, Any]) -> None:
        """Post one update of a job."""
        if self._scaler is not None:
            await self._scaler.post_progress(job_id, update)

    async def _send(self, job_id: str, item: Mapping[str, Any]) -> None:
        """Post one item of a job's stream."""
        if self._scaler is not None:
            await self._scaler.post_item(job_id, item)
