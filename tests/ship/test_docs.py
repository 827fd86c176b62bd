"""The guides: codes and variables are ours, examples are jobs, and the Python one runs."""

import base64
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.real_shapes import cold, shapes
from worker import errors, settings
from worker.bundle.prepare import compute_sizes
from worker.families.qwen_image.recipe import RECIPE
from worker.tasks import request
from worker.versions import TORCH_BUILDS, TorchBuild, list_releases, write_cuda
from worlds import embedded
from worlds.pod import KEY, Pod

ROOT = Path(__file__).resolve().parents[2]
DOCS = {path.name: path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))}
GUIDES = ("api.md", "deploy.md", "troubleshooting.md", "windows.md")
# the platform's, the SDK's or the caller's own
OTHERS = {
    *("RUNPOD_INIT_TIMEOUT", "RUNPOD_MIN_DISK_PERCENT", "RUNPOD_API_KEY", "ENDPOINT_ID"),
    *(
        "IN_QUEUE",
        "IN_PROGRESS",
        "COMPLETED",
        "FAILED",
        "TIMED_OUT",
        "CANCELLED",
        "JOB",
        "JPEG",
        "WEBP",
    ),
}
START_S = 300.0
PICTURE = base64.b64encode((ROOT / "docs" / "lightning.png").read_bytes()).decode("ascii")


def codes() -> set[str]:
    """Return every code of the error tree."""
    waiting, found = [errors.WorkerError], set()
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        if "code" in vars(kind):
            found.add(kind.code)
    return found


def blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", DOCS[name], re.MULTILINE | re.DOTALL)


def test_every_failure_code_has_its_section_in_the_order_of_the_tree() -> None:
    told = re.findall(r"^### (\w+)$", DOCS["troubleshooting.md"], re.MULTILINE)
    assert len(told) == len(set(told))
    # bundle.layout.Damaged and others refine a code of the tree
    assert set(told) == codes()


@pytest.mark.parametrize("name", GUIDES)
def test_every_variable_that_a_guide_names_exists(name: str) -> None:
    known = (
        {variable for group in settings.list_variables() for variable in group} | codes() | OTHERS
    )
    words = re.findall(r"`\$?([A-Z][A-Z_]{2,})(?:=[^`]*)?`", DOCS[name])
    assert words
    assert set(words) <= known


def read_hash(text: str) -> Any:
    """Read a hash table of PowerShell, in which variables stand for a picture."""
    for pattern, written in (
        (r"@\(([^()]*)\)", r"[\1]"),
        (r"@\{", "{"),
        (r"(\w+) = ", r'"\1": '),
        (r";", ","),
        (r"\$picture", f'"{PICTURE}"'),
    ):
        text = re.sub(pattern, written, text)
    return json.loads(text)


def jobs() -> Iterator[Any]:
    for name in GUIDES:
        for text in blocks(name, "json"):
            yield json.loads(text)
        for text in blocks(name, "sh"):
            for body in re.findall(r"-d '(\{.*?\})'", text):
                yield json.loads(body)
        for body in re.findall(r"`(\{\"input\".*?\})`", DOCS[name]):
            yield json.loads(body)
        for text in blocks(name, "powershell"):
            for body in re.findall(r"^\$body = (@\{.*\})$", text, re.MULTILINE):
                yield read_hash(body)
        for body in re.findall(r"printf '(\{.*\})'", DOCS[name]):
            yield json.loads(body.replace("%s", PICTURE))


def test_every_job_that_a_guide_shows_is_accepted() -> None:
    given = settings.read(
        {
            "MODEL": "tiny,tiny-flux",
            "STRICT_INPUT": "true",
            "LORAS": "pixel=org/repository",
            "BUCKET_ENDPOINT_URL": "https://s3.example.com",
            "BUCKET_ACCESS_KEY_ID": "key-of-a-test",
            "BUCKET_SECRET_ACCESS_KEY": "secret-of-a-test",
            "BUCKET_NAME": "pictures",
        }
    )
    names = {"tiny-flux": "flux-2-klein-4b"}
    served = [replace(one, id=names.get(one.id, one.id)) for one in embedded.served(given)]
    found = list(jobs())
    assert len(found) >= 6
    for job in found:
        request.parse(job["input"], served, given)


def test_the_sizes_are_those_that_the_code_computes() -> None:
    rows = re.findall(r"^\| (4bit|8bit|bf16) \| (.+) \|$", DOCS["deploy.md"], re.MULTILINE)
    documented = {
        precision: [float(cell) for cell in cells.split("|")] for precision, cells in rows
    }
    order = cold.order(shapes.full(), "4bit", torch.device("cpu"), Path("nowhere"))
    computed = {}
    for precision, size in compute_sizes(order).items():
        parts = size.parts
        shared = parts["text_encoder"] + parts["vae"]
        columns = (
            *(size.disk, *(parts[role] for role in RECIPE.with_weights), size.adapters),
            *(size.memory, 2 * (size.memory - shared) + shared),
        )
        computed[precision] = [round(column / 1e9, 1) for column in columns]
    assert documented == computed


def find_pin(lock: str, package: str) -> str:
    """Return a package's version in a lock, without the build number of NVIDIA's packages."""
    text = (ROOT / "builder" / f"requirements-{lock}.lock").read_text()
    found = re.search(rf"^{package}==(\d+\.\d+\.\d+)", text, re.MULTILINE)
    assert found is not None, package
    return found[1]


@pytest.mark.parametrize(("column", "build"), list(enumerate(TORCH_BUILDS)), ids=str)
def test_the_images_are_those_of_the_code_and_their_locks(column: int, build: TorchBuild) -> None:
    page = DOCS["deploy.md"]
    (table,) = re.findall(r"^\| image \|.*\n(?:\|.*\n)+", page, re.MULTILINE)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    row = {cells[0]: cells[column + 1] for cells in rows}
    assert len(rows[0]) == len(TORCH_BUILDS) + 1
    assert row["CUDA"] == write_cuda(build.cuda)
    assert row["driver"] == f"{build.driver} or newer"
    assert row["*Allowed CUDA versions*"] == ", ".join(list_releases(build.cuda))
    assert row["torch, torchvision"] == f"{build.torch}, {build.torchvision}"
    cudnn = find_pin(build.name, f"nvidia-cudnn-cu{build.cuda[0]}")
    assert row["cuDNN, triton"] == f"{cudnn}, {find_pin(build.name, 'triton')}"
    # torch's own rule (sdp_utils.cpp, check_prefer_cudnn_attention)
    prefers_cudnn = tuple(map(int, cudnn.split("."))) > (9, 15, 0)
    assert ("cuDNN" in row["attention"]) == prefers_cudnn
    built = row["build"]
    assert ("--cuda" not in built) == (column == 0)
    assert column == 0 or f"--cuda {build.name}" in built


def test_the_sdk_s_version_is_the_locked_one() -> None:
    version = re.search(r"the image has ([\d.]+),", DOCS["troubleshooting.md"])
    assert version is not None
    assert version[1] == find_pin(TORCH_BUILDS[0].name, "runpod")


def test_no_guide_boasts() -> None:
    for text in DOCS.values():
        assert not re.search(r"blazing|seamless|effortless|cutting-edge", text, re.IGNORECASE)


@pytest.mark.slow
@pytest.mark.timeout(900)  # a worker with a model has START_S to start
def test_the_python_example_generates_and_edits(tmp_path: Path) -> None:
    """The script of docs/api.md, as it stands, against the real worker with the embedded models."""
    (script,) = blocks("api.md", "python")
    environ = {"MODEL": "tiny", "OMP_NUM_THREADS": "1", "MODEL_DIR": str(tmp_path / "models")}
    handler = (sys.executable, "handler.py")
    with Pod(hold_s=2.0) as pod, pod.worker(handler, environ, cwd=ROOT):
        pod.until(lambda: pod.seen("poll"), START_S)
        subprocess.run(
            [sys.executable, "-c", script],
            env={
                **os.environ,
                "RUNPOD_ENDPOINT_BASE_URL": pod.base,
                "ENDPOINT_ID": pod.endpoint,
                "RUNPOD_API_KEY": KEY,
            },
            cwd=tmp_path,
            check=True,
        )
    for name in ("circle.png", "green.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_the_examples_in_other_languages_ask_for_the_same_picture() -> None:
    (python,), (script,) = blocks("api.md", "python"), blocks("api.md", "js")
    shell = "".join(blocks("api.md", "sh"))
    prompt = "a large red circle on a blue background"
    assert all(prompt in text for text in (python, script, shell))
    assert all("42" in text for text in (python, script, shell))
