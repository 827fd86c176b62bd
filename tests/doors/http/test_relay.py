"""The page on loopback for an endpoint of RunPod's queue: what it forwards, and what it keeps."""

import base64
import itertools
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from worlds.doorway import Doorway
from worlds.pod import HANG_S, KEY, Pod
from worlds.standin import COMMAND, Gate

EVENTS = {"Accept": "text/event-stream"}
_numbers = itertools.count()


def playground(pod: Pod, key: str = KEY, base: str | None = None) -> Doorway:
    """Return the page for an endpoint, as its command serves it."""
    environ = {"RUNPOD_API_KEY": key, "RUNPOD_ENDPOINT_BASE_URL": base or pod.base}
    command = (sys.executable, "-m", "worker", "playground", "--endpoint", pod.endpoint)
    return Doorway(environ, command)


@pytest.fixture(scope="module")
def gates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gates")


@pytest.fixture(scope="module")
def pod(gates: Path) -> Iterator[Pod]:
    with Pod() as pod, pod.worker(COMMAND, {"STANDIN_GATES": str(gates)}):
        yield pod


@pytest.fixture(scope="module")
def page(pod: Pod) -> Iterator[Doorway]:
    with playground(pod) as page:
        yield page.opened()


@pytest.fixture
def gate(gates: Path) -> Iterator[Gate]:
    gate = Gate(gates, f"gate{next(_numbers)}")
    yield gate
    gate.open()


def until(is_so: Any) -> None:
    end = time.monotonic() + HANG_S
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.005)


def events(text: str) -> list[tuple[str, Any]]:
    """Return the events of a stream."""
    blocks = (dict(line.split(": ", 1) for line in one.splitlines()) for one in text.split("\n\n"))
    return [(block["event"], json.loads(block["data"])) for block in blocks if block]


def test_a_job_of_the_page_is_one_of_the_endpoint_and_its_states_are_events(
    pod: Pod, page: Doorway
) -> None:
    body = {"input": {"prompt": "a fox", "seed": 7, "response_format": "data_url"}}
    found = events(page.post("/runsync", body, headers=EVENTS).text)
    assert {name for name, _ in found[:-1]} <= {"progress"}
    name, state = found[-1]
    assert (name, state["status"]) == ("result", "COMPLETED")
    assert pod.jobs[state["id"]].body == body
    data = state["output"]["images"][0]["data_url"].partition(",")[2]
    assert base64.b64decode(data).startswith(b"\x89PNG")


def test_what_can_be_asked_for_comes_from_the_endpoints_own_worker(page: Doorway) -> None:
    reply = page.post("/runsync", {"input": {"op": "capabilities"}}).json()
    assert reply["output"]["models"][0]["id"] == "standin"


def test_a_job_is_counted_and_fails_and_is_followed_and_cancelled_by_its_id(
    pod: Pod, page: Doorway
) -> None:
    completed = page.get("/health").json()["jobs"]["completed"]
    drawn = page.post("/runsync", {"input": {"prompt": "a fox"}}).json()
    assert drawn["status"] == "COMPLETED"
    assert page.get("/health").json()["jobs"]["completed"] > completed
    failed = page.post("/runsync", {"input": {"prompt": "nan"}}).json()
    assert failed["status"] == "FAILED"
    assert failed["error"].startswith("BAD_PICTURE")
    queued = page.post("/run", {"input": {"prompt": "steps=100 pause=0.2"}}).json()
    assert page.get(f"/status/{queued['id']}").json()["status"] in ("IN_QUEUE", "IN_PROGRESS")
    assert page.call("POST", f"/cancel/{queued['id']}").json()["status"] == "CANCELLED"
    assert pod.jobs[queued["id"]].status == "CANCELLED"


@pytest.mark.parametrize("is_taken", [True, False])
def test_one_that_leaves_its_job_has_it_cancelled_at_the_endpoint(
    pod: Pod, page: Doorway, gates: Path, gate: Gate, is_taken: bool
) -> None:
    """Nobody would see what it makes, and the owner pays for it."""
    other = Gate(gates, f"{gate.name}-other")
    if not is_taken:
        pod.submit({"prompt": f"hold=denoise gate={other.name}"})
        until(lambda: other.is_reached)
    body = {"input": {"prompt": f"steps=100 hold=denoise:2 gate={gate.name}"}}
    response = page.post("/runsync", body, headers=EVENTS, stream=True)
    pod.until(lambda: [job for job in pod.jobs.values() if job.body == body])
    mine = next(job for job in pod.jobs.values() if job.body == body)
    if is_taken:
        until(lambda: gate.is_reached)
    response.close()
    pod.until(lambda: mine.status == "CANCELLED")
    other.open()


def test_a_state_that_does_not_come_for_a_while_loses_no_job(pod: Pod, page: Doorway) -> None:
    pod.misbehave("status", 500, "drop", "garbage")
    state = page.post("/runsync", {"input": {"prompt": "a hare"}}).json()
    assert state["status"] == "COMPLETED"


def test_no_answer_has_the_key_and_no_path_leads_elsewhere(pod: Pod, page: Doorway) -> None:
    place = page.get("/page/place.json").json()
    assert place == {
        "jobs": pod.url,
        "openai": f"{pod.url}/openai/v1",
        "variable": "RUNPOD_API_KEY",
    }
    for path in ("/", "/page/app.js", "/page/place.json", "/health", "/nope", "/status/x"):
        answer = page.get(path)
        assert KEY not in answer.text + str(answer.headers)
    for path in ("/status/..%2F..%2Fother%2Fhealth", "/status/%2e%2e", "/status/x%3Fy"):
        assert page.get(path).status_code == 404
    assert KEY not in page.process.stderr + page.process.stdout


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 421),
        ({"Origin": "https://evil.example"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Content-Type": "text/plain"}, 415),
        ({}, 400),
    ],
    ids=str,
)
def test_no_page_of_another_origin_spends_the_owners_money(
    page: Doorway, pod: Pod, headers: dict[str, str], status: int
) -> None:
    before = len(pod.jobs)
    assert page.post("/run", {"prompt": "x"}, headers=headers).status_code == status
    assert len(pod.jobs) == before


def test_a_refused_key_is_not_asked_of_the_browser(pod: Pod) -> None:
    """A page that reads 401 asks its user for a key, which must never be in a browser."""
    with playground(pod, "another-key") as page:
        refused = page.opened().post("/run", {"input": {"prompt": "x"}})
        assert (refused.status_code, refused.json()["error"]["code"]) == (502, "key_refused")


def test_it_leaves_at_once_and_its_jobs_with_it(pod: Pod, gate: Gate) -> None:
    with playground(pod) as page:
        body = {"input": {"prompt": f"steps=100 hold=denoise:2 gate={gate.name}"}}
        response = page.opened().post("/runsync", body, headers=EVENTS, stream=True)
        until(lambda: gate.is_reached)
        page.process.send(signal.SIGTERM)
        assert page.process.wait() == 0
        response.close()  # here, since one that nothing holds is closed at once: its job would end
    assert next(job for job in pod.jobs.values() if job.body == body).status == "CANCELLED"


def test_an_interrupt_ends_it_as_well_and_a_base_may_end_with_a_slash(pod: Pod) -> None:
    with playground(pod, base="https://api.test/v2_/") as page:
        place = page.opened().get("/page/place.json").json()
        assert place["jobs"] == f"https://api.test/v2_/{pod.endpoint}"
        page.process.send(signal.SIGINT)
        assert page.process.wait() == 0


@pytest.mark.parametrize(
    ("key", "arguments", "reason"),
    [
        ("", ["--endpoint", "x"], "RUNPOD_API_KEY: is required"),
        ("a key", ["--endpoint", "x"], "RUNPOD_API_KEY: must be a key alone"),
        ("a-key", ["--endpoint", "x/../y"], "--endpoint: must be the id of an endpoint"),
        ("a-key", ["--endpoint", "x", "--port", "99999"], "PORT: "),
    ],
)
def test_what_it_lacks_is_said(key: str, arguments: list[str], reason: str) -> None:
    command = [sys.executable, "-m", "worker", "playground", *arguments]
    done = subprocess.run(
        command, env={"RUNPOD_API_KEY": key}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert reason in done.stderr
