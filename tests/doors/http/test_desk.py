"""The door around a worker of the test's own: what each of its states, jobs and results is."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from structlog.testing import capture_logs

from worker import settings
from worker.doors.http import desk as desks
from worker.doors.http import events, queue_routes
from worker.doors.http.app import make_app, make_checks
from worker.doors.http.desk import Desk
from worker.doors.http.line import Line
from worker.doors.http.tracked import Tracked
from worker.edge.reply import make_failure
from worker.errors import BadPicture, CudaOutOfMemory, StartFailed, WorkerNotReady
from worker.jobs.job import Answer, Job
from worker.jobs.limit import Limit

EXPOSED = "retry-after, x-request-id, x-sample-rate, x-should-retry"
EVENTS = {"Accept": "text/event-stream"}
BALANCED = {"SERVE": "", "PORT": "8000", "RUNPOD_ENDPOINT_ID": "e"}


class Drawing:
    """A worker that remembers its jobs; one whose prompt is "wait" ends once `free` is set."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.free = asyncio.Event()
        self.fatal = False
        self.report: Answer = {"status": "ready"}

    async def handle(self, job: Job) -> Answer:
        """Answer with two pictures, or as the prompt says."""
        if job.input == {"op": "health"}:
            return self.report
        self.jobs.append(job)
        if job.wait is not None:
            await job.wait()
        prompt = job.input.get("prompt")
        if prompt == "wait":
            assert job.listener is not None
            await job.listener({"step": 2, "steps": 5})
            await self.free.wait()
        if prompt == "bug":
            raise KeyError
        if prompt == "bad":
            return make_failure(BadPicture("black"))
        if prompt == "memory":
            return make_failure(CudaOutOfMemory("full"))
        pictures = [{"base64": "aaaa", "seed": 1}, {"base64": "bbbb", "seed": 2}]
        return {"images": pictures, "seed": 1, "timings_ms": {}}


class Place:
    """A door with its desk, and one who calls at it."""

    def __init__(self, desk: Desk, client: Any, drawing: Drawing, left: list[bool]) -> None:
        self.desk, self.drawing, self.left = desk, drawing, left
        self.client = client

    async def get(self, path: str, **named: Any) -> tuple[int, Any]:
        """Return the status and the JSON of an answer."""
        async with self.client.get(path, **named) as response:
            return response.status, await response.json()

    async def post(self, path: str, body: Any = None, **named: Any) -> tuple[int, Any]:
        """Return the status and the JSON of an answer."""
        async with self.client.post(path, json=body, **named) as response:
            return response.status, await response.json()

    async def begin(self, prompt: str = "wait") -> str:
        """Queue a job; return its id."""
        _, queued = await self.post("/run", {"input": {"prompt": prompt}})
        await asyncio.sleep(0)
        job_id: str = queued["id"]
        return job_id


@asynccontextmanager
async def opened(
    environ: dict[str, str] | None = None, *, opens: bool = True
) -> AsyncIterator[Any]:
    chosen = settings.read({"SERVE": "http", "BATCH_SIZE": "1", **(environ or {})})
    left: list[bool] = []
    desk, drawing = Desk(chosen, lambda: left.append(True)), Drawing()
    if opens:
        desk.open_for(drawing.handle, lambda: drawing.fatal)
    async with TestClient(TestServer(make_app(chosen, desk))) as client:
        try:
            yield Place(desk, client, drawing, left)
        finally:
            drawing.free.set()


def run(case: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(30):
            await case()

    asyncio.run(limited())


def workers(**counts: int) -> dict[str, int]:
    names = ("idle", "initializing", "ready", "running", "throttled", "unhealthy")
    return dict.fromkeys(names, 0) | counts


async def ping(place: Place) -> tuple[int, str]:
    async with place.client.get("/ping") as response:
        return response.status, await response.text()


def test_health_counts_the_worker_by_what_it_does() -> None:
    async def case() -> None:
        async with opened(opens=False) as place:
            assert await ping(place) == (204, "")
            status, health = await place.get("/health")
            assert (status, health["workers"]) == (503, workers(initializing=1))
            assert health["reason"] is None
            status, refused = await place.post("/generate", {"prompt": "x"})
            assert (status, refused["error"]["message"]) == (503, "the worker is starting")
            place.desk.open_for(place.drawing.handle, lambda: False)
            assert await ping(place) == (200, "ok")
            status, health = await place.get("/health")
            assert (status, health["workers"]) == (200, workers(idle=1, ready=1))
            assert health["worker"] == {"status": "ready"}
            slots = settings.read({}).jobs_at_once
            for _ in range(slots + 1):
                await place.begin()
            await place.post("/generate", {"prompt": "x"}) if slots > 1 else None
            _, health = await place.get("/health")
            assert health["workers"] == workers(ready=1, running=1)
            jobs = {"completed": 0, "failed": 0, "inProgress": slots, "inQueue": 1, "retried": 0}
            assert health["jobs"] == jobs
            place.drawing.free.set()
            await place.post("/generate", {"prompt": "bad"})
            await place.post("/generate", {"prompt": "x"})
            _, health = await place.get("/health")
            assert health["workers"] == workers(idle=1, ready=1)
            jobs = {"completed": slots + 2, "failed": 1, "inProgress": 0, "inQueue": 0}
            assert health["jobs"] == {**jobs, "retried": 0}
            place.desk.is_leaving = True
            assert await ping(place) == (503, "not ready")
            status, health = await place.get("/health")
            assert (status, health["workers"]) == (503, workers(unhealthy=1))
            status, refused = await place.post("/generate", {"prompt": "x"})
            assert (status, refused["error"]["message"]) == (503, "the worker is leaving")

    run(case)


@pytest.mark.parametrize(
    ("error", "after"), [(StartFailed("why"), None), (WorkerNotReady("why"), "5")]
)
def test_a_closed_door_says_why_and_whether_to_come_again(error: Any, after: str | None) -> None:
    async def case() -> None:
        async with opened(opens=False) as place:
            place.desk.close_for(error)
            assert await ping(place) == (503, "not ready")
            _, health = await place.get("/health")
            assert (health["workers"], health["reason"]) == (workers(unhealthy=1), "why")
            async with place.client.post("/run", json={"input": {}}) as response:
                assert response.status == 503
                assert response.headers.get("Retry-After") == after
                assert (await response.json())["error"]["message"] == "why"
            place.desk.is_leaving = True
            async with place.client.post("/run", json={"input": {}}) as response:
                assert response.headers["Retry-After"] == "5"
                assert "leaving" in await response.text()

    run(case)


def test_a_worker_that_cannot_report_is_not_ready() -> None:
    async def case() -> None:
        async with opened() as place:
            place.drawing.report = make_failure(WorkerNotReady("why"))
            status, refused = await place.get("/health")
            error = refused["error"]
            assert (status, error["code"], error["message"]) == (503, "worker_not_ready", "why")

    run(case)


def test_a_bug_in_an_answer_is_an_answer_too_and_in_the_log() -> None:
    async def case() -> None:
        async with opened() as place:
            place.drawing.report = None
            status, refused = await place.get("/health")
            assert (status, refused["error"]["code"]) == (500, "internal")

    with capture_logs() as lines:
        run(case)
    assert [line["event"] for line in lines if line["log_level"] == "error"] == ["bug"]


def test_a_report_is_answered_as_it_is_where_jobs_are_flat() -> None:
    async def case() -> None:
        async with opened() as place:
            assert await place.post("/generate", {"op": "health"}) == (200, {"status": "ready"})

    run(case)


def test_a_job_hears_of_its_door_what_its_caller_gave() -> None:
    async def case() -> None:
        async with opened() as place:
            policy = {"executionTimeout": 100_000}
            others = {f"x{number:02}": 1 for number in range(11)}
            body = {"input": {"prompt": "x"}, "policy": policy, "id": "7", **others}
            await place.post("/runsync", body)
            await place.post("/generate", {"prompt": "x"})
            await place.post("/generate_async", {"prompt": "x"})
            own, flat, later = place.drawing.jobs
            assert own.limit == Limit(98.0, "by its policy.executionTimeout")
            assert own.warnings == [
                f"'x{number:02}': has no effect at this door" for number in range(10)
            ]
            assert [job.is_plain for job in (own, flat, later)] == [False, True, True]
            assert [job.sink for job in (own, flat, later)] == [None] * 3
            assert [job.show for job in (own, flat, later)] == [None] * 3
            assert (flat.limit, flat.warnings, flat.previews) == (None, [], 0)
            assert own.most_bytes == 29_900_000

    run(case)


@pytest.mark.parametrize(
    ("given", "seconds"), [(None, 320), (100_000, 98.0), (320_000, 318.0), (322_001, 320)]
)
def test_behind_the_balancer_the_first_limit_counts(given: int | None, seconds: float) -> None:
    async def case() -> None:
        async with opened(BALANCED) as place:
            policy = {} if given is None else {"policy": {"executionTimeout": given}}
            await place.post("/runsync", {"input": {"prompt": "x"}, **policy})
            (job,) = place.drawing.jobs
            assert job.limit is not None
            assert job.limit.seconds == seconds

    run(case)


def test_a_kept_job_is_found_by_its_id_and_another_is_not() -> None:
    async def case() -> None:
        async with opened() as place:
            for path in ("/run", "/generate_async"):
                body = {"prompt": "x"} if path != "/run" else {"input": {"prompt": "x"}}
                _, queued = await place.post(path, body)
                job_id = queued.get("id") or queued["job_id"]
                state: dict[str, Any] = {}
                while state.get("status") != "COMPLETED":
                    status, state = await place.get(f"/status/{job_id}")
                    assert status == 200
                assert (state["job_id"], state["detail"]) == (job_id, None)
                assert "error" not in state
                status, simple = await place.get(f"/result/{job_id}")
                assert status == 200
                assert simple["image"] == "aaaa"
                assert simple["images"] == [{"seed": 1}, {"base64": "bbbb", "seed": 2}]
            async with place.client.post("/generate", json={"prompt": "x"}) as response:
                assert response.content_type == "application/json"
                flat = response.headers["x-request-id"]
            assert (await place.get(f"/status/{flat}"))[0] == 404
            assert (await place.get(f"/result/{flat}"))[0] == 404

    run(case)


@pytest.mark.parametrize(
    ("prompt", "status", "code"),
    [("bad", 500, "bad_picture"), ("memory", 503, "cuda_out_of_memory"), ("bug", 500, "internal")],
)
def test_a_job_that_fails_says_so_by_every_route(prompt: str, status: int, code: str) -> None:
    async def case() -> None:
        async with opened() as place:
            async with place.client.post("/generate", json={"prompt": prompt}) as response:
                found = (await response.json())["error"]["code"]
                assert (response.status, found) == (status, code)
                assert place.drawing.jobs[0].id == response.headers["x-request-id"]
            _, state = await place.post("/runsync", {"input": {"prompt": prompt}})
            assert state["status"] == "FAILED"
            assert state["error"] == state["detail"]
            assert state["error"].startswith(code.upper())
            assert "error" not in state["output"]
            async with place.client.get(f"/result/{state['id']}") as response:
                assert (response.status, response.headers["x-request-id"]) == (status, state["id"])
            async with place.client.get(f"/status/{state['id']}") as response:
                assert (response.status, response.headers["x-request-id"]) == (200, state["id"])
                assert response.content_type == "application/json"
            assert place.desk.meters.ends == {"failed": 2}
            assert place.left == []

    with capture_logs() as lines:
        run(case)
    bugs = ["bug"] * 2 if prompt == "bug" else []
    assert [line["event"] for line in lines if line["log_level"] == "error"] == bugs


def test_those_that_wait_are_counted_and_one_too_many_is_refused() -> None:
    async def case() -> None:
        async with opened({"HTTP_QUEUE": "1"}) as place:
            for _ in range(settings.read({}).jobs_at_once):
                await place.begin()
            job_id = await place.begin()
            status, waiting = await place.get(f"/result/{job_id}")
            assert (status, waiting) == (202, {"detail": "Job status: queued"})
            status, refused = await place.post("/generate", {"prompt": "x"})
            assert (status, refused["error"]["code"]) == (429, "rate_limit_exceeded")
            assert place.desk.meters.ends == {"refused": 1}

    run(case)


def test_jobs_that_were_completed_say_when_to_come_again() -> None:
    """How long one took that failed or was cancelled says nothing of the next."""

    async def case() -> None:
        async with opened() as place:
            await place.post("/generate", {"prompt": "bad"})
            await place.post(f"/cancel/{await place.begin()}")
            assert place.desk.line.estimate() == 5
            await place.post("/generate", {"prompt": "x"})
            assert place.desk.line.estimate() == 1

    run(case)


@pytest.mark.parametrize("path", ["result", "status"])
def test_a_result_that_was_fetched_keeps_no_worker_here(path: str) -> None:
    async def case() -> None:
        async with opened() as place:
            _, queued = await place.post("/generate_async", {"prompt": "wait"})
            await place.get(f"/{path}/{queued['job_id']}")
            place.drawing.free.set()
            await place.desk.results.find(queued["job_id"]).wait()
            assert place.desk.results.has_unseen
            status, _ = await place.get(f"/{path}/{queued['job_id']}")
            assert (status, place.desk.results.has_unseen) == (200, False)

    run(case)


def test_a_cancelled_job_has_no_result() -> None:
    async def case() -> None:
        async with opened() as place:
            job_id = await place.begin()
            status, waiting = await place.get(f"/result/{job_id}")
            assert (status, waiting) == (202, {"detail": "Job status: running"})
            _, state = await place.post(f"/cancel/{job_id}")
            assert state["status"] == "CANCELLED"
            status, refused = await place.get(f"/result/{job_id}")
            assert (status, refused["error"]["code"]) == (409, "cancelled")
            assert place.desk.meters.ends == {"cancelled": 1}

    run(case)


def test_one_that_waits_longer_than_runsync_does_goes_on_with_status(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(queue_routes, "WAIT_S", 0.05)

    async def case() -> None:
        async with opened() as place:
            status, state = await place.post("/runsync", {"input": {"prompt": "wait"}})
            assert status == 200
            while not state.get("output"):
                _, state = await place.get(f"/status/{state['id']}")
            assert (state["status"], state["output"]) == ("IN_PROGRESS", {"step": 2, "steps": 5})
            place.drawing.free.set()
            while state["status"] != "COMPLETED":
                _, state = await place.get(f"/status/{state['id']}")

    run(case)


def test_events_come_again_where_nothing_happens_and_a_follower_stops_no_job(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(events, "QUIET_S", 0.02)

    async def case() -> None:
        async with opened() as place:
            job_id = await place.begin()
            async with place.client.get(f"/status/{job_id}", headers=EVENTS) as response:
                head = response.headers
                assert head["Content-Type"] == "text/event-stream"
                assert head["Cache-Control"] == "no-store"
                assert head["X-Accel-Buffering"] == "no"
                assert head["x-request-id"] == job_id
                for _ in range(3):
                    assert await response.content.readline() == b"event: progress\n"
                    data = await response.content.readline()
                    assert json.loads(data.removeprefix(b"data: "))["status"] == "IN_PROGRESS"
                    assert await response.content.readline() == b"\n"
            await asyncio.sleep(0.05)
            assert (await place.get(f"/status/{job_id}"))[1]["status"] == "IN_PROGRESS"
            body = {"input": {"prompt": "wait"}}
            response = await place.client.post("/runsync", json=body, headers=EVENTS)
            await response.content.readline()
            response.close()
            while not place.desk.meters.ends["cancelled"]:  # noqa: ASYNC110 - the door says nothing of it
                await asyncio.sleep(0.005)

    run(case)


def test_after_a_job_that_nothing_can_follow_its_door_is_left_once() -> None:
    async def case() -> None:
        async with opened() as place:
            await place.post("/generate", {"prompt": "x"})
            assert place.left == []
            place.drawing.fatal = True
            await place.post("/generate", {"prompt": "x"})
            assert place.left == [True]
            job_id = await place.begin()
            place.desk.is_leaving = True
            await place.post(f"/cancel/{job_id}")
            assert place.left == [True]

    run(case)


def test_one_that_leaves_waits_for_its_jobs_and_some_time_for_their_callers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(desks, "FETCH_S", 0.1)

    async def case() -> None:
        async with opened() as place:
            job_id = await place.begin()
            leaving = asyncio.create_task(place.desk.finish())
            await asyncio.sleep(0.05)
            assert not leaving.done()
            place.drawing.free.set()
            await leaving
            assert (await place.get(f"/status/{job_id}"))[1]["status"] == "COMPLETED"
            await place.desk.finish()

    run(case)


def test_one_that_leaves_goes_once_its_callers_have_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desks, "FETCH_S", 3600.0)

    async def case() -> None:
        async with opened() as place:
            job_id = await place.begin()
            leaving = asyncio.create_task(place.desk.finish())
            place.drawing.free.set()
            await asyncio.wait({leaving}, timeout=0.3)
            assert not leaving.done()
            state: dict[str, Any] = {}
            while state.get("status") != "COMPLETED":
                _, state = await place.get(f"/status/{job_id}")
            await leaving

    run(case)


def test_a_wait_that_is_cancelled_cancels_its_job_and_waits_for_that() -> None:
    async def case() -> None:
        async with opened() as place:
            entry = place.desk.results.find(await place.begin())
            waiting = asyncio.create_task(entry.wait())
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait({waiting})
            assert waiting.cancelled()
            assert entry.state == "CANCELLED"
            await entry.stop()

    run(case)


def test_a_job_is_described_by_its_times_in_milliseconds() -> None:
    async def case() -> None:
        line = Line(1, 2)
        line.join()
        entry = Tracked("a", line.join())
        entry.arrived -= 1_000_000
        shown = entry.describe()
        assert 0 <= shown.pop("waitedTime") - 1_000_000_000 < 30_000
        assert shown == {"id": "a", "status": "IN_QUEUE", "position": 1}
        entry.arrived, entry.begun, entry.state = 1.0, 3.5, "IN_PROGRESS"
        assert entry.describe() == {"id": "a", "status": "IN_PROGRESS", "delayTime": 2500}
        await entry.announce({"step": 1})
        assert entry.describe()["output"] == {"step": 1}
        assert [entry.is_seen] == [False]
        entry.ended, entry.state, entry.output = 4.75, "FAILED", {"error": "E", "error_code": "C"}
        assert entry.describe() == {
            "id": "a",
            "status": "FAILED",
            "delayTime": 2500,
            "executionTime": 1250,
            "error": "E",
            "output": {"error_code": "C"},
        }
        assert [entry.is_seen] == [True]
        entry.output = {"images": []}
        assert entry.describe()["output"] == {"images": []}

    run(case)


def test_every_change_wakes_those_who_follow() -> None:
    async def case() -> None:
        entry = Tracked("a", Line(1, 1).join())
        changes: list[Callable[[], Any]] = [
            entry.wait_for_turn,
            lambda: entry.announce({}),
            lambda: entry.add_part(0, None),  # type: ignore[arg-type] # whatever it is
        ]
        for change in changes:
            news = entry.news
            await change()
            assert news.is_set()
            assert not entry.news.is_set()
        news = entry.news
        entry.add_ready(None)  # type: ignore[arg-type] # whatever it is
        assert news.is_set()
        assert (len(entry.parts), len(entry.ready)) == (1, 1)

    run(case)


def test_every_answer_keeps_itself_from_caches_and_guesses() -> None:
    async def case() -> None:
        async with opened({"CORS_ORIGINS": "https://app.example"}) as place:
            for path in ("/health", "/nowhere", "/metrics"):
                async with place.client.get(path) as response:
                    assert response.headers["Cache-Control"] == "no-store"
                    assert response.headers["X-Content-Type-Options"] == "nosniff"
                    assert "Access-Control-Allow-Origin" not in response.headers
            async with place.client.get("/metrics") as response:
                assert response.headers["Content-Type"] == (
                    "text/plain; version=0.0.4; charset=utf-8"
                )
                assert "worker_ready 1\n" in await response.text()
            async with place.client.get("/run") as response:
                assert (response.status, response.headers["Allow"]) == (405, "POST")
                error = (await response.json())["error"]
                assert (error["code"], error["message"]) == (
                    "method_not_allowed",
                    "not by this method",
                )
            _, missing = await place.get("/nowhere")
            assert missing["error"]["code"] == "not_found"
            assert "/openapi.json" in missing["error"]["message"]
            origin = {"Origin": "https://APP.example"}
            for method, path, status in (("OPTIONS", "/run", 204), ("GET", "/health", 200)):
                async with place.client.request(method, path, headers=origin) as response:
                    assert response.status == status
                    allowed = {
                        name: value
                        for name, value in response.headers.items()
                        if name.startswith("Access-Control-") or name == "Vary"
                    }
                    assert allowed == {
                        "Access-Control-Allow-Origin": "https://APP.example",
                        "Access-Control-Allow-Headers": (
                            "authorization, content-type, x-api-key, accept"
                        ),
                        "Access-Control-Allow-Methods": "GET, POST",
                        "Access-Control-Expose-Headers": EXPOSED,
                        "Vary": "Origin",
                    }

    run(case)


def test_a_page_of_another_origin_may_ask_for_what_it_cannot_read() -> None:
    """Nothing is made of it, and its browser keeps the answer from it."""

    async def case() -> None:
        async with opened() as place:
            for method in ("GET", "HEAD"):
                headers = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
                async with place.client.request(method, "/health", headers=headers) as response:
                    assert response.status == 200
                    assert "Access-Control-Allow-Origin" not in response.headers

    run(case)


def test_a_browser_asks_without_a_key_what_its_page_may_do() -> None:
    async def case() -> None:
        keys = {"API_KEYS": "a-key-that-nobody-guesses", "CORS_ORIGINS": "https://app.example"}
        async with opened(keys) as place:
            headers = {"Origin": "https://app.example"}
            async with place.client.options("/run", headers=headers) as response:
                assert response.status == 204
            for start, status in (("Bearer ", 200), ("Digest ", 401)):
                headers = {"Authorization": f"{start}a-key-that-nobody-guesses"}
                assert (await place.get("/health", headers=headers))[0] == status

    run(case)


def test_a_page_that_is_left_out_is_no_way_past_the_key() -> None:
    async def case() -> None:
        keys = {"API_KEYS": "a-key-that-nobody-guesses", "PLAYGROUND": "false"}
        async with opened(keys) as place:
            assert (await place.get("/"))[0] == 401

    run(case)


def test_a_second_port_answers_health_checks_alone() -> None:
    async def case() -> None:
        chosen = settings.read({"SERVE": "http"})
        desk = Desk(chosen, lambda: None)
        async with TestClient(TestServer(make_checks(chosen, desk))) as client:
            async with client.get("/ping") as response:
                assert response.status == 204
            async with client.get("/health") as response:
                assert response.status == 404

    run(case)


@pytest.mark.parametrize(
    ("keys", "variable"), [({}, None), ({"API_KEYS": "a-key-that-nobody-guesses"}, "WORKER_KEY")]
)
def test_the_page_knows_where_other_programs_call(
    keys: dict[str, str], variable: str | None
) -> None:
    async def case() -> None:
        async with opened(keys) as place:
            _, found = await place.get("/page/place.json")
            assert found == {"jobs": "", "openai": "v1", "variable": variable}
            async with place.client.get("/") as response:
                assert response.headers["Referrer-Policy"] == "no-referrer"
                assert response.headers["Cross-Origin-Opener-Policy"] == "same-origin"
                policy = response.headers["Content-Security-Policy"].split("; ")
                assert policy[2:] == [
                    *("style-src 'self'", "connect-src 'self'", "img-src 'self' data: blob:"),
                    *("media-src 'self' data: blob:", "form-action 'none'", "base-uri 'none'"),
                    "frame-ancestors 'none'",
                ]
            for name, kind in (("style.css", "text/css"), ("app.js", "text/javascript")):
                async with place.client.get(f"/page/{name}") as response:
                    assert response.headers["Content-Type"] == f"{kind}; charset=utf-8"

    run(case)


def test_a_caller_without_a_body_is_told_where_it_belongs() -> None:
    async def case() -> None:
        async with opened() as place:
            bodies: list[Any] = [[], {}, {"prompt": "x"}]
            for body in bodies:
                status, refused = await place.post("/run", body)
                error = refused["error"]
                assert (status, error["code"], error["param"]) == (400, "invalid_input", "input")
                assert '"input"' in error["message"]

    run(case)
