"""What every door does around its loop, with a door that only notes what is asked of it."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from worker.doors import start
from worker.edge.reply import Failure
from worker.errors import (
    HubUnreachable,
    StartFailed,
    UnfitHost,
    VolumeFull,
    WorkerError,
)
from worker.jobs.job import Answer, Handle, Job
from worker.settings import Settings
from worlds.standin import StandIns


class Door:
    """A door through which the given prompts come; it notes what happens at it, in order."""

    def __init__(self, *prompts: str, code: int = 0) -> None:
        self.prompts = prompts
        self.code = code
        self.events: list[str] = []
        self.answers: list[Answer] = []
        self.refused: list[tuple[WorkerError, float]] = []

    def __call__(self, chosen: Settings) -> "Door":
        """Open the door, as its class would."""
        self.events.append(f"opened at {chosen.log_level}")
        return self

    def listen(self) -> None:
        """Be seen."""
        self.events.append("listens")

    def serve(self, handle: Handle, until: Callable[[], bool]) -> int:
        """Serve the prompts, up to the one after which the worker cannot go on."""
        self.events.append("serves")

        async def case() -> None:
            for prompt in self.prompts:
                job = Job("job-1", {"prompt": prompt}, 1_000_000)
                self.answers.append(await handle(job))
                if until():
                    self.events.append("ends")
                    return

        asyncio.run(case())
        return self.code

    def refuse(self, error: WorkerError, seconds: float) -> None:
        """Refuse all jobs."""
        self.events.append("refuses")
        self.refused.append((error, seconds))


@pytest.fixture(autouse=True)
def _sigterm() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The codes with which a process on the platform would have ended."""
    codes: list[int] = []
    monkeypatch.setenv("RUNPOD_WEBHOOK_GET_JOB", "https://platform.test/job-take/$ID")
    monkeypatch.setattr(os, "_exit", codes.append)
    return codes


def failing(error: BaseException) -> Callable[[Settings], StandIns]:
    def boot(_: Settings) -> StandIns:
        raise error

    return boot


def logged(capfd: pytest.CaptureFixture[str], event: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    return [line for line in lines if line["event"] == event]


def test_a_door_is_seen_before_the_boot_and_serves_after_it() -> None:
    """A health check may come while weights are prepared; jobs are served by what was booted."""
    door = Door("a fox")

    def boot(_: Settings) -> StandIns:
        door.events.append("boots")
        return StandIns()

    assert start.run(door, boot) == 0
    assert door.events == ["opened at INFO", "listens", "boots", "serves"]
    (answer,) = door.answers
    assert not isinstance(answer, Failure)
    assert answer["prompt"] == "a fox"


def test_a_worker_that_cannot_go_on_ends_its_door_and_the_process_with_failure() -> None:
    door = Door("a fox", "lost", "a hare")
    assert start.run(door, lambda _: StandIns()) == 1
    assert door.events[-1] == "ends"
    assert len(door.answers) == 2


@pytest.mark.parametrize("code", [0, 1, 3])
def test_the_code_of_the_door_is_that_of_the_process(code: int) -> None:
    assert start.run(Door(code=code), lambda _: StandIns()) == code


def test_sigterm_ends_a_boot_well() -> None:
    door = Door()

    def boot(_: Settings) -> StandIns:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError

    assert start.run(door, boot) == 0
    assert "serves" not in door.events


def test_a_start_that_fails_for_good_is_the_answer_to_the_platforms_jobs_for_a_while(
    ends: list[int], capfd: pytest.CaptureFixture[str]
) -> None:
    door = Door()
    start.run(door, failing(VolumeFull("the volume is full")), refuse_s=7.0)
    assert door.events[1:] == ["listens", "refuses"]
    ((error, seconds),) = door.refused
    assert isinstance(error, StartFailed)
    assert not error.retryable
    assert error.message == "the start failed: VOLUME_FULL: the volume is full"
    assert seconds == 7.0
    assert ends == [1]
    (line,) = logged(capfd, "start failed")
    assert (line["error_code"], line["reason"]) == ("VOLUME_FULL", "the volume is full")


def test_a_start_that_fails_for_this_machine_alone_sends_the_job_elsewhere(
    ends: list[int],
) -> None:
    """It is refused for a while even so: the next start here fails too."""
    door = Door()
    start.run(door, failing(UnfitHost("the driver is too old")))
    ((error, _),) = door.refused
    assert error.message == "the start failed: WORKER_NOT_READY: the driver is too old"
    assert (error.code, error.error_type, error.retryable) == (
        "WORKER_NOT_READY",
        "transient",
        True,
    )
    assert ends == [1]


def test_a_start_that_fails_by_a_bug_says_no_more_than_where_to_look(ends: list[int]) -> None:
    door = Door()
    start.run(door, failing(KeyError("/root/secret")))
    ((error, seconds),) = door.refused
    assert error.message.startswith("the start failed: INTERNAL: a bug in this worker")
    assert "secret" not in error.message
    assert seconds == 300.0
    assert ends == [1]


def test_a_start_that_a_retry_may_fix_refuses_no_job(ends: list[int]) -> None:
    door = Door()
    start.run(door, failing(HubUnreachable("the hub did not answer")))
    assert door.events[1:] == ["listens"]
    assert ends == [1]


@pytest.mark.parametrize("error", [VolumeFull("full"), KeyError("x")], ids=repr)
def test_off_the_platform_a_start_that_fails_ends_at_once(error: Exception) -> None:
    door = Door()
    assert start.run(door, failing(error)) == 1
    assert door.events[1:] == ["listens"]


def test_a_door_that_cannot_listen_is_a_start_that_failed() -> None:
    class Shut(Door):
        def listen(self) -> None:
            raise OSError(98, "address in use")

    assert start.run(Shut(), lambda _: StandIns()) == 1


def test_a_wrong_environment_is_the_answer_to_the_platforms_jobs(
    ends: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAX_PIXELS", "many")
    monkeypatch.setenv("LOG_LEVEL", "ERROR")
    door = Door()
    start.run(door, lambda _: StandIns(), refuse_s=7.0)
    assert door.events == ["opened at INFO", "refuses"]
    ((error, seconds),) = door.refused
    assert error.message.startswith("the start failed: WORKER_NOT_READY: MAX_PIXELS")
    assert (seconds, ends) == (7.0, [1])


@pytest.mark.usefixtures("ends")
@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_on_the_platform_what_was_written_is_not_lost_with_the_process(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends without Python's own end, which writes what is still held back."""
    monkeypatch.setenv("LOG_LEVEL", "ERROR")  # no line of the log takes it along
    file = tmp_path / name
    with file.open("w") as held_back:
        monkeypatch.setattr(sys, name, held_back)

        def boot(_: Settings) -> StandIns:
            held_back.write("a word of a model")
            return StandIns()

        start.run(Door(), boot)
        assert "a word of a model" in file.read_text()
        monkeypatch.undo()


def test_on_the_platform_the_process_ends_with_the_code_of_the_door(
    ends: list[int], capfd: pytest.CaptureFixture[str]
) -> None:
    start.run(Door(code=3), lambda _: StandIns())
    assert ends == [3]
    assert [line["code"] for line in logged(capfd, "ended")] == [3]
