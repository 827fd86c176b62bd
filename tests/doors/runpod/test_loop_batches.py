"""Jobs that share steps, through the real loop: however one ends, each has one answer."""

import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from worlds.pod import Pod
from worlds.process import Process
from worlds.standin import COMMAND, Gate

Start = Callable[..., AbstractContextManager[Process]]


@pytest.fixture
def pod() -> Iterator[Pod]:
    with Pod(hold_s=60) as pod:
        yield pod


@pytest.fixture
def start(pod: Pod, tmp_path: Path) -> Start:
    def start(**environ: str) -> AbstractContextManager[Process]:
        more = {"STANDIN_GATES": str(tmp_path), "BATCH_SIZE": "3", "LOG_LEVEL": "debug", **environ}
        return pod.worker(COMMAND, more)

    return start


def taken_behind(
    pod: Pod, worker: Process, folder: Path, *prompts: str
) -> tuple[Gate, str, list[str]]:
    """Let jobs wait for the device while another, at the gate, has it; return all."""
    first = Gate(folder, "first")
    running = pod.submit({"prompt": "hold=denoise:1 gate=first"})
    pod.until(lambda: first.is_reached)
    jobs = [pod.submit({"prompt": prompt, "seed": n}) for n, prompt in enumerate(prompts)]
    pod.until(lambda: len(worker.log("waits for the device")) == 1 + len(jobs))
    return first, running, jobs


def outcome(pod: Pod, job_id: str) -> Any:
    job = pod.answer(job_id)
    assert job.answers == 1
    return job.output.get("error_code") or job.output["batch"]["size"]


def test_jobs_are_taken_for_every_row_and_one_more_and_those_that_wait_share(
    pod: Pod, start: Start, tmp_path: Path
) -> None:
    with start(PREFETCH="true") as worker:
        first, running, jobs = taken_behind(
            pod, worker, tmp_path, *(f"share=a {n}" for n in range(3))
        )
        late = pod.submit({"prompt": "share=a late"})
        first.open()
        assert outcome(pod, running) == 1
        assert [outcome(pod, job_id) for job_id in jobs] == [3, 3, 3]
        assert outcome(pod, late) == 1
        assert [line["seeds"] for line in worker.log("standin shares")] == [[0, 1, 2]]


def test_a_cancelled_job_leaves_its_batch_and_the_loop_takes_the_next(
    pod: Pod, start: Start, tmp_path: Path
) -> None:
    with start() as worker:
        gate = Gate(tmp_path, "gate")
        held = "share=a hold=denoise:2 gate=gate steps=3"
        first, _, jobs = taken_behind(pod, worker, tmp_path, held, "share=a")
        first.open()
        pod.until(lambda: gate.is_reached)
        pod.cancel(jobs[0])
        pod.until(lambda: pod.has_heard(jobs[0]))
        gate.open()
        assert outcome(pod, jobs[1]) == 2
        pod.until(lambda: len(worker.log("job cancelled")) == 1)
        assert pod.jobs[jobs[0]].answers == 0
        assert outcome(pod, pod.submit({"prompt": "next"})) == 1


def test_a_worker_that_leaves_answers_the_jobs_that_share_and_those_that_wait(
    pod: Pod, start: Start, tmp_path: Path
) -> None:
    with start() as worker:
        first, running, jobs = taken_behind(pod, worker, tmp_path, "share=a", "share=a")
        worker.send(signal.SIGTERM)
        pod.until(lambda: worker.log("leaving"))
        first.open()
        assert [outcome(pod, job_id) for job_id in (running, *jobs)] == [1, 2, 2]
        assert worker.wait() == 0


def test_a_worker_that_leaves_answers_a_job_that_goes_on_after_another(
    pod: Pod, start: Start, tmp_path: Path
) -> None:
    with start() as worker:
        second = Gate(tmp_path, "second")
        held = "hold=denoise:1 gate=second"
        first, running, jobs = taken_behind(pod, worker, tmp_path, held)
        worker.send(signal.SIGTERM)
        pod.until(lambda: worker.log("leaving"))
        first.open()
        assert outcome(pod, running) == 1
        pod.until(lambda: second.is_reached)
        second.open()
        assert outcome(pod, jobs[0]) == 1
        assert worker.wait() == 0


def test_a_device_lost_under_several_jobs_is_the_answer_to_each_and_ends_the_worker(
    pod: Pod, start: Start, tmp_path: Path
) -> None:
    with start() as worker:
        first, running, jobs = taken_behind(pod, worker, tmp_path, "share=a lost", "share=a")
        first.open()
        assert outcome(pod, running) == 1
        assert [outcome(pod, job_id) for job_id in jobs] == ["DEVICE_LOST"] * 2
        assert worker.wait() == 1


def test_a_bad_picture_ends_one_job_of_a_batch(pod: Pod, start: Start, tmp_path: Path) -> None:
    with start() as worker:
        first, _, jobs = taken_behind(pod, worker, tmp_path, "share=a nan", "share=a")
        first.open()
        assert [outcome(pod, job_id) for job_id in jobs] == ["BAD_PICTURE", 2]
        assert worker.running
