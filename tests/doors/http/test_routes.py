"""What each route answers: OpenAI's, RunPod's own, and those that take a job flat."""

import base64
import io
import itertools
import json
import re
import sys
import time
import wave
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from PIL import Image

from worker.tasks.picture_tasks import PICTURE_TASKS
from worlds.doorway import Doorway
from worlds.pod import HANG_S
from worlds.standin import Gate

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def gates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gates")


@pytest.fixture(scope="module")
def door(gates: Path) -> Iterator[Doorway]:
    environ = {"STANDIN_GATES": str(gates), "RESPONSE_COMPAT": "output_image_base64"}
    with Doorway(environ) as door:
        yield door.opened()


@pytest.fixture
def gate(gates: Path) -> Iterator[Gate]:
    gate = Gate(gates, f"gate{next(_numbers)}")
    yield gate
    gate.open()


_numbers = itertools.count()


def png(side: int = 64) -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").resize((side, side)).convert("RGB").save(file, "PNG")
    return file.getvalue()


def shown(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


def until(is_so: Any) -> None:
    end = time.monotonic() + HANG_S
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.005)


def generated(door: Doorway, **body: Any) -> dict[str, Any]:
    response = door.post("/v1/images/generations", {"prompt": "a fox", **body})
    assert response.status_code == 200, response.text
    assert response.headers["Content-Type"].startswith("application/json")
    assert response.headers["x-request-id"]
    reply: dict[str, Any] = response.json()
    return reply


def refused(door: Doorway, **body: Any) -> tuple[int, str, str | None]:
    response = door.post("/v1/images/generations", {"prompt": "a fox", **body})
    error = response.json()["error"]
    return response.status_code, error["code"], error["param"]


def events(text: str) -> list[tuple[str, Any]]:
    """Return the events of a stream, without its comments."""
    found = []
    for block in text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if line[:1] != ":")
        if lines:
            found.append((lines["event"], json.loads(lines["data"])))
    return found


# OpenAI's


def test_a_generation_is_openais_reply_with_what_makes_it_again(door: Doorway) -> None:
    reply = generated(door, n=2, seed="7", size="64x96", quality="auto", user="me")
    assert set(reply) == {"created", "data", "background", "output_format", "size", "worker"}
    assert [shown(entry["b64_json"]).size for entry in reply["data"]] == [(64, 96)] * 2
    assert (reply["size"], reply["output_format"], reply["background"]) == (
        "64x96",
        "png",
        "opaque",
    )
    assert abs(reply["created"] - time.time()) < HANG_S
    assert (reply["worker"]["seed"], reply["worker"]["seeds"]) == (7, [7, 8])
    assert reply["worker"]["warnings"] == []
    assert "images" not in reply["worker"]


def test_what_has_no_effect_is_said_and_what_describes_the_caller_is_not(door: Doorway) -> None:
    reply = generated(
        door, model="gpt-image-1", quality="high", style="vivid", moderation="low", safety_x=1
    )
    assert reply["worker"]["warnings"] == [
        "model: gpt-image-1 is OpenAI's; this worker's default is used",
        "style: has no effect",
        "safety_x: is not a known field",
        "quality: a word has no effect; num_inference_steps is the quality",
    ]


def test_a_compression_is_our_quality(door: Doorway) -> None:
    prompt = {"prompt": "a fox", "seed": 1, "output_format": "jpeg", "size": "64x64"}
    small = generated(door, **prompt, output_compression=10)
    large = generated(door, **prompt, output_compression=100)
    assert len(small["data"][0]["b64_json"]) < len(large["data"][0]["b64_json"])


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"output_format": "gif"}, (400, "invalid_input", "output_format")),
        ({"response_format": "url"}, (400, "invalid_input", "response_format")),
        ({"background": "transparent"}, (400, "invalid_input", "background")),
        ({"mask": "x"}, (400, "invalid_input", "mask")),
        ({"n": 11}, (400, "invalid_input", "n")),
        ({"size": "3x3"}, (400, "invalid_input", "size")),
        ({"stream": "yes"}, (400, "invalid_input", "stream")),
        ({"op": "health"}, (400, "invalid_input", "op")),
        ({"prompt": None}, (400, "invalid_input", "prompt")),
        ({"model": "flux"}, (404, "model_not_found", "model")),
        ({"prompt": "nan"}, (500, "bad_picture", None)),
    ],
    ids=str,
)
def test_what_cannot_be_made_is_openais_error(
    door: Doorway, body: Mapping[str, Any], expected: tuple[int, str, str | None]
) -> None:
    assert refused(door, **body) == expected


@pytest.mark.parametrize(
    ("prompt", "retried"), [("nan", "false"), ("oom", "true"), ("bug", "false")]
)
def test_clients_try_again_what_may_work_later_alone(
    door: Doorway, prompt: str, retried: str
) -> None:
    """OpenAI's own try every 5xx three times: each would be made, and paid."""
    failed = door.post("/v1/images/generations", {"prompt": prompt})
    assert failed.headers["x-should-retry"] == retried
    assert failed.status_code >= 500
    assert door.post("/v1/images/generations", {"prompt": "x"}).ok  # so that memory is not fatal


@pytest.mark.parametrize("name", ["image", "image[]"])
def test_an_edit_comes_as_a_form_whose_numbers_are_text(door: Doorway, name: str) -> None:
    files = [(name, ("blob", png(), "image/png"))] * 2
    fields = {"prompt": "a hare", "seed": "7", "n": "2", "lightning": "false", "size": "input"}
    response = door.call("POST", "/v1/images/edits", files=files, data=fields)
    assert response.status_code == 200, response.text
    reply = response.json()
    assert (reply["worker"]["task"], reply["worker"]["seeds"]) == ("edit", [7, 8])
    assert reply["size"] == "64x64"


@pytest.mark.parametrize(
    "body",
    [
        {"images": [{"image_url": "DATA"}]},
        {"images": [{"image_url": {"url": "DATA"}}]},
        {"images": ["DATA"]},
        {"image": "DATA"},
        {"image": ["DATA"], "url": "DATA"},
        {"image_b64": "BASE"},
    ],
    ids=str,
)
def test_an_edit_comes_as_json_in_every_form_that_is_used(door: Doorway, body: Any) -> None:
    base = base64.b64encode(png()).decode()
    text = json.dumps({"prompt": "x", **body})
    text = text.replace("DATA", f"data:image/png;base64,{base}").replace("BASE", base)
    response = door.post("/v1/images/edits", json.loads(text))
    assert response.status_code == 200, response.text
    assert response.json()["worker"]["task"] == "edit"


def test_an_edit_without_a_picture_and_a_file_by_id_are_refused(door: Doorway) -> None:
    refused = door.post("/v1/images/edits", {"prompt": "x"})
    assert refused.json()["error"]["param"] == "images"
    refused = door.post("/v1/images/edits", {"prompt": "x", "images": [{"file_id": "f"}]})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "images[0]")


def test_a_stream_has_an_event_per_picture_and_says_how_far_it_is(door: Doorway) -> None:
    response = door.post("/v1/images/generations", {"prompt": "steps=3", "stream": True, "n": 2})
    assert response.headers["Content-Type"] == "text/event-stream"
    assert response.headers["x-request-id"]
    assert ": step 1/" in response.text or ": waiting, 0 before" in response.text
    found = events(response.text)
    assert [name for name, _ in found] == ["image_generation.completed"] * 2
    for name, event in found:
        assert event["type"] == name
        assert shown(event["b64_json"]).size == (64, 64)
        assert event["usage"]["total_tokens"] == 0


@pytest.mark.parametrize("count", [1, 2])
def test_a_stream_has_pictures_on_the_way_before_each_picture(door: Doorway, count: int) -> None:
    """None after its own picture, and of the last all of them."""
    body = {"prompt": "x", "seed": 7, "stream": True, "partial_images": 3, "n": count}
    found = events(door.post("/v1/images/generations", body).text)
    partial = [event for name, event in found if name == "image_generation.partial_image"]
    for event in partial:
        assert event["type"] == "image_generation.partial_image"
        assert event["output_format"] == "png"
        shade = shown(event["b64_json"]).getpixel((0, 0))
        assert shade == (event["partial_image_index"], 0, 0)
    name, event = found[-1]
    assert (name, event["worker"]["warnings"]) == ("image_generation.completed", [])
    seed = 7
    if count > 1:
        done = next(place for place, (_, one) in enumerate(found) if "usage" in one)
        first = found[done][1]["worker"]
        # their files are made side by side, and either may be there first
        assert first in ({"seed": 7, "index": 0}, {"seed": 8, "index": 1})
        seed = 8 if first["seed"] == 7 else 7
        assert all(one["worker"]["seed"] == seed for _, one in found[done + 1 : -1])
    last = [event for event in partial if event["worker"]["seed"] == seed]
    assert [event["partial_image_index"] for event in last] == [0, 1, 2]


def test_pictures_on_the_way_of_an_edit_come_in_its_format_and_none_without_a_stream(
    door: Doorway,
) -> None:
    files = [("image", ("a.png", png(), "image/png"))]
    data = {"prompt": "x", "stream": "true", "partial_images": "1", "output_format": "jpeg"}
    found = events(door.call("POST", "/v1/images/edits", files=files, data=data).text)
    assert [name for name, _ in found] == ["image_edit.partial_image", "image_edit.completed"]
    assert [event["output_format"] for _, event in found] == ["jpeg"] * 2
    refused = door.post("/v1/images/generations", {"prompt": "x", "partial_images": 4})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "partial_images")
    plain = generated(door, prompt="x", partial_images=2)
    assert len(plain["data"]) == 1


def test_a_stream_sends_each_picture_as_it_is_made_and_the_last_with_all_that_is_known(
    door: Doorway, gate: Gate
) -> None:
    prompt = f"hold=denoise gate={gate.name} only=9"
    body = {"prompt": prompt, "seed": 7, "n": 3, "size": "64x64", "stream": True}
    response = door.post("/v1/images/generations", body, stream=True)
    lines = response.iter_lines(decode_unicode=True)
    first = [json.loads(next(line for line in lines if line.startswith("data:"))[5:])]
    first.append(json.loads(next(line for line in lines if line.startswith("data:"))[5:]))
    until(lambda: gate.is_reached)
    first.sort(key=lambda event: event["worker"]["index"])  # their files are made side by side
    assert [event["worker"] for event in first] == [
        {"seed": 7, "index": 0},
        {"seed": 8, "index": 1},
    ]
    gate.open()
    ((name, last),) = events("\n".join(lines).strip())
    assert name == "image_generation.completed"
    assert last["worker"]["seeds"] == [7, 8, 9]
    again = generated(door, prompt=prompt, seed=7, n=3, size="64x64")["data"]
    assert [one["b64_json"] for one in (*first, last)] == [one["b64_json"] for one in again]


def test_a_stream_that_fails_says_so_in_an_event(door: Doorway) -> None:
    response = door.post("/v1/images/generations", {"prompt": "nan", "stream": True})
    ((name, event),) = events(response.text)
    assert (name, event["error"]["code"]) == ("error", "bad_picture")
    files = [("image", ("a.png", png(), "image/png"))]
    data = {"prompt": "x", "stream": "true"}
    response = door.call("POST", "/v1/images/edits", files=files, data=data)
    assert events(response.text)[0][0] == "image_edit.completed"


@pytest.mark.parametrize("base", ["/v1", "/openai/v1", "/v2/any/openai/v1"])
def test_models_are_openais_list_at_every_base(door: Doorway, base: str) -> None:
    row = {"id": "standin", "object": "model", "created": 0, "owned_by": "tests"}
    assert door.get(f"{base}/models").json() == {"object": "list", "data": [row]}
    assert door.get(f"{base}/models/standin").json() == row
    assert door.get(f"{base}/models/tests/standin").json() == row
    refused = door.get(f"{base}/models/other").json()["error"]
    assert (refused["code"], refused["param"]) == ("model_not_found", "model")


def test_speech_is_not_served_by_a_worker_that_draws(door: Doorway) -> None:
    refused = door.post("/v1/audio/speech", {"input": "hello", "model": "tts-1"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "unsupported_task")


def test_a_worker_that_speaks_answers_with_its_sound() -> None:
    """Also where it has a bucket, which other answers would go to."""
    command = (sys.executable, "-m", "worlds.noise")
    bucket = {
        "BUCKET_ENDPOINT_URL": "https://bucket.invalid/b",
        "BUCKET_ACCESS_KEY_ID": "a",
        "BUCKET_SECRET_ACCESS_KEY": "b",
    }
    with Doorway({"MODEL": "tone", **bucket}, command, cwd=ROOT) as door:
        door.opened()
        body = {"input": "hello", "voice": "fork", "seed": 5}
        body |= {"model": "tts-1", "response_format": "wav"}
        response = door.post("/v1/audio/speech", body)
        assert response.headers["Content-Type"] == "audio/wav"
        assert response.headers["x-request-id"]
        with wave.open(io.BytesIO(response.content)) as track:
            assert track.getnframes() / track.getframerate() == 0.5
        refused = door.post("/v1/audio/speech", {**body, "voice": "alloy"}).json()["error"]
        assert refused["message"] == "voice: tone has fork, not 'alloy'"
        streamed = door.post("/v1/audio/speech", {"input": "hello", "seed": 5, "stream": True})
        assert streamed.headers["Content-Type"] == "audio/pcm"
        assert streamed.headers["Transfer-Encoding"] == "chunked"
        assert streamed.headers["x-request-id"]
        assert streamed.headers["x-sample-rate"] == "24000"
        assert streamed.headers["Cache-Control"] == "no-store"
        assert streamed.headers["X-Accel-Buffering"] == "no"
        assert streamed.content == response.content[44:]
        wrong = door.post("/v1/audio/speech", {**body, "stream": True})
        assert wrong.json()["error"]["param"] == "stream"
        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            door.post("/v1/audio/speech", {"input": "breaks", "stream": True})
        failed = door.post("/v1/audio/speech", {"input": "breaks"})
        assert (failed.status_code, failed.json()["error"]["code"]) == (500, "bad_audio")
        inline = {"text": "hi", "response_format": "base64"}
        warned = door.post("/runsync", {"input": {**inline, "stream": True}}).json()
        assert warned["output"]["warnings"][0].startswith("stream: has no effect at this door")
        assert set(door.post("/generate", inline).json()) >= {"audio", "seed"}
        for streams in (False, True):
            wish = {"text": "hi", "stream": streams}
            refused = door.post("/v1/images/generations", wish)
            assert "makes no pictures" in refused.text


# RunPod's


def test_a_job_is_queued_followed_and_fetched_as_at_runpod(door: Doorway, gate: Gate) -> None:
    body = {"input": {"prompt": f"hold=denoise:2 gate={gate.name}"}, "webhook": "https://a.test"}
    queued = door.post("/v2/any/run", body).json()
    assert (set(queued), queued["status"]) == ({"id", "status"}, "IN_QUEUE")
    until(lambda: gate.is_reached)
    path = f"/v2/any/status/{queued['id']}"
    until(lambda: "output" in door.get(path).json())
    state = door.get(path).json()
    assert state["status"] == "IN_PROGRESS"
    assert set(state["output"]) == {"step", "steps", "phase", "percent"}
    gate.open()
    until(lambda: door.get(path).json()["status"] != "IN_PROGRESS")
    state = door.get(path).json()
    assert state["status"] == "COMPLETED"
    assert state["executionTime"] >= 0
    assert shown(state["output"]["output_image_base64"]).size == (64, 64)
    assert state["output"]["warnings"] == ["'webhook': has no effect at this door"]


def test_a_job_that_fails_is_failed_as_at_runpod(door: Doorway) -> None:
    state = door.post("/runsync", {"input": {"prompt": "x", "width": 3}}).json()
    assert state["status"] == "FAILED"
    assert state["error"].startswith("INVALID_INPUT: width")
    assert state["output"]["error_code"] == "INVALID_INPUT"
    assert door.get(f"/status/{state['id']}").json()["status"] == "FAILED"


def test_a_job_can_be_cancelled_while_it_runs_and_after_its_end(door: Doorway, gate: Gate) -> None:
    body = {"input": {"prompt": f"steps=100 hold=denoise:2 gate={gate.name}"}}
    job_id = door.post("/run", body).json()["id"]
    until(lambda: gate.is_reached)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(door.call, "POST", f"/cancel/{job_id}")
        gate.open()
        assert asked.result().json()["status"] == "CANCELLED"
    assert door.get(f"/status/{job_id}").json()["status"] == "CANCELLED"
    assert door.get(f"/result/{job_id}").status_code == 409
    done = door.post("/runsync", {"input": {"prompt": "x"}}).json()
    assert door.call("POST", f"/cancel/{done['id']}").json()["status"] == "COMPLETED"


@pytest.mark.parametrize("path", ["/status/x", "/result/x"])
def test_an_id_that_nobody_knows_is_not_found(door: Doorway, path: str) -> None:
    refused = door.get(path)
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "job_not_found")


@pytest.mark.parametrize("body", [{}, [], {"prompt": "x"}, None, "x"], ids=str)
def test_a_body_of_runpods_has_an_input(door: Doorway, body: Any) -> None:
    refused = door.post("/run", body) if body is not None else door.call("POST", "/run", json=None)
    assert refused.status_code in (400, 415)


def test_a_name_that_is_no_unicode_is_no_fault_of_the_worker(door: Doorway) -> None:
    headers = {"Content-Type": "application/json"}
    body = b'{"input": {"prompt": "x", "\\ud800": 1}, "\\udfff": 2}'
    state = door.call("POST", "/runsync", data=body, headers=headers).json()
    assert (state["status"], len(state["output"]["warnings"])) == ("COMPLETED", 2)
    form = b'--b\r\nContent-Disposition: form-data; name="\xff"; filename="a"\r\n\r\nx\r\n--b--\r\n'
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    assert door.call("POST", "/v1/images/edits", data=form, headers=headers).status_code == 400


def test_a_policy_is_a_deadline(door: Doorway, gate: Gate) -> None:
    given = {"prompt": f"steps=100 pause=0.05 gate={gate.name}"}
    body = {"input": given, "policy": {"executionTimeout": 400}}
    state = door.post("/runsync", body).json()
    assert state["output"]["error_code"] == "DEADLINE_EXCEEDED"
    assert "0.2 s, by its policy.executionTimeout" in state["error"]


def test_events_follow_a_job_to_its_result(door: Doorway) -> None:
    headers = {"Accept": "text/event-stream"}
    body = {"input": {"prompt": "steps=3"}}
    found = events(door.post("/runsync", body, headers=headers).text)
    assert found[0][0] == "progress"
    assert found[0][1]["status"] in ("IN_QUEUE", "IN_PROGRESS")
    name, last = found[-1]
    assert (name, last["status"]) == ("result", "COMPLETED")
    again = events(door.get(f"/status/{last['id']}", headers=headers).text)
    assert [name for name, _ in again] == ["result"]


def test_one_that_leaves_a_stream_of_its_own_stops_its_picture(door: Doorway, gate: Gate) -> None:
    before = len(door.process.log("job cancelled"))
    body = {"input": {"prompt": f"steps=100 hold=denoise:2 gate={gate.name}"}}
    headers = {"Accept": "text/event-stream"}
    response = door.post("/runsync", body, headers=headers, stream=True)
    until(lambda: gate.is_reached)
    response.close()
    gate.open()
    until(lambda: len(door.process.log("job cancelled")) == before + 1)


def test_health_has_runpods_counts_and_the_workers_own(door: Doorway) -> None:
    health = door.get("/v2/any/health").json()
    assert set(health["jobs"]) == {"completed", "failed", "inProgress", "inQueue", "retried"}
    assert health["workers"]["ready"] == 1
    assert health["worker"]["status"] == "ready"
    assert health["worker"]["resident"] == ["standin"]


# OpenAI's inside a job, as RunPod's queue endpoints get it


def test_a_jobs_route_is_answered_in_openais_form(door: Doorway) -> None:
    given = {"openai_route": "/v1/images/generations", "openai_input": {"prompt": "x", "n": 2}}
    output = door.post("/runsync", {"input": given}).json()["output"]
    assert len(output["data"]) == 2
    assert shown(output["data"][0]["b64_json"]).size == (64, 64)


# The page


def test_the_page_is_the_doors_own_and_may_ask_no_other(door: Doorway) -> None:
    page = door.get("/")
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    policy = page.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
    assert "unsafe" not in policy
    named = re.findall(r"""(?:src|href)="(page/[^"]+)\"""", page.text)
    assert len(named) == 2
    for path in named:
        assert door.get(f"/{path}").status_code == 200


def test_the_page_needs_no_key_what_it_calls_does_and_it_can_be_left_out() -> None:
    environ = {"API_KEYS": "a-key-that-nobody-guesses"}
    with Doorway(environ) as locked, Doorway({"PLAYGROUND": "false"}) as plain:
        locked.opened()
        assert (locked.get("/").status_code, locked.get("/health").status_code) == (200, 401)
        plain.opened()
        assert plain.get("/").status_code == 404


# Flat jobs


def test_a_flat_job_is_answered_at_once_or_by_its_id(door: Doorway) -> None:
    body = {"prompt": "a fox", "negative_prompt": " ", "width": 64, "height": 64, "seed": 5}
    reply = door.post("/generate", body).json()
    assert (shown(reply["image"]).size, reply["seed"]) == ((64, 64), 5)
    queued = door.post("/generate_async", body).json()
    assert (queued["status"], queued["detail"]) == ("queued", None)
    path = f"/result/{queued['job_id']}"
    until(lambda: door.get(path).status_code == 200)
    assert door.get(path).json()["image"] == reply["image"]
    state = door.get(f"/status/{queued['job_id']}").json()
    assert (state["job_id"], state["status"]) == (queued["job_id"], "COMPLETED")


def test_a_flat_job_that_fails_says_why_and_one_that_runs_how_it_is(
    door: Doorway, gate: Gate
) -> None:
    job_id = door.post("/generate_async", {"prompt": f"hold=denoise gate={gate.name}"}).json()[
        "job_id"
    ]
    until(lambda: gate.is_reached)
    waiting = door.get(f"/result/{job_id}")
    assert (waiting.status_code, waiting.json()) == (202, {"detail": "Job status: running"})
    wrong = door.post("/generate", {"prompt": "x", "width": 1})
    assert wrong.status_code == 400, "what is wrong waits for nothing"
    gate.open()
    until(lambda: door.get(f"/result/{job_id}").status_code == 200)


# The page of metrics, and what can be called


def test_metrics_count_jobs_by_their_end_and_seconds_by_phase(door: Doorway) -> None:
    def read() -> dict[str, float]:
        lines = door.get("/metrics").text.splitlines()
        rows = [line.rpartition(" ") for line in lines if not line.startswith("#")]
        return {name: float(value) for name, _, value in rows}

    until(lambda: read()["worker_jobs_in_flight"] == 0)  # what the tests before have left
    before = read()
    generated(door)
    refused(door, size="3x3")
    after = read()
    assert after['worker_jobs_total{end="completed"}'] == (
        before.get('worker_jobs_total{end="completed"}', 0) + 1
    )
    assert after['worker_jobs_total{end="failed"}'] == before['worker_jobs_total{end="failed"}'] + 1
    name = 'worker_phase_seconds_count{phase="denoise"}'
    assert after[name] == before.get(name, 0) + 1
    bucket = 'worker_phase_seconds_bucket{phase="total",le="+Inf"}'
    assert after[bucket] == after['worker_phase_seconds_count{phase="total"}']
    assert after['worker_batch_size_total{size="1"}'] >= 1
    assert (after["worker_ready"], after["worker_jobs_waiting"]) == (1, 0)
    assert after["worker_device_memory_peak_bytes"] == 0


def test_what_can_be_called_is_described_from_the_table_of_fields(door: Doorway) -> None:
    api = door.get("/openapi.json").json()
    assert set(api["paths"]) >= {"/run", "/v1/images/edits", "/generate", "/health"}
    fields = api["components"]["schemas"]["Input"]["properties"]
    assert fields["seed"]["type"] == "integer"
    assert fields["steps"]["maximum"] == 100
    formats = ["png", "jpeg", "jpg", "webp", "wav", "flac", "mp3", "opus", "pcm"]
    assert fields["output_format"]["enum"] == formats
    assert fields["task"]["enum"] == [*PICTURE_TASKS, "speech"]
    assert fields["lightning"]["type"] == "boolean"
    assert api["components"]["schemas"]["Input"]["additionalProperties"] is True


@pytest.mark.parametrize(
    "path", ["/v1", "/page/x", "/v1/images/variations", "/run/x", "/%00", "//run"]
)
def test_what_is_not_there_is_not_found(door: Doorway, path: str) -> None:
    missing = door.get(path)
    assert (missing.status_code, missing.json()["error"]["type"]) == (404, "not_found_error")
