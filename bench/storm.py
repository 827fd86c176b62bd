"""A storm of mixed jobs that share steps: every picture is the picture that it is alone.

`python bench/storm.py --jobs 1000` first lets a worker draw each picture alone (BATCH_SIZE=1), then
sends the jobs to a worker that shares (BATCH_SIZE=4), both with the embedded models behind the
loopback platform. Sizes, schedules, prompts of several lengths, references and counts are mixed;
7 % of the jobs are cancelled under way, most of them next to one that goes on; 3 % are bad, 7 % ask
to be alone. It fails when a picture differs in one bit, when a job has no answer or two, or when
nothing was shared.
"""

import argparse
import base64
import hashlib
import io
import json
import platform
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))

from worlds.pod import Job, Pod
from worlds.process import Process

ROOT: Final = Path(__file__).resolve().parents[1]
COMMAND: Final = (sys.executable, "-u", str(ROOT / "handler.py"))
AHEAD: Final = 14  # jobs that wait at the platform or the worker
START_S: Final = 600.0  # until a worker polls, on a busy machine
SUBJECTS: Final = ("a red circle", "a blue square", "a green triangle", "a large red square")
EDITS: Final = ("make it blue", "make it red", "make the background green")
SEEDS: Final = 3
CANCELLED: Final = "CANCELLED"

JobInput = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Trial:
    """One job and its expected outcome: OK, CANCELLED or an error code."""

    job_input: JobInput
    expected: str = "OK"


@dataclass(slots=True)
class Findings:
    """The results of a storm."""

    outcomes: Counter[str] = field(default_factory=Counter)
    sizes: Counter[int] = field(default_factory=Counter)
    pictures: int = 0
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def shared(self) -> int:
        """How many pictures were made together with others."""
        return sum(count for size, count in self.sizes.items() if size > 1)


def reference(number: int) -> str:
    """Return the base64 of a small picture, one of several sizes."""
    side = (64, 96)[number % 2]
    slope = Image.linear_gradient("L").resize((side, side)).rotate(90 * number)
    file = io.BytesIO()
    Image.merge("RGB", (slope, slope.rotate(180), slope.rotate(90))).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


REFERENCES: Final = tuple(reference(number) for number in range(4))


def make_recipes(rng: random.Random) -> list[JobInput]:
    """Return what jobs ask for, without seed and count."""
    recipes: list[JobInput] = [
        {"prompt": subject, **more}
        for subject in SUBJECTS
        for more in ({"size": "64x64"}, {"size": "96x64"}, {"size": "64x64", "steps": 4})
    ]
    recipes += [
        {"prompt": subject, "size": "64x64", "lightning": False, "steps": 3, "cfg": 3, **more}
        for subject in SUBJECTS[:3]
        for more in ({}, {"negative_prompt": "red"}, {"negative_prompt": "blue and dark"})
    ]
    recipes += [
        {"prompt": edit, "images": list(pictures), "size": "64x64"}
        for edit in EDITS
        for pictures in (REFERENCES[:1], REFERENCES[1:2], REFERENCES[2:3], REFERENCES[:2])
    ]
    rng.shuffle(recipes)
    return recipes


def make_trials(count: int, seed: int) -> list[Trial]:
    """Return the jobs of a storm, the same for the same seed; like ones often follow each other."""
    rng = random.Random(seed)
    recipes = make_recipes(rng)
    near = list(recipes[:4])
    trials: list[Trial] = []
    while len(trials) < count:
        if rng.random() < 0.15:
            near[rng.randrange(len(near))] = rng.choice(recipes)
        recipe, chance = rng.choice(near), rng.random()
        own = {"seed": rng.randrange(SEEDS), "n": rng.choice((1, 1, 1, 2, 3))}
        if chance < 0.08:
            long = {**recipe, "lightning": False, "steps": 30, "cfg": 1, "n": 1}
            pair = [Trial({**long, "seed": 0}, CANCELLED), Trial({**long, "seed": 1})]
            trials += rng.sample(pair, 2)
        elif chance < 0.11:
            trials.append(Trial({**recipe, **own, "prompt": ""}, "INVALID_INPUT"))
        elif chance < 0.19:
            trials.append(Trial({**recipe, **own, "batch": False}))
        else:
            trials.append(Trial({**recipe, **own}))
    return trials[:count]


def name_picture(job_input: Mapping[str, Any], seed: int) -> str:
    """Return what makes one picture: its job's input, and its own seed."""
    own = {word: value for word, value in job_input.items() if word not in ("n", "batch")}
    return json.dumps({**own, "seed": seed}, sort_keys=True)


def digest(entry: Mapping[str, Any]) -> str:
    """Identify a picture by its pixels."""
    image = Image.open(io.BytesIO(base64.b64decode(entry["base64"])))
    return hashlib.sha256(repr((image.mode, image.size)).encode() + image.tobytes()).hexdigest()


def list_alone(trials: Sequence[Trial]) -> list[Trial]:
    """Return one job for each picture that the trials will make."""
    names = {
        name_picture(trial.job_input, trial.job_input["seed"] + index): None
        for trial in trials
        if trial.expected in ("OK", CANCELLED)
        for index in range(trial.job_input["n"])
    }
    return [Trial({**json.loads(name), "n": 1}) for name in names]


def check(
    job: Job,
    trial: Trial,
    alone: dict[str, str],
    findings: Findings,
    *,
    learn: bool,
    crossed: bool = False,
) -> None:
    """Compare one final job with its expected outcome and pictures; `learn` them instead.

    A job may be done before its cancel arrives; `crossed` says that its answer was on its way then.
    """
    outcome = "OK" if job.status == "COMPLETED" else str((job.output or {}).get("error_code"))
    if job.status == CANCELLED:
        outcome = CANCELLED
    right = outcome == trial.expected or (outcome, trial.expected) == ("OK", CANCELLED)
    right = right and job.answers == (outcome != CANCELLED or crossed)
    findings.outcomes[outcome] += 1
    if not right:
        findings.wrong.append(f"{trial}: {outcome}, {job.answers} answers, {job.error}")
    if not right or outcome != "OK":
        return
    for entry in job.output["images"]:
        findings.pictures += 1
        name = name_picture(trial.job_input, entry["seed"])
        batch = entry.get("batch", job.output.get("batch", {"size": 1}))
        findings.sizes[batch["size"]] += 1
        if trial.job_input.get("batch") is False and batch["size"] > 1:
            findings.wrong.append(f"{name}: shared against its wish")
        if learn:
            alone[name] = digest(entry)
        elif alone[name] != digest(entry):
            findings.wrong.append(f"{name}: differs from the picture alone, in {batch}")


def drive(
    pod: Pod, coming: Iterator[Trial], alone: dict[str, str], findings: Findings, *, learn: bool
) -> None:
    """Keep jobs queued until all are checked; cancel those that must be, once they run."""
    waiting: dict[str, Trial] = {}
    stopping: set[str] = set()
    while True:
        while len(waiting) < AHEAD and (trial := next(coming, None)) is not None:
            waiting[pod.submit(trial.job_input)] = trial
        if not waiting:
            return
        for job_id, trial in list(waiting.items()):
            job = pod.jobs[job_id]
            runs = job.taken and pod.seen("progress", job_id)
            if trial.expected == CANCELLED and job_id not in stopping and runs:
                stopping.add(job_id)
                pod.cancel(job_id)
            if job.final and (job_id not in stopping or pod.has_heard(job_id)):
                crossed = has_crossed(pod, job_id)
                check(job, waiting.pop(job_id), alone, findings, learn=learn, crossed=crossed)
                stopping.discard(job_id)
                pod.forget(job_id)
        pod.change(1.0)


def has_crossed(pod: Pod, job_id: str) -> bool:
    """Whether a job's answer came after its stop signal was sent, but before it was received."""
    sent, answers = pod.seen("stop", job_id), pod.seen("answer", job_id)
    if not sent or not answers:
        return False
    return not any(sent[0].at < poll.at < answers[0].at for poll in pod.seen("stop-poll"))


def serve(trials: Sequence[Trial], alone: dict[str, str], home: Path, **environ: str) -> Findings:
    """Send jobs to a worker of their own and return the findings; fill `alone` if it is empty."""
    findings, learn = Findings(), not alone
    given = {"MODEL": "tiny", "MODEL_DIR": str(home), "MIN_STORAGE_FREE_GB": "0", **environ}
    with Pod(hold_s=5.0, keep=False) as pod, pod.worker(COMMAND, given) as worker:
        pod.until(lambda: pod.seen("poll"), START_S)
        start = time.monotonic()
        drive(pod, iter(trials), alone, findings, learn=learn)
        findings.seconds = time.monotonic() - start
        worker.send(signal.SIGTERM)
        findings.wrong += find_faults(worker)
    if (total := sum(findings.outcomes.values())) != len(trials):
        findings.wrong.append(f"{len(trials) - total} jobs without an end")
    return findings


def find_faults(worker: Process) -> list[str]:
    """Return what a worker that was asked to leave did wrong."""
    code = worker.wait()
    events = (
        "answer lost",
        "answer refused",
        "job handed out twice",
        "loop failed",
        "bug",
        "fatal",
    )
    faults = [f"the worker's log says: {event}" for event in events if worker.log(event)]
    if code or worker.relatives():
        faults.append(f"exit code {code}, still running: {worker.relatives()}")
    return faults


def run(jobs: int, seed: int, home: Path, precision: str, size: int) -> dict[str, Any]:
    """Draw every picture alone, then in a storm; return the figures."""
    trials = make_trials(jobs, seed)
    alone: dict[str, str] = {}
    more = {"PRECISION_MODE": precision}
    first = serve(list_alone(trials), alone, home, **more)
    storm = serve(
        trials, alone, home, BATCH_SIZE=str(size), PREFETCH="true", BATCH_TIMEOUT_MS="20", **more
    )
    wrong = [*first.wrong, *storm.wrong]
    if not storm.shared:
        wrong.append("no picture was made together with another")
    return {
        "machine": {"cpu": name_cpu(), "python": platform.python_version()},
        "precision": precision,
        "batch_size": size,
        "jobs": jobs,
        "outcomes": dict(sorted(storm.outcomes.items())),
        "pictures": storm.pictures,
        "distinct_pictures": len(alone),
        "shared": storm.shared,
        "pictures_by_batch_size": dict(sorted(storm.sizes.items())),
        "seconds": round(storm.seconds),
        "wrong": wrong,
    }


def name_cpu() -> str:
    """Return the processor's name as Linux has it."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if "model name" in line), "")


def main() -> int:
    """Run, print the figures, and return 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=4, help="BATCH_SIZE")
    parser.add_argument("--precision", default="bf16", choices=("bf16", "8bit", "4bit"))
    parser.add_argument("--home", type=Path, default=ROOT / "out" / "storm")
    parser.add_argument("--json", type=Path, help="where the figures go too")
    given = parser.parse_args()
    figures = run(given.jobs, given.seed, given.home, given.precision, given.size)
    text = json.dumps(figures, indent=1)
    print(text)
    if given.json is not None:
        given.json.write_text(text + "\n", encoding="utf-8")
    return int(bool(figures["wrong"]))


if __name__ == "__main__":
    sys.exit(main())
