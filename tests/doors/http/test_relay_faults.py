"""The page's caller and its job, where RunPod's API fails in the ways that it can."""

import asyncio
import json
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from structlog.testing import capture_logs

from worker import settings
from worker.doors.http import endpoint
from worker.doors.http.endpoint import QueueEndpoint
from worker.doors.http.relay import Relay, serve_page
from worker.doors.http.responses import Refused
from worker.errors import InvalidSettings
from worker.media import dial
from worlds.certificates import Authority

GOING: dict[str, Any] = {"id": "job-1", "status": "IN_PROGRESS"}
DONE: dict[str, Any] = {"id": "job-1", "status": "COMPLETED", "output": {"images": []}}
BODY = {"input": {"prompt": "x"}}
HANG_S = 30.0

# What each kind of request is sent by.
METHODS = {"run": "POST", "status": "GET", "cancel": "POST", "health": "GET"}

Answer = (
    int
    | str
    | bytes
    | dict[str, Any]
    | tuple[int, dict[str, str]]
    | tuple[int, dict[str, str], dict[str, Any]]
)


class Api:
    """RunPod's API for callers: its answers to one kind of request in order, the last for ever."""

    def __init__(self, **answers: list[Answer]) -> None:
        usual: dict[str, list[Answer]] = {
            "run": [{"id": "job-1"}],
            "status": [DONE],
            "cancel": [GOING],
        }
        self._answers = {**usual, **answers}
        self.calls: list[str] = []
        self.pauses: list[float] = []
        self.polled = asyncio.Event()
        self.cancelled = asyncio.Event()

    def make_app(self) -> web.Application:
        """Return it as an application."""
        app = web.Application()
        app.router.add_route("*", "/v2/ep/{kind}{tail:.*}", self._answer)
        return app

    async def pause(self, seconds: float) -> None:
        """Wait no longer than for others to have a turn, and note for how long it was meant."""
        self.pauses.append(seconds)
        await asyncio.sleep(0)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        kind, _, _ = request.path.removeprefix("/v2/ep/").partition("/")
        self.calls.append(kind)
        waiting = self._answers[kind]
        answer = waiting.pop(0) if len(waiting) > 1 else waiting[0]
        if request.method != METHODS[kind] or request.can_read_body != (kind == "run"):
            answer = 405
        elif request.can_read_body and request.content_type != "application/json":
            answer = 415
        if kind == "status":
            self.polled.set()
        if kind == "cancel":
            self.cancelled.set()
        match answer:
            case int():
                return web.Response(status=answer, text="why")
            case str():
                return web.Response(text=answer, content_type="application/json")
            case bytes():
                return web.Response(status=400, body=answer)
            case (status, headers):
                return web.Response(status=status, headers=headers)
            case (status, headers, body):
                return web.json_response(body, status=status, headers=headers)
            case _:
                return web.json_response(answer)


Use = Callable[[aiohttp.ClientSession, Api], Awaitable[Any]]


def through(api: Callable[[], Api], use: Use, pause: Any = None) -> tuple[Any, Api]:
    """Return what a caller of the page's relay gets, and the API behind it."""

    async def run() -> tuple[Any, Api]:
        world = api()
        async with TestServer(world.make_app()) as runpod:
            base = str(runpod.make_url("/v2/ep"))
            caller = QueueEndpoint(base, "a-key", pause or world.pause)
            server = TestServer(Relay(settings.read({}), caller).make_app())
            await server.start_server()
            try:
                async with aiohttp.ClientSession(str(server.make_url("/"))) as session:
                    async with asyncio.timeout(HANG_S):
                        found = await use(session, world)
            finally:
                await server.close()
        return found, world

    return asyncio.run(run())


async def wait(session: aiohttp.ClientSession, _: Api) -> tuple[int, Any, Any]:
    """Return the answer to one that waits for its job."""
    async with session.post("/runsync", json=BODY) as response:
        return response.status, response.headers, await response.json()


async def hear(session: aiohttp.ClientSession, _: Api) -> list[tuple[str, Any]]:
    """Return the events of one that follows its job."""
    async with session.post(
        "/runsync", json=BODY, headers={"Accept": "text/event-stream"}
    ) as response:
        blocks = [one.split("\n") for one in (await response.text()).split("\n\n") if one]
    return [
        (name.removeprefix("event: "), json.loads(data.removeprefix("data: ")))
        for name, data in blocks
    ]


async def listen(session: aiohttp.ClientSession, api: Api) -> tuple[str, Any]:
    """Return the last event of one that follows its job."""
    return (await hear(session, api))[-1]


FAULTS: list[tuple[Answer, int, str, str]] = [
    (500, 502, "endpoint_unreachable", "RunPod answered with 500"),
    ("<html>", 502, "endpoint_unreachable", "RunPod's answer is not an object"),
    ("[]", 502, "endpoint_unreachable", "RunPod's answer is not an object"),
    ("{}", 502, "endpoint_unreachable", "RunPod's answer has no status"),
    ('{"status": 5}', 502, "endpoint_unreachable", "RunPod's answer has no status"),
    (429, 502, "endpoint_unreachable", "RunPod takes no more requests"),
]


@pytest.mark.parametrize(("answer", "status", "code", "words"), FAULTS, ids=str)
def test_a_state_that_never_comes_is_given_up_and_its_job_cancelled(
    answer: Answer, status: int, code: str, words: str
) -> None:
    (found, headers, body), api = through(lambda: Api(status=[GOING, answer]), wait)
    assert (found, body["error"]["code"]) == (status, code)
    assert f"unknown after 60 requests: {words}" in body["error"]["message"]
    assert (headers["x-should-retry"], "Retry-After" in headers) == ("false", False)
    assert api.calls == ["run", *["status"] * 61, "cancel"]
    assert api.pauses == [1.0] * 60


def test_a_state_that_never_came_at_all_is_given_up_as_soon() -> None:
    (found, _, _), api = through(lambda: Api(status=[500]), wait)
    assert (found, api.calls) == (502, ["run", *["status"] * 60, "cancel"])


@pytest.mark.parametrize("status", ["COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"])
def test_a_job_that_has_ended_in_any_way_is_followed_to_its_result(status: str) -> None:
    last = {"id": "job-1", "status": status}
    events, api = through(lambda: Api(status=[GOING, last]), hear)
    assert events == [("progress", GOING), ("result", last)]
    assert api.calls == ["run", "status", "status"]


@pytest.mark.parametrize(("answer", "_status", "_code", "_words"), FAULTS, ids=str)
def test_what_comes_back_before_that_loses_no_job(
    answer: Answer, _status: int, _code: str, _words: str
) -> None:
    """Also when it fails again after a state, as often: those before do not count."""
    few = [answer] * 59
    answers: list[Answer] = [*few, GOING, *few, DONE]
    (found, _, body), api = through(lambda: Api(status=answers), wait)
    assert (found, body) == (200, DONE)
    assert "cancel" not in api.calls


@pytest.mark.parametrize(
    ("answer", "status", "code", "words"),
    [
        (401, 502, "key_refused", "RunPod refused RUNPOD_API_KEY"),
        (403, 502, "key_refused", "RunPod refused RUNPOD_API_KEY"),
        (404, 404, "job_not_found", "RunPod does not know this job any more"),
        (400, 400, "refused_by_endpoint", "RunPod answered with 400: why"),
        (b"wh\xff", 400, "refused_by_endpoint", "RunPod answered with 400: wh\ufffd"),
    ],
)
def test_what_will_not_change_is_an_error_at_once(
    answer: Answer, status: int, code: str, words: str
) -> None:
    (found, _, body), api = through(lambda: Api(status=[GOING, answer]), wait)
    assert (found, body["error"]["code"]) == (status, code)
    assert body["error"]["message"].startswith(words)
    assert api.calls == ["run", "status", "status", "cancel"]


@pytest.mark.parametrize("length", [300, 301])
def test_of_runpods_own_words_there_are_300_characters(length: int) -> None:
    answer = {"error": "x" * length}
    (_, _, body), _ = through(lambda: Api(run=[(400, {}, answer)]), wait)
    assert body["error"]["message"] == f"RunPod answered with 400: {'x' * 300}"


def test_a_redirect_is_not_followed_as_the_key_would_go_with_it() -> None:
    answers: list[Answer] = [(307, {"Location": "/v2/ep/run"}), {"id": "job-1"}]
    (found, _, body), api = through(lambda: Api(run=answers), wait)
    assert (found, body["error"]["code"]) == (400, "refused_by_endpoint")
    assert api.calls == ["run"]


def test_a_ping_is_answered_without_the_endpoint() -> None:
    async def ping(session: aiohttp.ClientSession, _: Api) -> str:
        async with session.get("/ping") as response:
            return await response.text()

    found, api = through(Api, ping)
    assert (found, api.calls) == ("ok", [])


def test_the_environments_proxy_leads_to_runpod(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> dict[str, Any]:
        world = Api()
        async with TestServer(world.make_app()) as proxy:
            for name in ("NO_PROXY", "no_proxy"):
                monkeypatch.delenv(name, raising=False)
            monkeypatch.setenv("http_proxy", str(proxy.make_url("/")))
            endpoint = QueueEndpoint("http://runpod.test/v2/ep", "a-key")
            try:
                return await endpoint.post(BODY)
            finally:
                await endpoint.close()

    assert asyncio.run(run()) == {"id": "job-1"}


@pytest.mark.parametrize("answer", [500, 401, 404])
def test_one_that_follows_its_job_hears_the_same_as_its_result(answer: Answer) -> None:
    (name, state), api = through(lambda: Api(status=[GOING, answer]), listen)
    (_, _, body), _ = through(lambda: Api(status=[GOING, answer]), wait)
    assert name == "result"
    assert state == {"status": "FAILED", "error": body["error"]["message"]}
    assert api.calls[-1] == "cancel"


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", 7), ("0", 1.0), ("9999", 60), ("Wed, 21 Oct 2026 07:28:00 GMT", 1), ("-5", 1)],
)
def test_runpods_own_word_for_when_to_ask_again_is_kept(header: str, seconds: float) -> None:
    answers: list[Answer] = [(429, {"Retry-After": header}), GOING, DONE]
    (found, _, _), api = through(lambda: Api(status=answers), wait)
    assert (found, api.pauses) == (200, [seconds, 1.0])


@pytest.mark.parametrize(
    ("answer", "status", "code", "after"),
    [
        ((429, {"Retry-After": "7"}), 429, "rate_limit_exceeded", "7"),
        ((503, {"Retry-After": "9"}), 502, "endpoint_unreachable", "9"),
        (500, 502, "endpoint_unreachable", "1"),
        ("<html>", 502, "endpoint_unreachable", "1"),
        ('{"status": "IN_QUEUE"}', 502, "endpoint_unreachable", "1"),
        (401, 502, "key_refused", None),
        (404, 404, "not_found", None),
    ],
    ids=str,
)
@pytest.mark.parametrize("use", [wait, "run"], ids=["runsync", "run"])
def test_a_job_that_is_not_taken_says_why(
    use: Any, answer: Answer, status: int, code: str, after: str | None
) -> None:
    async def queue(session: aiohttp.ClientSession, _: Api) -> tuple[int, Any, Any]:
        async with session.post("/run", json=BODY) as response:
            return response.status, response.headers, await response.json()

    one = queue if use == "run" else use
    (found, headers, body), api = through(lambda: Api(run=[answer]), one)
    assert (found, body["error"]["code"]) == (status, code)
    assert headers.get("Retry-After") == after
    assert api.calls == ["run"]


@pytest.mark.parametrize("status", [GOING, 500, (429, {"Retry-After": "60"})], ids=str)
@pytest.mark.parametrize("cancel", [[GOING], [500, GOING]], ids=str)
@pytest.mark.parametrize("headers", [{}, {"Accept": "text/event-stream"}], ids=str)
def test_a_caller_that_hangs_up_has_its_job_cancelled_whatever_fails(
    status: Answer, cancel: list[Answer], headers: dict[str, str]
) -> None:
    """While the next state is waited for, and though the first cancel fails."""
    left = asyncio.Event()

    async def pause(_: float) -> None:
        if not left.is_set():
            left.set()
            await asyncio.Event().wait()

    async def hang_up(session: aiohttp.ClientSession, api: Api) -> None:
        async def follow() -> None:
            async with session.post("/runsync", json=BODY, headers=headers) as response:
                await response.read()

        asked = asyncio.create_task(follow())
        await left.wait()
        asked.cancel()
        await asyncio.wait([asked])
        while api.calls.count("cancel") < len(cancel):
            await api.cancelled.wait()
            api.cancelled.clear()

    _, api = through(lambda: Api(status=[status], cancel=list(cancel)), hang_up, pause)
    assert api.calls == ["run", "status", *["cancel"] * len(cancel)]


def test_a_cancel_that_cannot_be_is_tried_some_times_and_logged() -> None:
    with capture_logs() as lines:
        _, api = through(lambda: Api(status=[404], cancel=[500]), wait)
    assert api.calls.count("cancel") == 3
    assert [line["job"] for line in lines if "not cancelled" in line["event"]] == ["job-1"]
    assert api.pauses == [1.0] * 3


def test_a_job_that_is_gone_is_not_cancelled_again_and_that_is_no_warning() -> None:
    with capture_logs() as lines:
        _, api = through(lambda: Api(status=[404], cancel=[404]), wait)
    assert api.calls == ["run", "status", "cancel"]
    assert [line for line in lines if "not cancelled" in line["event"]] == []


def test_a_page_that_is_closed_takes_all_its_jobs_with_it() -> None:
    """Those that are followed, and one whose caller has left while its cancel is tried again."""

    async def case() -> list[str]:
        going, again, closing = asyncio.Semaphore(0), asyncio.Event(), asyncio.Event()
        world = Api(status=[GOING], cancel=[500, GOING])

        async def pause(_: float) -> None:
            if world.cancelled.is_set() and not again.is_set():
                again.set()
                await closing.wait()
            else:
                going.release()
                await asyncio.Event().wait()

        async def follow(session: aiohttp.ClientSession) -> None:
            async with session.post("/runsync", json=BODY) as response:
                await response.read()

        async with TestServer(world.make_app()) as runpod:
            caller = QueueEndpoint(str(runpod.make_url("/v2/ep")), "a-key", pause)
            server = TestServer(Relay(settings.read({}), caller).make_app())
            await server.start_server()
            async with aiohttp.ClientSession(str(server.make_url("/"))) as session:
                asked = [asyncio.create_task(follow(session)) for _ in range(3)]
                for _ in asked:
                    await going.acquire()
                asked[0].cancel()
                await again.wait()
                closed = asyncio.create_task(server.close())
                while world.calls.count("cancel") < 3:  # noqa: ASYNC110 - the API says nothing of it
                    await asyncio.sleep(0.005)
                closing.set()
                await closed
                await asyncio.gather(*asked, return_exceptions=True)
            async with asyncio.timeout(HANG_S / 3):  # an idle connection is closed after 15 s
                while runpod.handler.connections:  # noqa: ASYNC110 - aiohttp says nothing of it
                    await asyncio.sleep(0.005)
        return world.calls

    async def limited() -> list[str]:
        async with asyncio.timeout(HANG_S):
            return await case()

    calls = asyncio.run(limited())
    assert [calls.count(kind) for kind in ("run", "status", "cancel")] == [3, 3, 4]


@pytest.mark.parametrize(
    ("environ", "given", "name"),
    [
        ({}, "x", "RUNPOD_API_KEY"),
        ({"RUNPOD_API_KEY": "a key"}, "x", "RUNPOD_API_KEY"),
        ({"RUNPOD_API_KEY": "a\x7fkey"}, "x", "RUNPOD_API_KEY"),
        (
            {"RUNPOD_API_KEY": "k", "RUNPOD_ENDPOINT_BASE_URL": "a/v2"},
            "x",
            "RUNPOD_ENDPOINT_BASE_URL",
        ),
        ({"RUNPOD_API_KEY": "k"}, "x/y", "--endpoint"),
        ({"RUNPOD_API_KEY": "k"}, "x" * 65, "--endpoint"),
        ({"RUNPOD_API_KEY": "k"}, "", "--endpoint"),
    ],
    ids=str,
)
def test_what_the_page_lacks_is_named_before_it_listens(
    environ: dict[str, str], given: str, name: str
) -> None:
    with pytest.raises(InvalidSettings) as refused:
        serve_page(settings.read(environ), given)
    (detail,) = refused.value.details
    assert detail.field == name
    assert refused.value.message == f"{name}: {detail.message}"


def test_the_page_is_told_of_the_endpoint_and_a_job_without_an_input_of_its_place() -> None:
    async def use(session: aiohttp.ClientSession, _: Api) -> Any:
        async with session.get("/page/place.json") as response:
            place = await response.json()
        bodies: list[Any] = [{}, [], {"prompt": "x"}]
        for body in bodies:
            async with session.post("/runsync", json=body) as response:
                error = (await response.json())["error"]
                assert (response.status, error["param"]) == (400, "input")
                assert error["code"] == "invalid_input"
        return place

    place, api = through(Api, use)
    assert place["jobs"].endswith("/v2/ep")
    assert place["openai"] == f"{place['jobs']}/openai/v1"
    assert place["variable"] == "RUNPOD_API_KEY"
    assert api.calls == []


def test_an_endpoint_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "ANSWER_S", 0.1)

    async def hang(_: web.Request) -> web.Response:
        await asyncio.sleep(HANG_S)
        return web.Response()

    async def case() -> None:
        app = web.Application()
        app.router.add_get("/{tail:.*}", hang)
        async with TestServer(app) as server:
            runpod = QueueEndpoint(str(server.make_url("/v2/ep")), "a-key")
            async with asyncio.timeout(HANG_S / 2):
                with pytest.raises(Refused) as refused:
                    await runpod.show_health()
            await runpod.close()
        assert (refused.value.code, refused.value.retry_after) == ("endpoint_unreachable", 1)

    asyncio.run(case())


def test_certifis_authorities_vouch_for_an_endpoint_where_the_system_has_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    monkeypatch.setattr("certifi.where", lambda: str(authority.file))
    dial.make_tls_context.cache_clear()

    async def case() -> None:
        theirs = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        theirs.load_cert_chain(authority.issue("localhost"))
        server = TestServer(Api(health=[{"jobs": {}}]).make_app(), host="localhost")
        await server.start_server(ssl=theirs)
        try:
            runpod = QueueEndpoint(str(server.make_url("/v2/ep")), "a-key")
            assert await runpod.show_health() == {"jobs": {}}
            await runpod.close()
        finally:
            await server.close()

    try:
        asyncio.run(case())
    finally:
        dial.make_tls_context.cache_clear()


@pytest.mark.parametrize("job_id", ["", "a/b", "..", "a b", "x" * 129, "\u732b"])
def test_an_id_that_cannot_be_runpods_is_not_asked_for(job_id: str) -> None:
    async def use(_: aiohttp.ClientSession, api: Api) -> None:
        runpod = QueueEndpoint("http://127.0.0.1:9", "a-key", api.pause)
        for ask in (runpod.show_status, runpod.stop):
            with pytest.raises(Refused, match="no job is known by that id") as refused:
                await ask(job_id)
            assert (refused.value.status, refused.value.code) == (404, "job_not_found")
        with pytest.raises(Refused) as unreachable:
            await runpod.show_status("x" * 128)
        assert unreachable.value.code == "endpoint_unreachable"
        await runpod.close()

    through(Api, use)
