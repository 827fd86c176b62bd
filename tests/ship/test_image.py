"""The image's files: linted, cut into the right layers, and refusing nonsense."""

import fnmatch
import json
import os
import re
import string
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from builder import image
from tools.image_worker import find_reply
from worker import settings
from worker.bundle import layout
from worker.versions import TORCH_BUILDS

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
DOCKERFILE = (ROOT / "Dockerfile").read_text()
# each instruction's keyword, and what follows it in its lines
STEPS = re.findall(r"^([A-Z]+) ((?:.*\\\n)*.*)$", DOCKERFILE, re.MULTILINE)
SCRIPTS = sorted([*(ROOT / "builder").glob("*.sh"), ROOT / "build.sh", ROOT / ".ci" / "run"])
TORCH_2_11 = ("--tag", "a", "--torch", "2.11.0")


def assigned(keyword: str) -> dict[str, str]:
    """Return what the ARG or ENV instructions of base and baked assign; slim adds nothing."""
    rests = [rest for its_keyword, rest in STEPS if its_keyword == keyword]
    return dict(pair for rest in rests for pair in re.findall(r"(\w+)=(\S+)", rest))


def copied() -> list[str]:
    """Return what COPY takes from the build context, in order."""
    rests = [rest.replace("\\\n", "") for keyword, rest in STEPS if keyword == "COPY"]
    return [source for rest in rests for source in rest.split()[:-1]]


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    done = subprocess.run(
        [BIN / "hadolint", "--no-color", "Dockerfile"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script: Path) -> None:
    done = subprocess.run(
        [BIN / "shellcheck", "--external-sources", script],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_script_can_be_run_and_stops_at_the_first_failure(script: Path) -> None:
    assert os.access(script, os.X_OK)
    assert "set -euo pipefail" in script.read_text()


def test_the_default_target_is_slim_without_anything_that_baked_adds() -> None:
    stages = [rest.split(" AS ") for keyword, rest in STEPS if keyword == "FROM"]
    assert stages == [["debian:${DEBIAN}-slim", "base"], ["base", "baked"], ["base", "slim"]]
    assert STEPS[-1][0] == "FROM"


def test_the_base_is_the_debian_whose_python_is_the_one_the_locks_are_for() -> None:
    assert assigned("ARG")["DEBIAN"] == "bookworm"
    assert "--python-version 3.11" in (ROOT / "Makefile").read_text()


def test_a_change_of_code_leaves_the_dependencies_layer_alone() -> None:
    before = DOCKERFILE.partition("venv.sh --no-project")[0]
    sources = copied()
    here = [source for source in sources if f" {source} " in before]
    assert {f"builder/requirements-{build.name}.lock" for build in TORCH_BUILDS} <= set(here)
    assert {"src", "checkpoints"}.isdisjoint(here)
    # the checkpoint changes more seldom than the code
    assert sources.index("checkpoints") < sources.index("src")


def test_the_environment_tames_the_sdk_and_shows_the_gpu() -> None:
    given = assigned("ENV")
    assert given["RUNPOD_LOG_LEVEL"] == "INFO"
    assert float(given["RUNPOD_MIN_DISK_PERCENT"]) <= 1
    assert set(given["NVIDIA_DRIVER_CAPABILITIES"].split(",")) == {"compute", "utility"}
    assert given["NVIDIA_VISIBLE_DEVICES"] == "all"
    assert given["PYTHONUNBUFFERED"] == "1"


def test_the_token_reaches_the_baked_build_as_a_secret_and_no_layer() -> None:
    assert "--mount=type=secret,id=HF_TOKEN,required=false" in DOCKERFILE
    assert "HF_TOKEN" not in {**assigned("ARG"), **assigned("ENV")}


def test_the_baked_image_s_own_settings_are_settings() -> None:
    known = {name for group in settings.list_variables() for name in group}
    baked = {
        name: string.Template(value).substitute(assigned("ARG"))
        for name, value in assigned("ENV").items()
        if name in known
    }
    assert set(baked) >= {"MODEL", "PRECISION_MODE", "LIGHTNING_STEPS"}
    assert settings.read(baked).model == ("qwen-image-edit-2511",)


def test_baking_leaves_each_model_complete_where_the_worker_looks_for_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [ROOT / "builder" / "bake.sh", "tiny", tmp_path],
        env={**os.environ, "OMP_NUM_THREADS": "1", "VENV": sys.prefix},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    folders = [tmp_path / "tiny-image", tmp_path / "tiny-edit"]
    assert done.stdout.splitlines() == [str(folder) for folder in folders]
    assert sorted(tmp_path.iterdir()) == sorted(folders)
    roles = [layout.verify(folder, "full").bundle.components for folder in folders]
    # what both publish lies on the disk once
    vaes = [
        f / "components" / held["vae"] / "manifest.json"
        for f, held in zip(folders, roles, strict=True)
    ]
    assert vaes[0].samefile(vaes[1])


def test_the_build_context_is_what_the_steps_copy_and_nothing_else() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line]
    rules = [line for line in lines if not line.startswith("#")]
    allowed = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    assert rules[0] == "*"
    assert {"**/__pycache__", "**/*.pyc"} <= set(rules)
    for source in copied():
        assert any(fnmatch.fnmatchcase(source, pattern) for pattern in allowed), source
    for pattern in allowed:
        assert fnmatch.filter(copied(), pattern), pattern


def test_no_package_index_is_named_in_what_the_image_is_built_from() -> None:
    files = [*SCRIPTS, ROOT / "Dockerfile", *(ROOT / "builder").glob("*.lock")]
    for file in files:
        named = re.findall(r"https?://\S+", file.read_text())
        assert not [url for url in named if "astral" not in url and "example" not in url], file


def test_compose_serves_the_same_command_by_http_with_a_gpu() -> None:
    service = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["worker"]
    (command,) = (json.loads(rest) for keyword, rest in STEPS if keyword == "CMD")
    assert service["command"] == command
    given = {name: str(value) for name, value in service["environment"].items()}
    fixed = {name: value for name, value in given.items() if "$" not in value}
    opened = settings.read({**fixed, "API_KEYS": "none"})
    assert (opened.serves_http, opened.http_keys) == (True, ())
    assert service["build"]["target"] in {"slim", "baked"}
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    known = {name for group in settings.list_variables() for name in group}
    assert set(service["environment"]) <= known
    devices = service["deploy"]["resources"]["reservations"]["devices"]
    assert devices == [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]


def build(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ROOT / "build.sh", *words],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        check=False,
    )


def test_build_explains_itself() -> None:
    done = build("--help")
    assert done.returncode == 0
    for option in (*image.OPTIONS, *image.SWITCHES):
        assert option in done.stdout


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "at least one --tag"),
        (["--tag"], "--tag needs a value"),
        (["--tag", "--push"], "--tag needs a value"),
        (["--tag", ""], "--tag needs a value"),
        (["--tag", "Not A Name"], "not an image name"),
        (["--tag", "a/b:"], "not an image name"),
        (["--tag", "a", "--platform", "linux/arm64"], "unknown argument: --platform"),
        (["--tag", "a", "--target", "fat"], "unknown target"),
        (["--tag", "a", "--cuda", "12.8"], "unknown CUDA: 12.8 (known: cu128, cu130)"),
        (["--tag", "a", "--cuda"], "--cuda needs a value"),
        (["--tag", "a", "--model", "tiny"], "belong to --target baked"),
        (["--tag", "a", "--target", "baked", "--precision", "fp16"], "unknown precision"),
        (["--tag", "a", "--target", "baked", "--lightning-steps", "5"], "unknown steps"),
        (["--tag", "a", "--torch", "2.11.0"], "belong together"),
        (
            [*TORCH_2_11, "--torchvision", "0.28.0", "--torch-index", "https://index.example/c"],
            "not made for torch 2.11.0 (it would be 0.26.x)",
        ),
        (
            [*TORCH_2_11, "--torchvision", "0.26.0", "--torch-index", "http://index.example/c"],
            "must be an https URL",
        ),
        (["latest"], "unknown argument: latest"),
    ],
)
def test_build_refuses_nonsense(words: list[str], reason: str) -> None:
    done = build("--dry-run", *words)
    assert done.returncode == 2
    assert reason in done.stderr
    assert "docker" not in done.stdout


def test_build_builds_slim_for_amd64_and_keeps_it_here() -> None:
    done = build("--dry-run", "--tag", "me/worker:1", "--tag", "me/worker:latest")
    assert done.returncode == 0
    assert done.stdout.strip() == (
        "docker buildx build --platform linux/amd64 --target slim"
        " --tag me/worker:1 --tag me/worker:latest --load ."
    )


def test_build_hands_the_token_over_as_a_secret_only() -> None:
    words = ("--dry-run", "--tag", "me/worker", "--target", "baked", "--model", "tiny", "--push")
    done = build(*words, HF_TOKEN="hf_not_to_be_seen")
    assert "--secret id=HF_TOKEN" in done.stdout.replace("\\", "")
    assert "--build-arg MODEL=tiny" in done.stdout
    assert "--push" in done.stdout
    assert "hf_not_to_be_seen" not in done.stdout + done.stderr


def test_another_torch_build_is_handed_to_the_venv_script_by_its_own_names() -> None:
    done = build(
        *("--dry-run", "--tag", "a", "--torch", "2.11.0", "--torchvision", "0.26.0"),
        *("--torch-index", "https://index.example/cu128"),
    )
    given = dict(re.findall(r"--build-arg (\w+)=(\S+)", done.stdout))
    assert {*given, "CUDA"} == set(assigned("ARG")) - {
        "DEBIAN",
        "MODEL",
        "PRECISION_MODE",
        "LIGHTNING_STEPS",
    }
    assert all(name in (ROOT / "builder" / "venv.sh").read_text() for name in given)


def test_the_lock_of_each_image_is_chosen_by_one_argument_and_the_first_is_the_default() -> None:
    assert assigned("ARG")["CUDA"] == TORCH_BUILDS[0].name
    for build_ in TORCH_BUILDS:
        done = build("--dry-run", "--tag", "a", "--cuda", build_.name)
        assert f"--build-arg CUDA={build_.name} " in done.stdout


def venv(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ROOT / "builder" / "venv.sh", *words],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("words", "environ", "reason"),
    [
        (["--develop"], {}, "unknown argument --develop"),
        (["--dev", "--dev"], {}, "one argument at most"),
        ([], {"TORCH_VERSION": "2.11.0"}, "belong together"),
        ([], {"CUDA": "12.8"}, "unknown CUDA=12.8 (known: cu128, cu130)"),
        ([], {"PYTHON": "python-that-is-not-there"}, "is not installed"),
    ],
)
def test_setting_up_refuses_before_it_touches_anything(
    words: list[str], environ: dict[str, str], reason: str
) -> None:
    done = venv(*words, **environ)
    assert done.returncode == 1
    assert reason in done.stderr


def test_setting_up_refuses_an_old_python(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.10.9"\nexit 1\n')
    old.chmod(0o755)
    done = venv(PYTHON=str(old))
    assert done.returncode == 1
    assert "Python 3.10.9 is too old" in done.stderr


def read_entries(lock: str) -> list[str]:
    """Return a lock's entries, each with its marker and hashes, without comments."""
    text = re.sub(r"^ *#.*\n", "", lock, flags=re.MULTILINE)
    return re.findall(r"^[a-z0-9].*\n(?: .*\n)*", text, re.MULTILINE)


def leave_out_torch(lock: str) -> list[str]:
    done = subprocess.run(
        [ROOT / "builder" / "lock_without_torch.sh"],
        input=lock,
        capture_output=True,
        text=True,
        check=True,
    )
    return read_entries(done.stdout)


def test_without_torch_every_lock_is_the_same_and_nothing_else_is_left_out() -> None:
    """So what the images have in common is tested with either, and one lock of tools fits both."""
    locks = [(ROOT / "builder" / f"requirements-{b.name}.lock").read_text() for b in TORCH_BUILDS]
    own = re.compile(r"(torch|torchvision|triton|cuda-[a-z]+|nvidia-[a-z0-9-]+)==")
    kept = leave_out_torch(locks[0])
    assert any(entry.startswith("bitsandbytes==") for entry in kept)
    for lock in locks:
        entries = read_entries(lock)
        assert leave_out_torch(lock) == [e for e in entries if not own.match(e)] == kept
        assert len(entries) - len(kept) > 15


@pytest.mark.parametrize(
    ("chosen", "folder"),
    [("", ".venv"), ("TORCH=cu128", ".venv"), ("TORCH=cu130", ".venv-cu130")],
)
def test_make_keeps_an_environment_for_each_torch(chosen: str, folder: str) -> None:
    """So changing between them installs nothing again."""
    words = ["make", "--dry-run", "--always-make", "test", *filter(None, [chosen])]
    environ = {k: v for k, v in os.environ.items() if k not in {"TORCH", "MAKEFLAGS"}}
    done = subprocess.run(words, cwd=ROOT, env=environ, capture_output=True, text=True, check=True)
    lock = chosen.partition("=")[2] or TORCH_BUILDS[0].name
    assert f"CUDA={lock} VENV={folder} " in done.stdout
    assert f" {folder}/bin/python -m pytest" in done.stdout


def test_the_image_check_finds_the_reply_among_the_lines() -> None:
    printed = '--- Starting\n{"images": [{"base64": "<9 characters>"}], "seed": 1}\nINFO | done\n'
    assert find_reply(printed)["images"] == [{"base64": "<9 characters>"}]
    with pytest.raises(SystemExit, match="no reply with pictures"):
        find_reply('INFO | nothing\n{"error": "INTERNAL: no"}\n')
