"""Every job taken has exactly one answer, through the real SDK against the loopback platform."""

import base64
import io
import itertools
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from worlds.pod import HANG_S, Job, Pod, Slow
from worlds.process import Process
from worlds.standin import COMMAND, Gate

BUDGET = 3_500_000


@pytest.fixture(scope="module")
def pod() -> Iterator[Pod]:
    with Pod(hold_s=1.0) as pod:
        yield pod


@pytest.fixture(scope="module")
def gates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gates")


@pytest.fixture(scope="module")
def worker(pod: Pod, gates: Path) -> Iterator[Process]:
    environ = {"STANDIN_GATES": str(gates), "MAX_REPLY_BYTES": str(BUDGET)}
    with pod.worker(COMMAND, environ) as worker:
        pod.until(lambda: pod.seen("poll"))
        yield worker


@pytest.fixture
def gate(gates: Path) -> Iterator[Gate]:
    """A gate of this test alone; opened at its end, so that a failed test holds up no other."""
    gate = Gate(gates, f"gate{next(_numbers)}")
    yield gate
    gate.open()


_numbers = itertools.count()


@pytest.fixture(autouse=True)
def _behaves(pod: Pod) -> Iterator[None]:
    """Leave no fault to the next test that this one's requests have not met."""
    yield
    pod.behave()


def reached(gate: Gate) -> None:
    end = time.monotonic() + HANG_S
    while not gate.is_reached:
        assert time.monotonic() < end, "the stand-in did not get there"
        time.sleep(0.005)


def is_right(pod: Pod, job_id: str) -> bool:
    """Whether the job has its picture, and one answer."""
    job = pod.answer(job_id)
    image = job.output["images"][0]
    picture = Image.open(io.BytesIO(base64.b64decode(image["base64"])))
    return job.answers == 1 and picture.size == (image["width"], image["height"])


def failed(job: Job, code: str) -> bool:
    """Whether the job has one answer: this failure."""
    assert job.error is not None
    found = job.output["error_code"], job.error.split(":")[0], job.status, job.answers
    return found == (code, code, "FAILED", 1)


def test_a_job_is_answered_with_its_picture(pod: Pod, worker: Process) -> None:
    job_id = pod.submit({"prompt": "a fox", "seed": 7})
    assert is_right(pod, job_id)
    job = pod.jobs[job_id]
    assert job.output["seed"] == 7
    assert job.output["images"][0]["seed"] == 7
    assert [e["job_id"] for e in worker.log("job done")].count(job_id) == 1


def test_two_jobs_share_nothing(pod: Pod, worker: Process) -> None:
    first, other, again = (
        pod.submit({"prompt": prompt, "seed": 3}) for prompt in ("a fox", "a hare", "a fox")
    )
    pictures = [pod.answer(i).output["images"][0]["base64"] for i in (first, other, again)]
    assert pictures[0] == pictures[2] != pictures[1]
    assert worker.running


def test_an_invalid_job_is_answered_with_all_its_faults(pod: Pod, worker: Process) -> None:
    job = pod.answer(pod.submit({"width": 3, "seed": "x"}))
    assert failed(job, "INVALID_INPUT")
    assert {d["field"] for d in job.output["details"]} == {"prompt", "width", "seed"}
    assert worker.running


@pytest.mark.parametrize("given", [None, [], "a fox", 7, {}], ids=repr)
def test_an_input_that_is_no_wish_is_answered(pod: Pod, worker: Process, given: object) -> None:
    assert failed(pod.answer(pod.submit(given)), "INVALID_INPUT")
    assert worker.running


def test_a_bug_gives_the_caller_a_reference_and_the_log_the_rest(pod: Pod, worker: Process) -> None:
    job = pod.answer(pod.submit({"prompt": "bug"}))
    assert failed(job, "INTERNAL")
    assert job.error is not None
    reference = job.error.split()[-1]
    (entry,) = [e for e in worker.log("bug") if e["reference"] == reference]
    assert "secret/place" in entry["exception"]
    text = json.dumps(job.describe())
    assert not any(word in text for word in ("secret", "Traceback", "/root", ".py", "internal."))


def test_a_reply_over_budget_becomes_a_smaller_format_if_that_was_left_open(
    pod: Pod, worker: Process
) -> None:
    job = pod.answer(pod.submit({"prompt": "big", "output_quality": 60}))
    assert job.output["adjusted"]["output_format"][0] == "png"
    assert job.output["images"][0]["mime_type"] in ("image/webp", "image/jpeg")
    asked = pod.answer(pod.submit({"prompt": "big", "output_format": "png"}))
    assert failed(asked, "OUTPUT_TOO_LARGE")
    assert "jpeg or webp" in str(asked.error)
    assert worker.running


def test_a_picture_of_nan_is_no_success(pod: Pod, worker: Process) -> None:
    assert failed(pod.answer(pod.submit({"prompt": "nan"})), "BAD_PICTURE")
    assert is_right(pod, pod.submit({"prompt": "after"}))
    assert worker.running


def test_a_job_that_does_not_fit_the_memory_leaves_the_next_one_right(
    pod: Pod, worker: Process
) -> None:
    assert failed(pod.answer(pod.submit({"prompt": "oom"})), "CUDA_OUT_OF_MEMORY")
    assert is_right(pod, pod.submit({"prompt": "after"}))
    assert failed(pod.answer(pod.submit({"prompt": "oom"})), "CUDA_OUT_OF_MEMORY")
    assert is_right(pod, pod.submit({"prompt": "after"}))
    assert worker.running


@pytest.mark.parametrize("place", ["text:1", "denoise:1", "denoise:5", "denoise:9", "decode:1"])
def test_a_cancelled_job_stops_within_a_step_and_posts_nothing(
    pod: Pod, worker: Process, gate: Gate, place: str
) -> None:
    job_id = pod.submit({"prompt": f"steps=9 hold={place} gate={gate.name}"})
    reached(gate)
    pod.cancel(job_id)
    pod.until(lambda: pod.has_heard(job_id))
    next_id = pod.submit({"prompt": "next"})
    gate.open()
    assert is_right(pod, next_id)
    assert pod.jobs[job_id].answers == 0
    assert pod.jobs[job_id].status == "CANCELLED"
    assert [e["job_id"] for e in worker.log("job cancelled")].count(job_id) == 1
    steps = [p for p in pod.jobs[job_id].progress if p["phase"] == "denoise"]
    assert all(p["step"] < int(place[-1]) or place.startswith("decode") for p in steps)


def test_a_second_cancel_does_not_free_the_device_early(
    pod: Pod, worker: Process, gate: Gate
) -> None:
    job_id = pod.submit({"prompt": f"hold=denoise:1 gate={gate.name}"})
    reached(gate)
    pod.cancel(job_id)
    pod.until(lambda: pod.seen("stop", job_id))
    pod.cancel(job_id)
    pod.until(lambda: len(pod.seen("stop", job_id)) == 2)
    next_id = pod.submit({"prompt": "next"})
    pod.until(lambda: len([e for e in worker.log("sdk") if job_id == e.get("job_id")]) >= 3)
    assert [e["event"] for e in standin_events(worker)][-1] == "standin begins"
    assert pod.jobs[next_id].status == "IN_QUEUE"
    gate.open()
    assert is_right(pod, next_id)
    assert pod.jobs[job_id].answers == 0


def standin_events(worker: Process) -> list[dict[str, str]]:
    both = worker.log("standin begins") + worker.log("standin ends")
    return sorted(both, key=lambda entry: str(entry["timestamp"]))


def test_a_job_cancelled_in_the_queue_is_never_taken(pod: Pod, worker: Process, gate: Gate) -> None:
    running = pod.submit({"prompt": f"hold=denoise:1 gate={gate.name}"})
    reached(gate)
    queued = pod.submit({"prompt": "never"})
    pod.cancel(queued)
    gate.open()
    assert is_right(pod, running)
    assert is_right(pod, pod.submit({"prompt": "next"}))
    assert not pod.seen("taken", queued)
    assert worker.running


def test_a_cancel_that_overtakes_its_job_stops_it_before_it_starts(
    pod: Pod, worker: Process
) -> None:
    """The stop signal may be read before the job itself is: the platform sends both at once."""
    before = len(worker.log("standin begins"))
    pod.misbehave("hand", "cancelled")
    job_id = pod.submit({"prompt": "never"})
    pod.until(lambda: pod.has_heard(job_id))
    assert is_right(pod, pod.submit({"prompt": "next"}))
    assert pod.jobs[job_id].answers == 0
    assert len(worker.log("standin begins")) == before + 1


def test_progress_is_in_order_and_at_most_once_a_second(pod: Pod, worker: Process) -> None:
    job_id = pod.submit({"prompt": "steps=40 pause=0.1"})
    assert is_right(pod, job_id)
    events = [e for e in pod.events if e.job == job_id and e.kind in ("progress", "answer")]
    steps = [e.data["step"] for e in events if e.kind == "progress" and e.data["steps"] == 40]
    assert steps == sorted(set(steps))
    assert len(steps) >= 2
    assert events[-1].kind == "answer"
    # a second lies between two updates as they are sent; how long each travels is the machine's
    assert len(events[:-1]) - 1 <= events[-1].at - pod.jobs[job_id].taken
    assert worker.running


def test_the_steps_of_several_pictures_are_one_count(pod: Pod, worker: Process) -> None:
    job_id = pod.submit({"prompt": "steps=10 pause=0.07", "num_images": 3, "seed": 5})
    job = pod.answer(job_id)
    assert [image["seed"] for image in job.output["images"]] == [5, 6, 7]
    assert {p["steps"] for p in job.progress if p["phase"] == "denoise"} == {30}
    assert worker.running


def test_progress_stays_in_order_when_the_platform_is_slow_or_fails(
    pod: Pod, worker: Process
) -> None:
    pod.misbehave("progress", Slow(1.5), 500, "drop", Slow(0.5))
    job_id = pod.submit({"prompt": "steps=40 pause=0.1"})
    assert is_right(pod, job_id)
    after = pod.submit({"prompt": "next"})
    assert is_right(pod, after)
    events = [e for e in pod.events if e.job == job_id and e.kind in ("progress", "answer")]
    steps = [e.data["step"] for e in events[:-1] if e.data["phase"] == "denoise"]
    assert steps == sorted(steps)
    assert events[-1].kind == "answer"
    assert worker.log("progress lost")


@pytest.mark.parametrize("fault", [500, 502, "garbage", "html", "drop"], ids=str)
def test_a_platform_in_trouble_is_polled_again(pod: Pod, worker: Process, fault: int | str) -> None:
    faults = len(pod.seen("fault"))
    pod.misbehave("job-take", fault)
    assert is_right(pod, pod.submit({"prompt": "a fox"}))
    pod.until(lambda: len(pod.seen("fault")) > faults)
    assert is_right(pod, pod.submit({"prompt": "a hare"}))
    assert worker.running


def test_a_busy_platform_is_polled_again_after_five_seconds(pod: Pod, worker: Process) -> None:
    pod.misbehave("job-take", 429)
    assert is_right(pod, pod.submit({"prompt": "a fox"}))
    (fault,) = pod.until(lambda: [e for e in pod.seen("fault") if e.data == ("job-take", 429)])
    assert is_right(pod, pod.submit({"prompt": "a hare"}))
    assert (
        pod.until(lambda: [e for e in pod.seen("poll") if e.at > fault.at])[0].at > fault.at + 4.9
    )
    assert worker.running


@pytest.mark.parametrize("faults", [(500, 500), ("drop", 429)], ids=str)
def test_a_result_is_posted_until_the_platform_has_it(
    pod: Pod, worker: Process, faults: tuple[int | str, ...]
) -> None:
    pod.misbehave("job-done", *faults)
    job_id = pod.submit({"prompt": "a fox"})
    assert is_right(pod, job_id)
    assert is_right(pod, pod.submit({"prompt": "a hare"}))
    assert pod.jobs[job_id].answers == 1
    assert worker.running


def test_a_job_handed_out_without_an_input_is_answered(pod: Pod, worker: Process) -> None:
    pod.misbehave("hand", "no-input")
    assert failed(pod.answer(pod.submit({"prompt": "a fox"})), "INVALID_INPUT")
    assert is_right(pod, pod.submit({"prompt": "after"}))
    assert worker.running


def test_the_answer_waits_for_no_idle_second(pod: Pod, worker: Process) -> None:
    """The SDK alone looks for the next job once a second: half the pauses would be as long."""
    ids = [pod.submit({"prompt": f"{n}"}) for n in range(10)]
    assert all(is_right(pod, job_id) for job_id in ids)
    jobs = [pod.jobs[job_id] for job_id in ids]
    pauses = [later.taken - sooner.done for sooner, later in itertools.pairwise(jobs)]
    assert statistics.median(pauses) < 0.5
    assert worker.running


def test_logs_are_lines_of_json_without_prompts_or_pictures(pod: Pod, worker: Process) -> None:
    job_id = pod.submit({"prompt": "xyzzy plugh"})
    picture = pod.answer(job_id).output["images"][0]["base64"]
    *lines, _ = worker.stderr.split("\n")  # the last may be half of one
    for line in lines:
        assert "event" in json.loads(line)
    for text in (worker.stderr, worker.stdout):
        assert "xyzzy" not in text
        assert picture[:40] not in text
        assert "loopback-key" not in text
        assert max(map(len, text.splitlines())) < 4000
