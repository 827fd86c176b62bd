"""A queue endpoint of RunPod as its callers see it: jobs are queued, followed and cancelled."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Mapping
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
ANSWER_S: Final = 60.0
# Of RunPod's own words for why it refuses something, as many as a line has.
LONGEST_REASON: Final = 300
JOB_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")
ENDPOINT_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


class QueueEndpoint:
    """One endpoint at `base`, such as https://api.runpod.ai/v2/ID, and the key that it asks for.

    Calls raise Refused, also for an id that cannot be RunPod's.
    """

    def __init__(self, base: str, key: str) -> None:
        self.base = base.rstrip("/")
        self._headers = {"Authorization": f"Bearer {key}"}
        self._session: aiohttp.ClientSession | None = None

    async def post(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Queue the job of a body in RunPod's form; return its id and status."""
        return await self._call("POST", "run", body)

    async def show_status(self, job_id: str) -> dict[str, Any]:
        """Return a job's state."""
        return await self._call("GET", f"status/{_check_id(job_id)}")

    async def stop(self, job_id: str) -> dict[str, Any]:
        """Cancel a job; return its state."""
        return await self._call("POST", f"cancel/{_check_id(job_id)}")

    async def show_health(self) -> dict[str, Any]:
        """Return the endpoint's counts of jobs and workers."""
        return await self._call("GET", "health")

    async def follow(self, job_id: str) -> AsyncIterator[dict[str, Any]]:
        """Yield a job's state each time it is asked for, the last time once it has ended."""
        failures = 0
        while True:
            try:
                state = await self.show_status(job_id)
            except Refused as refusal:
                failures += 1
                if refusal.retry_after is None or failures > MOST_FAILURES:
                    raise
            else:
                failures = 0
                yield state
                if state.get("status") in FINAL:
                    return
            await asyncio.sleep(POLL_S)

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
                return _read_answer(response.status, text)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            log.get().debug("no answer", path=path, reason=type(error).__name__)
            raise _make_unreachable("RunPod did not answer") from None


def _read_answer(status: int, text: bytes) -> dict[str, Any]:
    """Return the object of an answer; raises Refused for any other, with RunPod's own words.

    The key is this program's: a 401 would make a page ask its user for one.
    """
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        message = "RunPod refused RUNPOD_API_KEY, or the key may not use this endpoint"
        raise Refused(HTTPStatus.BAD_GATEWAY, "key_refused", message)
    if status == HTTPStatus.NOT_FOUND:
        message = "RunPod knows no such endpoint or job"
        raise Refused(HTTPStatus.NOT_FOUND, "not_found", message)
    if status == HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        raise _make_unreachable(f"RunPod answered with {status}")
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


def _make_unreachable(message: str) -> Refused:
    return Refused(HTTPStatus.BAD_GATEWAY, "endpoint_unreachable", message, retry_after=1)


def _check_id(job_id: str) -> str:
    if not JOB_ID.fullmatch(job_id):
        raise Refused(HTTPStatus.NOT_FOUND, "job_not_found", "no job is known by that id")
    return job_id
