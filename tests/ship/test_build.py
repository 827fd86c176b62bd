"""The image is built by one program on every system, and no checkout breaks what runs inside it."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from builder import image

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "builder" / "image.py"
SCRIPTS = sorted([*(ROOT / "builder").glob("*.sh"), ROOT / "build.sh", ROOT / ".ci" / "run"])
BAKED = ("--tag", "a", "--target", "baked")


def build(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the program as on Windows: without our packages, from another folder."""
    return subprocess.run(
        [sys.executable, "-I", "-S", PROGRAM, *words],
        cwd="/",
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        check=False,
    )


def test_it_is_written_for_every_python_from_3_9_on() -> None:
    ast.parse(PROGRAM.read_text(encoding="utf-8"), feature_version=(3, 9))


@pytest.mark.parametrize(
    "words",
    [
        ("--help",),
        ("--tag", "me/worker:1", "--dry-run", "--no-cache", "--push"),
        (*BAKED, "--model", "tiny", "--lightning-steps", "8,4", "--cuda", "cu130", "--dry-run"),
        ("--tag", "me/worker", "--nonsense"),
        ("--tag", "a b"),
    ],
)
def test_the_script_and_the_program_are_the_same(words: tuple[str, ...]) -> None:
    script = subprocess.run(
        [ROOT / "build.sh", *words], cwd="/", capture_output=True, text=True, check=False
    )
    program = build(*words)
    assert (script.returncode, script.stdout) == (program.returncode, program.stdout)
    assert script.stderr == program.stderr


def test_the_script_says_that_there_is_no_python() -> None:
    done = subprocess.run(
        [ROOT / "build.sh"],
        env={**os.environ, "PYTHON": "no-such-python"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "no-such-python is not installed" in done.stderr


def test_every_option_reaches_docker_by_the_name_of_its_argument() -> None:
    given = {
        "--cuda": "cu130",
        "--torch": "2.11.0",
        "--torchvision": "0.26.0",
        "--torch-index": "https://index.example/c",
        "--model": "tiny",
        "--precision": "8bit",
        "--lightning-steps": "4,8",
    }
    words = [word for pair in given.items() for word in pair]
    command = image.make_command([*BAKED, *words, "--push", "--no-cache"], has_token=False)
    arguments = [word for word in command if "=" in word]
    assert arguments == [f"{image.OPTIONS[option]}={value}" for option, value in given.items()]
    assert " ".join(command).startswith("docker buildx build --platform linux/amd64 --target baked")
    assert command[-3:] == ["--push", "--no-cache", "."]


def test_the_last_of_a_repeated_option_counts_and_all_tags_do() -> None:
    words = ["--tag", "a", "--target", "baked", "--tag", "b:1", "--target", "slim"]
    command = image.make_command(words, has_token=True)
    assert " ".join(command).endswith("--target slim --tag a --tag b:1 --load .")


def test_the_token_is_a_secret_of_the_baked_build_alone() -> None:
    for words, has_token, is_given in (
        (BAKED, True, True),
        (BAKED, False, False),
        (("--tag", "a"), True, False),
    ):
        command = image.make_command(list(words), has_token=has_token)
        assert ("id=HF_TOKEN,env=HF_TOKEN" in command) is is_given


@pytest.mark.parametrize(
    "name",
    [
        "a",
        "me/worker:1",
        "registry.example/you/worker:edit-2511_x.y",
        "registry.example:5000/you/worker",
        "localhost:5000/a__b/c---d.e_f",
    ],
)
def test_the_names_that_docker_takes_are_taken(name: str) -> None:
    assert name in image.make_command(["--tag", name], has_token=False)


@pytest.mark.parametrize(
    "name",
    ["A", "a/", "/a", "a//b", "a:", "a:b:c", "a b", "a;b", "-a", "a..b", "a:-b", "a" * 5000 + "!"],
)
def test_what_docker_would_refuse_is_refused_at_once(name: str) -> None:
    with pytest.raises(image.UsageError):
        image.make_command(["--tag", name], has_token=False)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--cuda", "12.8"), r"unknown CUDA: 12.8 \(known: cu128, cu130\)"),
        (
            ("--torch", "2.x", "--torchvision", "0.1.0", "--torch-index", "https://x"),
            "not versions",
        ),
        (("--torch", "2.1.0", "--torchvision", "1.0.0", "--torch-index", "https://x"), "not versi"),
        (("--torch", "2.1.0", "--torchvision", "0.16.0"), "belong together"),
        (("--lightning-steps", "8"), "belong to --target baked"),
    ],
)
def test_options_that_make_no_image_are_refused(words: tuple[str, ...], reason: str) -> None:
    with pytest.raises(image.UsageError, match=reason):
        image.make_command(["--tag", "a", *words], has_token=False)


def test_docker_is_run_in_the_project_and_its_exit_code_is_ours(tmp_path: Path) -> None:
    docker = tmp_path / "docker"
    docker.write_text('#!/bin/sh\npwd >"$SEEN"\necho "$@" >>"$SEEN"\nexit 17\n')
    docker.chmod(0o755)
    seen = tmp_path / "seen"
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = build("--tag", "a", PATH=path, SEEN=str(seen))
    assert done.returncode == 17
    command = image.make_command(["--tag", "a"], has_token=False)
    assert seen.read_text().splitlines() == [str(ROOT), " ".join(command[1:])]


def test_without_docker_it_says_what_works_without(tmp_path: Path) -> None:
    done = build("--tag", "a", PATH=str(tmp_path))
    assert done.returncode == 2
    assert "docker is not installed" in done.stderr
    assert "make image-check" in done.stderr


def test_a_checkout_by_windows_git_changes_no_byte_of_what_the_image_is_built_from(
    tmp_path: Path,
) -> None:
    """Git for Windows sets core.autocrlf; bash stops at the first carriage return."""
    origin, clone = tmp_path / "origin", tmp_path / "clone"
    tracked = [*SCRIPTS, ROOT / "Dockerfile", ROOT / "Makefile", ROOT / "compose.yaml"]
    tracked += [*(ROOT / "builder").glob("*.lock"), *(ROOT / "docs").glob("*.png")]
    tracked += [*(ROOT / "checkpoints").rglob("*.json"), ROOT / ".gitattributes"]
    sample = tmp_path / "origin" / "binary.safetensors"
    sample.parent.mkdir()
    sample.write_bytes(b"text\r\nthat\nlooks like text\r\n")
    for file in tracked:
        copy = origin / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.com"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *words], cwd=origin, check=True, capture_output=True)
    command = ["git", "clone", "-q", "-c", "core.autocrlf=true", str(origin), str(clone)]
    subprocess.run(command, check=True, capture_output=True)
    for file in [*tracked, sample]:
        name = file.relative_to(origin if file is sample else ROOT)
        assert (clone / name).read_bytes() == file.read_bytes(), name
    assert all(b"\r" not in file.read_bytes() for file in SCRIPTS)
