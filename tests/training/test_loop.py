"""The embedded pair does what it is asked, by its pixels, through handler.py and RunPod's API."""

import base64
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from training.tiny.cases import Case, edits, exchanges, prompts, rates
from worlds.pod import Pod

ROOT = Path(__file__).parents[2]
START_S = 300.0  # imports take 5-15 s, several times that on a machine that does something else
JOB_S = 120.0
pytestmark = pytest.mark.timeout(900)  # a worker with a model has START_S to start
# a few of each, with room for one miss, so that a rounding elsewhere changes no verdict
PROMPTS, EDITS, EXCHANGES = 6, 10, 2
MISSES = 1


@pytest.fixture(scope="module", params=["bf16", "4bit"])
def pod(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pod]:
    """RunPod's API with a worker that serves the embedded pair in one precision."""
    environ = {
        "MODEL": "tiny",
        "MODEL_DIR": str(tmp_path_factory.mktemp("models")),
        "PRECISION_MODE": request.param,
    }
    with (
        Pod(hold_s=2.0) as pod,
        pod.worker([sys.executable, "handler.py"], environ, cwd=ROOT) as worker,
    ):
        pod.until(lambda: pod.seen("poll") or not worker.running, START_S)
        assert worker.running, worker.stderr
        yield pod


def asked(case: Case) -> dict[str, Any]:
    """Return the input of a job, as a caller would write it."""
    job: dict[str, Any] = {"prompt": case.prompt, "seed": case.seed}
    if case.references:
        job["images"] = [data_uri(picture) for picture in case.references]
    return job


def data_uri(picture: Image.Image) -> str:
    """Embed a picture in a job."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def generate(pod: Pod, job: dict[str, Any]) -> Image.Image:
    """Run a job and return its picture."""
    answer = pod.answer(pod.submit(job), JOB_S).describe()
    assert answer["status"] == "COMPLETED", answer
    image = answer["output"]["images"][0]
    return Image.open(io.BytesIO(base64.b64decode(image["base64"])))


@pytest.mark.slow
def test_prompts_and_edits_come_out_as_requested(pod: Pod) -> None:
    cases = [
        *prompts(PROMPTS, 31),
        *edits(EDITS, 32),
        *exchanges(EXCHANGES, 33),
    ]
    pictures = [generate(pod, asked(case)) for case in cases]
    right = rates(cases, pictures)["all five"] * len(cases)
    assert right >= len(cases) - MISSES
