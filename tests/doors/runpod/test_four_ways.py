"""The worker through RunPod's SDK in its four ways, on the embedded checkpoint."""

import base64
import functools
import http.server
import io
import json
import re
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from worker.doors.runpod import sdk
from worlds.pod import KEY, Pod
from worlds.process import Process

ROOT = Path(__file__).parents[3]
HANDLER = (sys.executable, "handler.py")
START_S = 300.0  # imports take 5-15 s, several times that on a machine that does something else
JOB_S = 60.0
pytestmark = pytest.mark.timeout(900)  # a worker with a model has START_S to start


def reply_of(process: Process) -> dict[str, Any]:
    """Return the reply that a local test printed."""
    for line in process.stdout.splitlines():
        if line.startswith("{"):
            reply: dict[str, Any] = json.loads(line)
            return reply
    raise AssertionError(process.stderr)


@pytest.mark.slow
def test_way_1_the_file_test_input_json() -> None:
    with Process(HANDLER, {}, cwd=ROOT) as process:
        assert process.wait(START_S) == 0, process.stderr
        reply = reply_of(process)
        assert reply["seed"] == json.loads((ROOT / "test_input.json").read_text())["input"]["seed"]
        assert reply["task"] == "edit"
        assert reply["lightning_enabled"] is True
        assert reply["images"][0]["base64"].endswith("characters>")


@pytest.mark.slow
def test_way_2_an_input_on_the_command_line() -> None:
    job = {"input": {"prompt": "a hare", "seed": 0, "steps": 4, "output_format": "webp"}}
    command = (*HANDLER, "--test_input", json.dumps(job))
    with Process(command, {"MODEL": "tiny-image"}, cwd=ROOT) as process:
        assert process.wait(START_S) == 0, process.stderr
        reply = reply_of(process)
        assert reply["seed"] == 0
        assert reply["num_inference_steps"] == 4
        assert reply["images"][0]["mime_type"] == "image/webp"


@pytest.mark.slow
def test_way_3_the_sdks_own_api_server() -> None:
    command = (*HANDLER, "--rp_serve_api", "--rp_api_host", "127.0.0.1", "--rp_api_port", "0")
    with Process(command, {"MODEL": "tiny-image"}, cwd=ROOT) as process:
        base = served_at(process)
        job = {"input": {"prompt": "a hare", "seed": 5}}
        sync = post(f"{base}/runsync", job)
        assert sync["status"] == "COMPLETED"
        picture = sync["output"]["images"][0]["base64"]
        queued = post(f"{base}/run", job)
        status = post(f"{base}/status/{queued['id']}", {})
        assert status["status"] == "COMPLETED"
        assert status["output"]["images"][0]["base64"] == picture
        wrong = post(f"{base}/runsync", {"input": {"prompt": 7}})
        assert wrong["status"] == "FAILED"
        assert wrong["error"].startswith("INVALID_INPUT: prompt")
        assert process.running


def served_at(process: Process) -> str:
    """Return the address that the server says it has, once it listens."""
    end = time.monotonic() + START_S
    while time.monotonic() < end and process.running:
        if match := re.search(r"running on (http://127\.0\.0\.1:\d+)", process.stderr):
            return match[1]
        time.sleep(0.1)
    raise AssertionError(process.stderr)


def post(url: str, body: Any) -> dict[str, Any]:
    request = urllib.request.Request(  # noqa: S310 - loopback
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=JOB_S) as response:  # noqa: S310
        answer: dict[str, Any] = json.load(response)
        return answer


# Way 4, the real loop: one worker for all of these.


@pytest.fixture(scope="module")
def photo() -> bytes:
    """A reference picture that is not square."""
    picture = Image.linear_gradient("L").resize((192, 96)).convert("RGB")
    picture.paste((200, 30, 30), (20, 20, 60, 60))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, photo: bytes) -> Iterator[int]:
    """A web site on loopback that has the reference picture; yields its port."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "photo.png").write_bytes(photo)
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def pod() -> Iterator[Pod]:
    with Pod(hold_s=2.0) as pod:
        yield pod


@pytest.fixture(scope="module")
def worker(pod: Pod, site: int) -> Iterator[Process]:
    environ = {
        "MODEL": "tiny",
        "ALLOW_HTTP_IMAGES": "true",
        "ALLOWED_IMAGE_NETWORKS": f"127.0.0.0/8:{site}",
    }
    with pod.worker(HANDLER, environ, cwd=ROOT) as worker:
        end = time.monotonic() + START_S
        while not pod.seen("poll"):
            assert worker.running, worker.stderr
            assert time.monotonic() < end, worker.stderr
            time.sleep(0.1)
        yield worker
        worker.send(signal.SIGTERM)
        assert worker.wait() == 0
        assert not worker.relatives()


def generate(pod: Pod, **job_input: Any) -> dict[str, Any]:
    """Return the output of a job that must succeed."""
    job = pod.answer(pod.submit({"prompt": "a red fox in fresh snow", **job_input}), JOB_S)
    assert job.status == "COMPLETED", job.error
    assert job.answers == 1
    output: dict[str, Any] = job.output
    return output


def refused(pod: Pod, **job_input: Any) -> dict[str, Any]:
    """Return the output of a job that must fail."""
    job = pod.answer(pod.submit(job_input), JOB_S)
    assert job.status == "FAILED"
    assert job.answers == 1
    output: dict[str, Any] = job.output
    return output


def picture(output: dict[str, Any], index: int = 0) -> str:
    data: str = output["images"][index]["base64"]
    return data


def opened(output: dict[str, Any]) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(picture(output))))


@pytest.mark.slow
def test_text_to_image(pod: Pod, worker: Process) -> None:
    output = generate(pod, seed=42)
    assert output["task"] == "text-to-image"
    assert output["lightning_enabled"] is True
    assert output["true_cfg_scale"] == 1.0
    image = output["images"][0]
    assert opened(output).size == (image["width"], image["height"])
    assert opened(output).info["seed"] == "42"
    assert output["timings_ms"]["total"] >= output["timings_ms"]["denoise"] > 0
    assert worker.running


@pytest.mark.slow
def test_edit_by_base64_data_uri_and_url_is_the_same_edit(
    pod: Pod, worker: Process, site: int, photo: bytes
) -> None:
    text = base64.b64encode(photo).decode()
    uri = f"data:image/png;base64,{text}"
    ways = (text, uri, f"http://127.0.0.1:{site}/photo.png")
    outputs = [generate(pod, image=way, seed=1) for way in ways]
    assert {output["task"] for output in outputs} == {"edit"}
    assert len({picture(output) for output in outputs}) == 1
    image = outputs[0]["images"][0]
    assert image["width"] == 2 * image["height"]
    assert worker.running


@pytest.mark.slow
def test_the_second_job_loads_nothing_again(pod: Pod, worker: Process, photo: bytes) -> None:
    opened_before = len(worker.log("model warm"))
    assert opened_before == 2
    generate(pod)
    generate(pod, image=base64.b64encode(photo).decode())
    assert len(worker.log("model warm")) == opened_before


@pytest.mark.slow
def test_two_jobs_share_nothing(pod: Pod, worker: Process, photo: bytes) -> None:
    first = generate(pod, seed=3)
    generate(pod, image=base64.b64encode(photo).decode(), seed=4, num_inference_steps=4)
    generate(pod, prompt="a hare", lightning=False, steps=2, true_cfg_scale=3.0, seed=5)
    assert picture(generate(pod, seed=3)) == picture(first)
    assert worker.running


@pytest.mark.slow
def test_the_seed_makes_the_picture(pod: Pod, worker: Process) -> None:
    zero = generate(pod, seed=0)
    assert zero["seed"] == 0
    assert picture(generate(pod, seed=0)) == picture(zero)
    assert picture(generate(pod, seed=1)) != picture(zero)
    chance = generate(pod)
    assert picture(generate(pod, seed=chance["seed"])) == picture(chance)
    assert generate(pod, seed=-1)["seed"] >= 0
    assert worker.running


@pytest.mark.slow
def test_picture_i_of_several_is_the_picture_of_its_own_seed(pod: Pod, worker: Process) -> None:
    output = generate(pod, seed=10, num_images=3)
    assert [image["seed"] for image in output["images"]] == [10, 11, 12]
    assert len({picture(output, i) for i in range(3)}) == 3
    assert picture(generate(pod, seed=12)) == picture(output, 2)
    assert worker.running


@pytest.mark.slow
@pytest.mark.parametrize("name", ["png", "jpeg", "jpg", "webp"])
def test_every_format(pod: Pod, worker: Process, name: str) -> None:
    output = generate(pod, output_format=name, seed=2)
    known = "jpeg" if name == "jpg" else name
    assert output["images"][0]["mime_type"] == f"image/{known}"
    assert (opened(output).format or "").lower() == known
    assert worker.running


@pytest.mark.slow
def test_a_data_url_instead_of_base64(pod: Pod, worker: Process) -> None:
    output = generate(pod, response_format="data_url", seed=2)
    head, _, text = output["images"][0]["data_url"].partition(",")
    assert head == "data:image/png;base64"
    assert text == picture(generate(pod, seed=2))
    assert worker.running


@pytest.mark.slow
def test_what_is_wrong_is_reported(pod: Pod, worker: Process) -> None:
    invalid = refused(pod, prompt="", width=3)
    assert {detail["field"] for detail in invalid["details"]} == {"prompt", "width"}
    assert refused(pod, prompt="x", model="dall-e")["error_code"] == "MODEL_NOT_SERVED"
    assert refused(pod, prompt="x", steps=7)["error_code"] == "INVALID_INPUT"
    unread = refused(pod, prompt="x", image=base64.b64encode(b"no picture" * 20).decode())
    assert unread["error_code"] == "IMAGE_UNREADABLE"
    url = refused(pod, prompt="x", image="http://169.254.169.254/latest/meta-data")
    assert url["error_code"] == "IMAGE_FETCH_REFUSED"
    assert worker.running


@pytest.mark.slow
def test_capabilities_and_health(pod: Pod, worker: Process) -> None:
    generate(pod)
    able = pod.answer(pod.submit({"op": "capabilities"}), JOB_S).output
    assert {task for model in able["models"] for task in model["tasks"]} == {
        "text-to-image",
        "edit",
        "img2img",
        "inpaint",
        "outpaint",
    }
    health = pod.answer(pod.submit({"op": "health"}), JOB_S).output
    assert health["status"] == "ready"
    assert [model["resident"] for model in health["models"].values()] == [True, True]
    assert health["jobs"]["done"] > 0
    assert worker.running


@pytest.mark.slow
def test_progress_is_reported_while_it_runs(pod: Pod, worker: Process) -> None:
    job_id = pod.submit({"prompt": "slow", "lightning": False, "steps": 100, "true_cfg_scale": 4})
    job = pod.answer(job_id, JOB_S)
    assert job.status == "COMPLETED"
    steps = [update["step"] for update in job.progress if update["phase"] == "denoise"]
    assert steps
    assert steps == sorted(steps)
    assert worker.running


@pytest.mark.slow
def test_a_cancel_stops_the_sampler_and_the_next_job_is_right(pod: Pod, worker: Process) -> None:
    before = generate(pod, seed=6)
    job_id = pod.submit({"prompt": "slow", "lightning": False, "steps": 100, "true_cfg_scale": 4})
    pod.until(lambda: pod.jobs[job_id].progress)
    pod.cancel(job_id)
    assert picture(generate(pod, seed=6)) == picture(before)
    assert pod.jobs[job_id].answers == 0
    (entry,) = [e for e in worker.log("job cancelled") if e["job_id"] == job_id]
    assert entry["total_ms"] < 20_000


@pytest.mark.slow
def test_the_official_client_works_against_it(
    pod: Pod, worker: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    sdk.load()
    import runpod  # noqa: PLC0415 - after load(), which makes it fast

    monkeypatch.setattr(runpod, "endpoint_url_base", pod.base)
    endpoint = runpod.Endpoint(pod.endpoint, api_key=KEY)
    wish = {"prompt": "a red fox in fresh snow", "seed": 8}
    job = endpoint.run(wish)
    output = job.output(timeout=JOB_S)
    assert job.status() == "COMPLETED"
    assert output["images"][0]["seed"] == 8
    assert endpoint.run_sync(wish)["images"] == output["images"]
    assert endpoint.health()["jobs"]["completed"] >= 2
    slow = endpoint.run({"prompt": "slow", "lightning": False, "steps": 100})
    slow.cancel()
    assert slow.status() == "CANCELLED"
    unknown = runpod.Endpoint(pod.endpoint, api_key="not the key")
    with pytest.raises(RuntimeError, match="401"):
        unknown.health()
    endpoint.rp_client.rp_session.close()
    unknown.rp_client.rp_session.close()
    assert worker.running


@pytest.mark.slow
def test_a_caller_without_a_key_or_an_input_gets_no_job(pod: Pod, worker: Process) -> None:
    before = len(pod.jobs)
    for headers, body, status in (
        ({}, {"input": {}}, 401),
        ({"Authorization": f"Bearer {KEY}"}, {"prompt": "x"}, 400),
    ):
        request = urllib.request.Request(  # noqa: S310 - loopback
            f"{pod.url}/run", json.dumps(body).encode(), headers
        )
        with pytest.raises(urllib.error.HTTPError) as refusal:
            urllib.request.urlopen(request, timeout=JOB_S)  # noqa: S310
        assert refusal.value.code == status
        refusal.value.close()
    assert len(pod.jobs) == before
    assert worker.running
