"""Which door a worker has, by its settings; only that one is imported."""

from worker import log
from worker.doors.start import Door
from worker.settings import Settings


def open_door(settings: Settings) -> Door:
    """Return the door through which jobs come in: HTTP, or RunPod's queue."""
    if settings.serves_http:
        from worker.doors.http.door import Http  # noqa: PLC0415 - the other one is not needed

        return Http(settings)
    from worker.doors.runpod.loop import RunPod  # noqa: PLC0415 - the same

    if settings.port is not None and settings.serve == "auto":
        log.get().info("PORT is not used: RunPod's queue sends the jobs")
    return RunPod(settings)
