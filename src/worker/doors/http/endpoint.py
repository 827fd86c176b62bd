"""A queue endpoint of RunPod as its callers see it: jobs are queued, followed and cancelled."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any, Final

import aiohttp

from worker import log
from worker.doors.http.responses import Refused, encode_json
from worker.media.dial import make_tls_context

FINAL: Final = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"})
POLL_S: Final = 1.0
# A job is paid for whether or not its state can be seen: what fails for a minute may come back.
MOST_FAILURES: Final = 60
# A cancel saves money, and may meet the same fault that ended its caller's patience.
MOST_CANCELS: Final = 3
LONGEST_PAUSE_S: Final = 60
ANSWER_S: Final = 60.0
# Of RunPod's own words for why it refuses something, as many as a line has.
LONGEST_REASON: Final = 300
JOB_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")
SECONDS: Final = re.compile(r"[0-9]{1,9}")
ENDPOINT_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


class QueueEndpoint:
    """One endpoint at `base`, such as https://api.runpod.ai/v2/ID, and the key that it asks for.

    Calls raise Refused, also for an id that cannot be RunPod's. `pause` waits for some seconds.
    """

    def __init__(
        self, base: str, key: str, pause: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        self._pause = pause
        self.base = base
        self._headers = {"Authorization": f"Bearer {key}"}
        self._session: aiohttp.ClientSession | None = None

    async def post(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Queue the job of a body in RunPod's form; return its id and status."""
        queued = await self._call("POST", "run", body)
        if not isinstance(queued.get("id"), str):
            raise _make_unreachable("RunPod's answer has no id of a job")
        return queued

    async def show_status(self, job_id: str) -> dict[str, Any]:
        """Return a job's state."""
        return await self._call("GET", f"status/{_check_id(job_id)}")

    async def stop(self, job_id: str) -> dict[str, Any]:
        """Cancel a job; return its state."""
        return await self._call("POST", f"cancel/{_check_id(job_id)}")

    async def try_to_stop(self, job_id: str) -> None:
        """Cancel a job that may have ended; raises nothing."""
        for _ in range(MOST_CANCELS):
            try:
                await self.stop(job_id)
            except Refused as refusal:
                if refusal.retry_after is None:
                    return
                await self._pause(POLL_S)
            else:
                return
        log.get().warning("job not cancelled: it may go on, and be paid for", job=job_id)

    async def show_health(self) -> dict[str, Any]:
        """Return the endpoint's counts of jobs and workers."""
        return await self._call("GET", "health")

    async def follow(self, job_id: str) -> AsyncIterator[dict[str, Any]]:
        """Yield a job's state each time it is asked for, the last time once it has ended.

        Raises Refused for what will not change, and where MOST_FAILURES requests in a row failed.
        """
        failures = 0
        while True:
            pause: float = POLL_S
            try:
                state = await self.show_status(job_id)
                if not isinstance(state.get("status"), str):
                    raise _make_unreachable("RunPod's answer has no status")
            except Refused as refusal:
                failures += 1
                if refusal.status == HTTPStatus.NOT_FOUND:
                    raise _make_forgotten() from None
                if refusal.retry_after is None:
                    raise
                if failures >= MOST_FAILURES:
                    raise _make_unknown(refusal) from None
                pause = max(POLL_S, refusal.retry_after)
            else:
                failures = 0
                yield state
                if state["status"] in FINAL:
                    return
            await self._pause(pause)

    async def close(self) -> None:
        """Close its connections."""
        if self._session is not None:
            await self._session.close()

    async def _call(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        if self._session is None:
            connector = aiohttp.TCPConnector(ssl=make_tls_context())
            timeout = aiohttp.ClientTimeout(total=ANSWER_S)
            self._session = aiohttp.ClientSession(
                connector=connector, timeout=timeout, trust_env=True
            )
        data = None if body is None else encode_json(body)
        try:
            async with self._session.request(
                method,
                f"{self.base}/{path}",
                data=data,
                headers={**self._headers, "Content-Type": "application/json"},
                allow_redirects=False,
            ) as response:
                text = await response.read()
                retry_after = response.headers.get("Retry-After", "")
                return _read_answer(response.status, text, retry_after)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            log.get().debug("no answer", path=path, reason=type(error).__name__)
            raise _make_unreachable("RunPod did not answer") from None


def _read_answer(status: int, text: bytes, retry_after: str) -> dict[str, Any]:
    """Return the object of an answer; raises Refused for any other, with RunPod's own words.

    `retry_after` is its header, of which whole seconds are followed. The key is this program's: a
    401 would make a page ask its user for one.
    """
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        message = "RunPod refused RUNPOD_API_KEY, or the key may not use this endpoint"
        raise Refused(HTTPStatus.BAD_GATEWAY, "key_refused", message)
    if status == HTTPStatus.NOT_FOUND:
        message = "RunPod knows no such endpoint or job"
        raise Refused(HTTPStatus.NOT_FOUND, "not_found", message)
    after = min(int(retry_after), LONGEST_PAUSE_S) if SECONDS.fullmatch(retry_after) else 1
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        message = "RunPod takes no more requests for a while (429)"
        raise Refused(status, "rate_limit_exceeded", message, retry_after=after)
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        raise _make_unreachable(f"RunPod answered with {status}", after)
    try:
        answer = json.loads(text)
    except ValueError:
        answer = None
    if status != HTTPStatus.OK:
        reason = (
            answer.get("error", answer)
            if isinstance(answer, dict)
            else text.decode(errors="replace")
        )
        message = f"RunPod answered with {status}: {str(reason)[:LONGEST_REASON]}"
        raise Refused(HTTPStatus.BAD_REQUEST, "refused_by_endpoint", message)
    if not isinstance(answer, dict):
        raise _make_unreachable("RunPod's answer is not an object")
    return answer


def _make_unreachable(message: str, retry_after: int = 1) -> Refused:
    return Refused(HTTPStatus.BAD_GATEWAY, "endpoint_unreachable", message, retry_after=retry_after)


def _make_forgotten() -> Refused:
    message = "RunPod does not know this job any more: its result has expired, or it was removed"
    return Refused(HTTPStatus.NOT_FOUND, "job_not_found", message)


def _make_unknown(refusal: Refused) -> Refused:
    message = f"what became of the job is unknown after {MOST_FAILURES} requests: {refusal.message}"
    return Refused(HTTPStatus.BAD_GATEWAY, "endpoint_unreachable", message)


def _check_id(job_id: str) -> str:
    if not JOB_ID.fullmatch(job_id):
        raise Refused(HTTPStatus.NOT_FOUND, "job_not_found", "no job is known by that id")
    return job_id
