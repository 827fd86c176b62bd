"""Mixed jobs that share steps of the real model: every picture is the picture that it is alone."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from bench import storm
from bench.storm import CANCELLED, Findings, Trial
from worker import boot, settings
from worker.jobs.serve import Worker
from worker.seam import BatchKey, Control, Model, Outcome
from worlds.pod import Job
from worlds.standin import answered

JOBS = 30


class Watched:
    """The models of a worker, with the keys of every batch that they make."""

    def __init__(self, models: Any) -> None:
        self._models = models
        self.batches: list[set[BatchKey | None]] = []
        self.sizes: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._models, name)

    def take(self, model_id: str) -> Model:
        """Return a model that is watched."""
        model: Model = self._models.take(model_id)
        watched = self

        class Making:
            def __getattr__(self, name: str) -> Any:
                return getattr(model, name)

            def make(self, wishes: Sequence[Any], controls: Sequence[Control]) -> Iterator[Outcome]:
                watched.batches.append({model.make_key(wish) for wish in wishes})
                watched.sizes.append(len(wishes))
                yield from model.make(wishes, controls)

        found: Any = Making()
        return found  # type: ignore[no-any-return] # all that a Model has


async def reply_to(worker: Worker, number: int, trial: Trial) -> Mapping[str, Any] | None:
    """Return the reply to one job, which is cancelled at its first step if it must be."""

    async def announce(_job_id: str, _update: Any) -> None:
        if trial.expected == CANCELLED:
            task.cancel()

    job = {"id": f"job-{number}", "input": trial.job_input}
    task = asyncio.create_task(answered(worker, job, announce))
    await asyncio.wait({task})
    return None if task.cancelled() else task.result()


def replies(models: Any, trials: Sequence[Trial], **environ: str) -> list[Any]:
    async def case() -> list[Any]:
        worker = Worker(settings.read(environ), models)
        jobs = (reply_to(worker, number, trial) for number, trial in enumerate(trials))
        return list(await asyncio.gather(*jobs))

    return asyncio.run(case())


def test_a_small_storm_changes_no_picture_and_no_forward_has_two_keys(tmp_path: Path) -> None:
    given = {"MODEL": "tiny", "MODEL_DIR": str(tmp_path), "MIN_STORAGE_FREE_GB": "0"}
    models = Watched(boot.boot(settings.read(given)))
    trials = storm.make_trials(JOBS, seed=1)
    alone = {
        storm.name_picture(trial.job_input, trial.job_input["seed"]): storm.digest(
            reply["images"][0]
        )
        for one in [storm.list_alone(trials)]
        for trial, reply in zip(one, replies(models, one), strict=True)
    }
    assert set(models.sizes) == {1}
    models.sizes.clear()
    models.batches.clear()
    outcomes, ends = replies(models, trials, BATCH_SIZE="4"), set()
    for trial, reply in zip(trials, outcomes, strict=True):
        end = CANCELLED if reply is None else reply.get("error_code", "OK")
        ends.add(end)
        assert end in (trial.expected, "OK" if trial.expected == CANCELLED else trial.expected)
        for entry in reply["images"] if end == "OK" else ():
            name = storm.name_picture(trial.job_input, entry["seed"])
            assert storm.digest(entry) == alone[name], name
    assert {"OK", CANCELLED} <= ends
    assert {len(keys) for keys in models.batches} == {1}
    assert max(models.sizes) == 4


@pytest.mark.parametrize(
    ("expected", "seen", "wrong"),
    [
        ("OK", "COMPLETED", False),
        (CANCELLED, "COMPLETED", False),
        (CANCELLED, CANCELLED, False),
        ("OK", CANCELLED, True),
        ("INVALID_INPUT", "COMPLETED", True),
    ],
)
def test_the_storm_notices_a_wrong_end(expected: str, seen: str, wrong: bool) -> None:
    job = Job(id="1", body={}, created=0.0)
    job.status, job.output = seen, {"images": []}
    job.answers = int(seen != CANCELLED)
    findings = Findings()
    storm.check(job, Trial({"seed": 0, "n": 1}, expected), {}, findings, learn=False)
    assert bool(findings.wrong) is wrong


@pytest.mark.parametrize(("answers", "crossed"), [(0, False), (1, True)])
def test_a_cancelled_job_has_an_answer_only_if_it_was_on_its_way(
    answers: int, crossed: bool
) -> None:
    job = Job(id="1", body={}, created=0.0)
    job.status, job.answers = CANCELLED, answers
    for given in (crossed, not crossed):
        findings = Findings()
        trial = Trial({"seed": 0, "n": 1}, CANCELLED)
        storm.check(job, trial, {}, findings, learn=False, crossed=given)
        assert bool(findings.wrong) is (given is not crossed)


def test_the_storm_notices_a_picture_that_differs_and_one_that_shared_against_its_wish() -> None:
    entry = {"base64": storm.REFERENCES[0], "seed": 0, "batch": {"size": 2}}
    job = Job(id="1", body={}, created=0.0)
    job.status, job.output, job.answers = "COMPLETED", {"images": [entry]}, 1
    trial, alone = Trial({"seed": 0, "n": 1, "batch": False}), dict[str, str]()
    for learn, wrong in ((True, 1), (False, 1)):
        findings = Findings()
        storm.check(job, trial, alone, findings, learn=learn)
        assert len(findings.wrong) == wrong
    findings = Findings()
    storm.check(job, trial, {next(iter(alone)): "other"}, findings, learn=False)
    assert len(findings.wrong) == 2
