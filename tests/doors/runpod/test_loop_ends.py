"""However a worker ends, no job is lost and nothing of it is left."""

import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from worlds.container import AS_FIRST, explain_refusal
from worlds.pod import HANG_S, Job, Pod
from worlds.process import Process
from worlds.standin import COMMAND, Gate

Start = Callable[..., AbstractContextManager[Process]]
ENDS_S = 30.0
AS_PROCESS_1 = pytest.mark.skipif(explain_refusal() is not None, reason=str(explain_refusal()))


@pytest.fixture
def pod() -> Iterator[Pod]:
    # a worker that waited for the end of an open poll would not end within ENDS_S
    with Pod(hold_s=2 * ENDS_S) as pod:
        yield pod


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path, "gate")


@pytest.fixture
def start(pod: Pod, tmp_path: Path) -> Start:
    def start(*, prefix: tuple[str, ...] = (), **environ: str) -> AbstractContextManager[Process]:
        return pod.worker((*prefix, *COMMAND), {"STANDIN_GATES": str(tmp_path), **environ})

    return start


HELD = "hold=denoise:1 gate=gate"


def reached(gate: Gate) -> None:
    end = time.monotonic() + HANG_S
    while not gate.is_reached:
        assert time.monotonic() < end, "the stand-in did not get there"
        time.sleep(0.005)


def gone(worker: Process) -> bool:
    """Whether neither the worker nor its heartbeat is left, at most a moment later."""
    end = time.monotonic() + ENDS_S
    while worker.relatives() and time.monotonic() < end:
        time.sleep(0.02)
    return not worker.relatives()


def ended(worker: Process) -> int:
    """Return the exit code of a worker that ends in time and leaves nothing."""
    code = worker.wait(ENDS_S)
    assert gone(worker)
    return code


def idle(pod: Pod) -> None:
    pod.until(lambda: pod.seen("poll") and pod.seen("ping"))


def is_right(job: Job) -> bool:
    return job.status == "COMPLETED" and job.answers == 1


def test_sigterm_ends_an_idle_worker_at_once(pod: Pod, start: Start) -> None:
    with start() as worker:
        idle(pod)
        worker.send(signal.SIGTERM)
        assert ended(worker) == 0
        later = pod.submit({"prompt": "for another worker"})
        time.sleep(0.2)
        assert pod.jobs[later].status == "IN_QUEUE"


@pytest.mark.parametrize("delay_ms", [0, 3])
def test_a_job_that_meets_sigterm_is_answered_or_left_in_the_queue(
    pod: Pod, start: Start, delay_ms: int
) -> None:
    with start() as worker:
        idle(pod)
        worker.send(signal.SIGTERM)
        time.sleep(delay_ms / 1000)
        job = pod.jobs[pod.submit({"prompt": "a fox"})]
        assert ended(worker) == 0
        assert is_right(job) or (job.status == "IN_QUEUE" and job.answers == 0)


def test_sigterm_lets_a_busy_worker_answer_first(pod: Pod, start: Start, gate: Gate) -> None:
    with start() as worker:
        job_id = pod.submit({"prompt": HELD})
        reached(gate)
        queued = pod.submit({"prompt": "for another worker"})
        worker.send(signal.SIGTERM)
        pod.until(lambda: worker.log("leaving"))
        gate.open()
        assert is_right(pod.answer(job_id))
        assert ended(worker) == 0
        assert pod.jobs[queued].status == "IN_QUEUE"


def test_a_job_can_be_cancelled_while_a_worker_leaves(pod: Pod, start: Start, gate: Gate) -> None:
    with start() as worker:
        job_id = pod.submit({"prompt": HELD})
        reached(gate)
        worker.send(signal.SIGTERM)
        pod.until(lambda: worker.log("leaving"))
        pod.cancel(job_id)
        pod.until(lambda: pod.has_heard(job_id))
        gate.open()
        assert ended(worker) == 0
        assert pod.jobs[job_id].answers == 0


def test_refresh_worker_ends_after_one_job_and_takes_no_other(pod: Pod, start: Start) -> None:
    with start(REFRESH_WORKER="true", PREFETCH="true", BATCH_SIZE="4") as worker:
        jobs = [pod.submit({"prompt": f"{n}"}) for n in range(2)]
        assert is_right(pod.answer(jobs[0]))
        assert ended(worker) == 0
        assert pod.seen("stop-pod", jobs[0])
        assert pod.jobs[jobs[1]].status == "IN_QUEUE"


def test_two_jobs_out_of_memory_in_a_row_end_the_worker(pod: Pod, start: Start) -> None:
    with start() as worker:
        jobs = [pod.submit({"prompt": "oom"}) for _ in range(3)]
        for job_id in jobs[:2]:
            assert pod.answer(job_id).output["error_code"] == "CUDA_OUT_OF_MEMORY"
        assert ended(worker) == 1
        assert pod.jobs[jobs[2]].status == "IN_QUEUE"
        assert [pod.jobs[i].answers for i in jobs] == [1, 1, 0]


def test_a_lost_device_ends_the_worker_and_a_job_that_waits_here_is_answered_too(
    pod: Pod, start: Start, gate: Gate
) -> None:
    with start(PREFETCH="true") as worker:
        lost = pod.submit({"prompt": f"lost {HELD}"})
        reached(gate)
        waiting = pod.submit({"prompt": "prefetched"})
        pod.until(lambda: pod.seen("taken", waiting))
        third = pod.submit({"prompt": "for another worker"})
        gate.open()
        assert pod.answer(lost).output["error_code"] == "DEVICE_LOST"
        answer = pod.answer(waiting)
        assert answer.output["error_code"] == "WORKER_NOT_READY"
        assert answer.output["retryable"] is True
        assert ended(worker) == 1
        assert [pod.jobs[i].answers for i in (lost, waiting, third)] == [1, 1, 0]
        assert pod.jobs[third].status == "IN_QUEUE"


def test_a_device_lost_under_a_cancelled_job_ends_the_worker(
    pod: Pod, start: Start, gate: Gate
) -> None:
    with start() as worker:
        job_id = pod.submit({"prompt": "lost steps=1 hold=lost gate=gate"})
        reached(gate)
        pod.cancel(job_id)
        pod.until(lambda: pod.has_heard(job_id))
        gate.open()
        assert ended(worker) == 1
        assert pod.jobs[job_id].answers == 0


def test_a_killed_worker_leaves_no_heartbeat(pod: Pod, start: Start) -> None:
    with start() as worker:
        idle(pod)
        assert len(worker.relatives()) == 2
        worker.send(signal.SIGKILL)
        assert ended(worker) == -signal.SIGKILL
        gone_at = time.monotonic()
        time.sleep(2.5)
        # one may be on its way; two more would come in these seconds
        assert len([ping for ping in pod.seen("ping") if ping.at > gone_at]) < 2


@AS_PROCESS_1
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_as_process_1_of_a_container_it_ends_completely(
    pod: Pod, start: Start, signum: int
) -> None:
    """The kernel ignores a signal to process 1 that it has no handler for."""
    with start(prefix=AS_FIRST) as worker:
        idle(pod)
        outer, inner, heartbeat = worker.relatives()
        assert outer == worker.pid
        os.kill(inner, signum)
        code = ended(worker)
        assert (code == 0) is (signum == signal.SIGTERM)
        assert not Path(f"/proc/{heartbeat}").exists()


@AS_PROCESS_1
def test_as_process_1_it_can_be_ended_while_it_starts(pod: Pod, start: Start) -> None:
    with start(prefix=AS_FIRST, STANDIN_BOOT="held") as worker:
        pod.until(lambda: worker.log("standin starts"))
        os.kill(worker.relatives()[-1], signal.SIGTERM)
        assert ended(worker) == 0


def test_a_worker_that_was_stopped_for_a_while_goes_on(pod: Pod, start: Start, gate: Gate) -> None:
    """A minute with a job at work, a second without: the polls that were open have ended."""
    pod.hold_s = 0.4
    with start() as worker:
        idle(pod)
        for prompt, seconds in ((HELD, 60.0), ("idle", 1.0)):
            job_id = pod.submit({"prompt": prompt})
            if prompt == HELD:
                reached(gate)
            worker.send(signal.SIGSTOP)
            time.sleep(seconds)  # the time itself is what is tested
            gate.open()
            worker.send(signal.SIGCONT)
            assert is_right(pod.answer(job_id))
        worker.send(signal.SIGTERM)
        assert ended(worker) == 0


def test_a_job_that_comes_during_a_cold_start_waits_for_it(
    pod: Pod, start: Start, tmp_path: Path
) -> None:
    job_id = pod.submit({"prompt": "early"})
    with start(STANDIN_BOOT="held") as worker:
        pod.until(lambda: worker.log("standin starts"))
        assert pod.jobs[job_id].status == "IN_QUEUE"
        warm = time.monotonic()
        Gate(tmp_path, "boot").open()
        assert is_right(pod.answer(job_id))
        assert pod.jobs[job_id].taken >= warm
        assert worker.running


def test_sigterm_during_a_cold_start_ends_it(pod: Pod, start: Start) -> None:
    with start(STANDIN_BOOT="held") as worker:
        pod.until(lambda: worker.log("standin starts"))
        worker.send(signal.SIGTERM)
        assert ended(worker) == 0
        assert not pod.seen("poll")


@pytest.mark.parametrize(
    ("environ", "reason"),
    [
        ({"STANDIN_BOOT": "gated"}, "WEIGHTS_UNAVAILABLE: standin is gated: accept its licence"),
        ({"STANDIN_BOOT": "full"}, "VOLUME_FULL: the volume is full"),
        ({"MAX_IMAGE_BYTES": "many", "VERIFY": "no"}, "MAX_IMAGE_BYTES"),
        ({"STANDIN_BOOT": "bug"}, "INTERNAL: a bug in this worker; its log has more under "),
    ],
    ids=["gated", "full", "settings", "bug"],
)
def test_a_start_that_failed_for_good_answers_callers_with_why(
    pod: Pod, start: Start, environ: dict[str, str], reason: str
) -> None:
    with start(STANDIN_REFUSE_S="3600", **environ) as worker:
        for _ in range(2):
            job = pod.answer(pod.submit({"prompt": "a fox"}))
            assert job.output["error_code"] == "WORKER_NOT_READY"
            assert job.output["retryable"] is False
            assert reason in str(job.error)
            assert job.answers == 1
        pod.until(lambda: len(worker.log("job refused")) == 2)
        assert {line["error_code"] for line in worker.log("job refused")} == {"WORKER_NOT_READY"}
        assert worker.log("start failed")
        worker.send(signal.SIGTERM)
        assert ended(worker) == 1


def test_a_start_that_failed_for_good_is_reported_for_a_while_and_then_the_worker_exits(
    pod: Pod, start: Start
) -> None:
    with start(STANDIN_BOOT="gated", STANDIN_REFUSE_S="0.5") as worker:
        assert worker.wait() == 1
        assert gone(worker)
        assert pod.seen("poll")


def test_a_start_that_a_retry_may_fix_exits_without_taking_a_job(pod: Pod, start: Start) -> None:
    with start(STANDIN_BOOT="hub") as worker:
        assert worker.wait() == 1
        assert gone(worker)
        assert not pod.seen("poll")
        assert worker.log("start failed")


def test_prefetch_takes_the_next_job_while_one_runs_but_runs_it_after(
    pod: Pod, start: Start, gate: Gate
) -> None:
    with start(PREFETCH="true") as worker:
        first = pod.submit({"prompt": HELD})
        reached(gate)
        second = pod.submit({"prompt": "next"})
        pod.until(lambda: pod.seen("taken", second))
        third = pod.submit({"prompt": "third"})
        time.sleep(0.3)
        assert pod.jobs[third].status == "IN_QUEUE"
        gate.open()
        assert all(is_right(pod.answer(i)) for i in (first, second, third))
        assert alternates(worker)


def test_prefetch_lets_a_waiting_job_be_cancelled_at_once(
    pod: Pod, start: Start, gate: Gate
) -> None:
    with start(PREFETCH="true") as worker:
        first = pod.submit({"prompt": HELD})
        reached(gate)
        waiting = pod.submit({"prompt": "never"})
        pod.until(lambda: pod.seen("taken", waiting))
        pod.cancel(waiting)
        pod.until(lambda: [e["job_id"] for e in worker.log("job cancelled")] == [waiting])
        gate.open()
        assert is_right(pod.answer(first))
        assert pod.jobs[waiting].answers == 0
        assert len(worker.log("standin begins")) == 1


def test_without_prefetch_the_next_job_stays_with_the_platform(
    pod: Pod, start: Start, gate: Gate
) -> None:
    with start() as worker:
        first = pod.submit({"prompt": HELD})
        reached(gate)
        second = pod.submit({"prompt": "next"})
        time.sleep(0.3)
        assert pod.jobs[second].status == "IN_QUEUE"
        gate.open()
        assert all(is_right(pod.answer(i)) for i in (first, second))
        assert pod.jobs[second].taken >= pod.jobs[first].done
        assert alternates(worker)


def test_malformed_entries_of_a_batch_are_dropped_and_the_rest_is_answered(
    pod: Pod, start: Start
) -> None:
    with start(PREFETCH="true") as worker:
        idle(pod)
        pod.misbehave("hand", "list")
        assert is_right(pod.answer(pod.submit({"prompt": "a fox"})))
        pod.misbehave("hand", "no-id")
        nameless = pod.submit({"prompt": "no answer is possible"})
        pod.until(lambda: len(worker.log("job without an id dropped")) == 2)
        assert is_right(pod.answer(pod.submit({"prompt": "a hare"})))
        assert pod.jobs[nameless].answers == 0


def test_a_job_past_its_deadline_stops_between_steps(pod: Pod, start: Start) -> None:
    with start(JOB_DEADLINE_S="1") as worker:
        job = pod.answer(pod.submit({"prompt": "steps=2000 pause=0.05"}))
        assert job.output["error_code"] == "DEADLINE_EXCEEDED"
        assert job.output["retryable"] is True
        assert job.done - job.taken < 100 / 2  # of the 100 s that its steps would take
        assert is_right(pod.answer(pod.submit({"prompt": "next"})))
        assert alternates(worker)


def alternates(worker: Process) -> bool:
    """Whether no picture was begun before the one before it had ended."""
    both = worker.log("standin begins") + worker.log("standin ends")
    names = [entry["event"] for entry in sorted(both, key=lambda entry: entry["timestamp"])]
    return all(one != other for one, other in itertools.pairwise(names))
